/**
 * What a recorded dispatch computes and moves: each kernel's file says so.
 *
 * @module
 */
import {
  type Cost,
  CostCall,
  type CostContext,
  type Costed,
} from "../../../kernels/cost.ts";
import { KERNELS } from "../../../kernels/list.ts";

export type { Cost, CostContext, Costed };

const kernels = new Map(KERNELS.map((kernel) => [kernel.name, kernel]));

/** What a dispatch is; a fused attention is two operations. */
export function costsOf(dispatch: Costed, context: CostContext): Cost[] {
  const call = new CostCall(dispatch, context);
  return kernels.get(dispatch.kernel)?.cost?.(call) ??
    call.whole({ name: call.role, group: "other" });
}
