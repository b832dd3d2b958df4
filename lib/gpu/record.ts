/**
 * Records the verbs of a forward pass.
 *
 * @module
 */
import type { Matrix } from "../formats/matrix.ts";
import { familyOf } from "../model/families.ts";
import type { Wanted, Weights } from "../model/family.ts";
import type { CachePass } from "../model/kv_cache.ts";
import type { Plan } from "../webgpu/plan.ts";
import type { Tensor } from "../webgpu/tensor.ts";
import type { GpuKvCache } from "./kv_cache.ts";
import type { GpuOps } from "./ops.ts";

/** What a pass is recorded from. */
export interface Verbs {
  weights: Weights<Matrix<Tensor>>;
  input: Tensor;
  plan: Plan;
  cache: GpuKvCache;
  shape: CachePass;
  wanted: Wanted<Tensor>;
}

/** Records a pass into `plan`, verb by verb: another one may be recorded between two verbs. */
export function* recordVerbs(
  ops: GpuOps,
  { weights, input, plan, cache, shape, wanted }: Verbs,
): Generator<void, Tensor> {
  const begin = () => {
    ops.plan = plan;
    cache.record(shape);
  };
  begin();
  const { forward } = familyOf(ops.config);
  const verbs = forward(ops, weights, input, cache, wanted);
  let verb = verbs.next();
  for (; !verb.done; verb = verbs.next(verb.value)) {
    yield;
    begin();
  }
  return verb.value;
}
