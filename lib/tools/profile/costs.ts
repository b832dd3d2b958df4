/**
 * What a recorded dispatch computes and moves: each kernel says so itself.
 *
 * @module
 */
import {
  type Cost,
  CostCall,
  type CostContext,
  type Costed,
  otherCost,
} from "../../../kernels/cost.ts";
import { KERNELS } from "../../../kernels/list.ts";

export type { Cost, CostContext, Costed };

const costs = new Map(KERNELS.map((kernel) => [kernel.name, kernel.cost]));

/** What a dispatch is; a fused attention is two operations. */
export function costsOf(dispatch: Costed, context: CostContext): Cost[] {
  const cost = costs.get(dispatch.kernel) ?? otherCost;
  return cost(new CostCall(dispatch, context));
}
