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
import { toF32 } from "./cpu_dtype.ts";
import type { Bench } from "./doctor_bench.ts";
import {
  attended,
  type Attention,
  normed,
  rotated,
} from "./doctor_reference.ts";

const EPS = 1e-6;
const SUM = 1e-5;
/** What an f16 cache, or products in f16, may be off. */
const HALF = 4e-3;

/** Heads of a model with an f16 cache, and odd ones with an f32 cache. */
export async function tryAttention(bench: Bench): Promise<void> {
  const real = {
    heads: 4,
    kvHeads: 2,
    headDim: 128,
    context: 160,
    length: 145,
  };
  const odd = { heads: 3, kvHeads: 1, headDim: 6, context: 40, length: 0 };
  await tryPrompt(bench, { ...real, tokens: 9 }, "bf16");
  await tryPrompt(bench, { ...odd, tokens: 5 }, "f32");
  for (const layout of ["short", "long"] as const) {
    for (const splits of [1, 2, 5]) {
      await tryDecode(bench, { ...real, tokens: 1 }, "bf16", layout, splits);
    }
    const shorter = { ...odd, length: 33, tokens: 1 };
    await tryDecode(bench, shorter, "f32", layout, 1);
    await tryDecode(bench, shorter, "f32", layout, 3);
  }
}

/** Random inputs of a pass, on the device, and what it must give. */
function inputs(bench: Bench, sizes: Attention, norm: "bf16" | "f32") {
  const { heads, kvHeads, headDim, context, length, tokens } = sizes;
  const { random, gpu } = bench;
  const cacheType = headDim % 8 === 0 ? "f16" as const : "f32" as const;
  const width = heads + 2 * kvHeads, shape = [1, kvHeads, context, headDim];
  const qkv = random.tensor("f32", [tokens, width * headDim], 2);
  const angles = random.tensor("f32", [context, headDim]);
  const qNorm = random.tensor(norm, [headDim], 0.5, 1);
  const kNorm = random.tensor(norm, [headDim], 0.5, 1);
  const k = random.tensor(cacheType, shape);
  const v = random.tensor(cacheType, shape);
  const operands = {
    qkv: bench.upload(qkv),
    qNorm: bench.upload(qNorm),
    kNorm: bench.upload(kNorm),
    angles: bench.upload(angles),
    lengths: bench.u32(length),
    k: bench.upload(k),
    v: bench.upload(v),
    flags: bench.u32(0, 0, 0, 0),
  };
  const keys = Float64Array.from(toF32(k)),
    values = Float64Array.from(toF32(v));
  const q = new Float64Array(tokens * heads * headDim);
  const from = toF32(qkv), turns = toF32(angles);
  for (let row = 0; row < tokens; row++) {
    const position = length + row;
    const head = (at: number) => {
      const begin = (row * width + at) * headDim;
      return from.subarray(begin, begin + headDim);
    };
    const turned = (at: number, weight: Float32Array) =>
      rotated(
        normed(head(at), weight, EPS),
        turns.subarray(position * headDim, (position + 1) * headDim),
      );
    for (let h = 0; h < heads; h++) {
      q.set(turned(h, toF32(qNorm)), (row * heads + h) * headDim);
    }
    for (let h = 0; h < kvHeads; h++) {
      const at = (h * context + position) * headDim;
      keys.set(turned(heads + h, toF32(kNorm)), at);
      values.set(head(heads + kvHeads + h), at);
    }
  }
  const what = `${heads} heads of ${headDim} over ${kvHeads}, ${
    length + tokens
  } keys in ${cacheType}, norms in ${norm}`;
  return {
    operands,
    q,
    keys,
    values,
    what,
    stored: cacheType === "f16" ? HALF : SUM,
    constants: { HEAD_DIM: headDim, VEC: headDim % 8 === 0 ? 4 : 1 },
    scale: headDim ** -0.5,
    lanes: headLanes(headDim, gpu),
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
  const { values: v, keys: k } = given, sum = { values: given.q };
  bench.compare("qkNormRope", `q, ${what}`, await q.read(), sum, SUM);
  const appended = [["k", k, operands.k], ["v", v, operands.v]] as const;
  for (const [name, values, tensor] of appended) {
    const stored = await tensor.read();
    const of = `${name} cache, ${what}`;
    bench.compare("qkNormRope", of, stored, { values }, given.stored);
  }
  const expected = attended(given.q, k, v, sizes);
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
  const expected = attended(given.q, given.keys, given.values, sizes);
  const kernel = splits > 1 ? "mergeSplits" : "attendDecode";
  const what = `${given.what}, laid out for a ${layout} context` +
    (splits > 1 ? `, in ${splits} runs` : "");
  // The cache is read as it is, the new token's own key and value before rounding.
  bench.compare(kernel, what, await y.read(), expected, SUM);
}
