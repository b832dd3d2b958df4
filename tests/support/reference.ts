/** The reference for kernels, and assertions within its tolerance. */
import type { Expected } from "../../kernels/case.ts";
import { assertAllClose } from "./assert_all_close.ts";

export * from "../../lib/check/reference.ts";
export type {
  Attention,
  AttentionInputs,
  Expected,
} from "../../kernels/case.ts";

/** Asserts `|actual − expected| ≤ tolerance · norm` for every element. */
export function assertSums(
  actual: ArrayLike<number>,
  { values, norms }: Expected,
  message: string,
  tolerance = 1e-5,
): void {
  const by = (list: ArrayLike<number>) =>
    Float64Array.from(list, (value, i) => norms[i] ? value / norms[i] : value);
  assertAllClose(by(actual), by(values), { absolute: tolerance }, message);
}
