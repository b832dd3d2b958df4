/**
 * A self-test of the attention kernels, as a prompt and as a decode step run them.
 *
 * @module
 */
import { attendDecode } from "../kernels/attend_decode.ts";
import { attendPrefill } from "../kernels/attend_prefill.ts";
import { attendPrefillF16 } from "../kernels/attend_prefill_f16.ts";
import { mergeSplits } from "../kernels/merge_splits.ts";
import { qkNormRope } from "../kernels/qk_norm_rope.ts";
import {
  chooseDecodeAttention,
  choosePrefillRows,
  exactLanes,
  headLanes,
} from "./choose.ts";
import type { Bench } from "./doctor_bench.ts";
import {
  appended,
  attended,
  type Attention,
  attentionInputs,
} from "./doctor_reference.ts";

const EPS = 1e-6;
const SUM = 1e-5;
/** What an f16 cache, or products in f16, may be off. */
const HALF = 4e-3;

/** Heads of a model with an f16 cache, and odd ones with an f32 cache. */
export async function tryAttention(bench: Bench): Promise<void> {
  const real = { heads: 4, kvHeads: 2, headDim: 128, context: 160 };
  const odd = { heads: 3, kvHeads: 1, headDim: 6, context: 40 };
  const pass = (model: typeof real, length: number, tokens: number) => {
    const rows = { first: 0, tokens, rows: tokens };
    return { ...model, ...rows, lengths: [length], eps: EPS };
  };
  await tryPrompt(bench, pass(real, 145, 9), "bf16");
  await tryPrompt(bench, pass(odd, 0, 5), "f32");
  for (const layout of ["short", "long"] as const) {
    for (const splits of [1, 2, 5]) {
      await tryDecode(bench, pass(real, 145, 1), "bf16", layout, splits);
    }
    for (const splits of [1, 3]) {
      await tryDecode(bench, pass(odd, 33, 1), "f32", layout, splits);
    }
  }
}

/** Random inputs of a pass, on the device, and what it must give. */
function inputs(bench: Bench, sizes: Attention, norm: "bf16" | "f32") {
  const { heads, kvHeads, headDim, lengths: [length], tokens } = sizes;
  const cache = headDim % 8 === 0 ? "f16" as const : "f32" as const;
  const given = attentionInputs(bench.random, sizes, { cache, norm });
  const { q, k, v } = appended(given, sizes);
  const what = `${heads} heads of ${headDim} over ${kvHeads}, ${
    length + tokens
  } keys in ${cache}, norms in ${norm}`;
  return {
    operands: {
      qkv: bench.upload(given.qkv),
      qNorm: bench.upload(given.qNorm),
      kNorm: bench.upload(given.kNorm),
      angles: bench.upload(given.angles),
      k: bench.upload(given.k),
      v: bench.upload(given.v),
      lengths: bench.u32(length),
      flags: bench.u32(0, 0, 0, 0),
    },
    q,
    k,
    v,
    what,
    stored: cache === "f16" ? HALF : SUM,
    constants: { HEAD_DIM: headDim, VEC: headDim % 8 === 0 ? 4 : 1 },
    scale: headDim ** -0.5,
    lanes: headLanes(headDim, bench.gpu),
  };
}

async function tryPrompt(
  bench: Bench,
  sizes: Attention,
  norm: "bf16" | "f32",
) {
  const { heads, kvHeads, headDim, tokens } = sizes, { gpu } = bench;
  const given = inputs(bench, sizes, norm), { operands, what } = given;
  const q = bench.room([tokens, heads * headDim]), group = heads / kvHeads;
  await bench.run(qkNormRope, { ...operands, q }, {
    constants: { ...given.constants, ...given.lanes },
    uniforms: { heads, first: 0, tokens, eps: EPS },
  });
  const sum = { values: given.q };
  bench.compare("qkNormRope", `q, ${what}`, await q.read(), sum, SUM);
  for (const name of ["k", "v"] as const) {
    const stored = await operands[name].read(), values = given[name];
    const of = `${name} cache, ${what}`;
    bench.compare("qkNormRope", of, stored, { values }, given.stored);
  }
  const expected = attended(given, sizes);
  const half = gpu.f16 && headDim === 128;
  for (const kernel of [attendPrefill, ...(half ? [attendPrefillF16] : [])]) {
    const y = bench.room([tokens, heads * headDim]);
    await bench.run(kernel, { ...operands, q, y }, {
      constants: {
        HEAD_DIM: headDim,
        ...exactLanes(gpu, 16),
        ...(kernel === attendPrefillF16
          ? choosePrefillRows(tokens * group, gpu)
          : {}),
      },
      uniforms: { first: 0, tokens, group, scale: given.scale },
    });
    bench.compare(kernel.name, what, await y.read(), expected, given.stored);
  }
}

async function tryDecode(
  bench: Bench,
  sizes: Attention,
  norm: "bf16" | "f32",
  layout: "short" | "long",
  splits: number,
) {
  const { heads, kvHeads, headDim } = sizes, group = heads / kvHeads;
  const given = inputs(bench, sizes, norm), { operands } = given;
  const y = bench.room([1, heads * headDim]);
  const partial = bench.room([splits, heads * headDim]);
  const stats = bench.u32(...new Uint32Array(splits * heads * 2));
  const [short, long] = chooseDecodeAttention({ headDim, group }, bench.gpu);
  const { constants, shares } = layout === "short" ? short : long;
  await bench.run(attendDecode, { ...operands, y, partial, stats }, {
    constants,
    uniforms: { first: 0, eps: EPS, scale: given.scale },
    gridAt: () => [splits, kvHeads * shares, 1],
  });
  if (splits > 1) {
    await bench.run(mergeSplits, {
      ...{ partial, stats, flags: operands.flags, y },
    }, { constants: given.constants, uniforms: { heads } });
  }
  const expected = attended(given, sizes);
  const kernel = splits > 1 ? "mergeSplits" : "attendDecode";
  const what = `${given.what}, laid out for a ${layout} context` +
    (splits > 1 ? `, in ${splits} runs` : "");
  // The cache is read as it is, the new token's own key and value before rounding.
  bench.compare(kernel, what, await y.read(), expected, SUM);
}
