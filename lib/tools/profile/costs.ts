/**
 * What a recorded dispatch computes and moves, as defined in its kernel's file.
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

/** The operations in a dispatch; fused attention counts as two. */
export function costsOf(dispatch: Costed, context: CostContext): Cost[] {
  const call = new CostCall(dispatch, context);
  return kernels.get(dispatch.kernel)?.cost?.(call) ??
    call.whole({ name: call.role, group: "other" });
}
