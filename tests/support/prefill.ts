/**
 * Shared by the tests of attendPrefill, attendPrefillF16 and attendPrefillMatrix.
 *
 * @module
 */
import { attendPrefillF16 } from "../../kernels/attend_prefill_f16.ts";
import { attendPrefillMatrix } from "../../kernels/attend_prefill_matrix.ts";
import { attendPrefill } from "../../kernels/attend_prefill.ts";
import { stateTensor } from "../../kernels/attention_case.ts";
import { prefillGrid } from "../../kernels/heads.ts";
import { mergeSplits } from "../../kernels/merge_splits.ts";
import { cacheConstant } from "../../lib/dispatch/attention.ts";
import { headVector } from "../../lib/dispatch/precision.ts";
import type { CacheDtype } from "../../lib/formats/cached.ts";
import type { CpuTensor } from "../../lib/formats/tensor.ts";
import type { Trial } from "./gpu.ts";
import { type Attention, attentionInputs } from "./reference.ts";

/** The kernels of prefill attention, by what multiplies. */
const KERNELS = {
  f32: attendPrefill,
  f16: attendPrefillF16,
  matrices: attendPrefillMatrix,
} as const;

/**
 * One call, with sums over 16 lanes: by subgroups if they have that many. With `splits` the
 * kernel may have several, which are merged.
 */
export function runPrefill(
  trial: Trial,
  { q, k, v }: Record<"q" | "k" | "v", CpuTensor>,
  { heads, kvHeads, headDim, lengths, first, tokens, rows }: Attention,
  by: keyof typeof KERNELS = "f32",
  ROWS = trial.gpu.software ? 32 : 64,
  splits = 0,
) {
  const cache = k.dtype === "u32" ? "q8_0" : "f32"; // or f16, which is read likewise
  const SUBGROUPS = trial.gpu.subgroupSize >= 16 ? 1 : 0;
  const kernel = KERNELS[by], group = heads / kvHeads, m = rows;
  const y = trial.filled([m * (1 + splits), heads * headDim]);
  const state = trial.upload(stateTensor(m, heads));
  trial.run(kernel, {
    q: trial.upload(q),
    k: trial.upload(k),
    v: trial.upload(v),
    lengths: trial.u32(...lengths),
    y,
    ...(splits ? { state } : {}),
  }, {
    constants: {
      HEAD_DIM: headDim,
      ROWS,
      // With fewer keys a software adapter compiles half as many products.
      ...by === "matrices"
        ? { KEYS: trial.gpu.software ? 32 : 64 }
        : { SUBGROUPS, LOG_LANES: 4 },
      ...(splits ? { SPLIT: 1 } : {}),
      ...cacheConstant(cache),
    },
    uniforms: { first, tokens, group, scale: headDim ** -0.5 },
    gridAt: () => prefillGrid({ m, tokens, group, kvHeads }, ROWS, splits || 1),
  });
  if (splits > 1) {
    trial.run(mergeSplits, { state, y }, {
      constants: { HEAD_DIM: headDim, VEC: headVector(headDim) },
      uniforms: { heads: m * heads },
    });
  }
  return y.rows(m);
}

/** Random q and a cache that has the pass's tokens. */
export function prefillInputs(
  trial: Trial,
  sizes: Attention,
  cache: CacheDtype,
) {
  const { rows, heads, headDim, tokens } = sizes, { random } = trial;
  const { k, v } = attentionInputs(random, sizes, { cache }, tokens);
  return { q: random.tensor("f32", [rows, heads * headDim], 2), k, v };
}
