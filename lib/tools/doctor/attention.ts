/**
 * A self-test of the attention kernels, as a prompt and as a decode step run them.
 *
 * @module
 */
import { attendDecode, decodeGrid } from "../../../kernels/attend_decode.ts";
import { attendPrefill } from "../../../kernels/attend_prefill.ts";
import { attendPrefillF16 } from "../../../kernels/attend_prefill_f16.ts";
import { mergeSplits } from "../../../kernels/merge_splits.ts";
import { qkNormRope } from "../../../kernels/qk_norm_rope.ts";
import { exactLanes, laneConstants } from "../../dispatch/capabilities.ts";
import type { Dtype } from "../../dtype.ts";
import { CONTEXT_CLASSES, type ContextClass } from "../../dispatch/shapes.ts";
import {
  chooseDecodeAttention,
  choosePrefillRows,
  headLanes,
} from "../../dispatch/attention.ts";
import type { Bench } from "./bench.ts";
import {
  appended,
  attended,
  type Attention,
  attentionInputs,
} from "../../check/reference.ts";

const EPS = 1e-6;
const SUM = 1e-5;
/** What an f16 cache, or products in f16, may be off. */
const HALF = 4e-3;

/** Element types of a pass. */
interface Types {
  cache: "f16" | "f32";
  norm: Dtype;
}

/** Heads of a model and odd ones, with caches and norms of every type. */
export async function tryAttention(bench: Bench): Promise<void> {
  const real = { heads: 4, kvHeads: 2, headDim: 128, context: 160 };
  const odd = { heads: 3, kvHeads: 1, headDim: 6, context: 40 };
  const pass = (model: typeof real, lengths: number[], tokens: number) => {
    const rows = { first: 0, tokens, rows: lengths.length * tokens };
    return { ...model, ...rows, lengths, eps: EPS };
  };
  const half: Types = { cache: "f16", norm: "bf16" };
  const widened: Types = { cache: "f32", norm: "f16" };
  const single: Types = { cache: "f32", norm: "f32" };
  await tryPrompt(bench, pass(real, [145], 9), half);
  await tryPrompt(bench, pass(real, [17], 5), widened);
  await tryPrompt(bench, pass(odd, [0], 5), single);
  for (const layout of CONTEXT_CLASSES) {
    for (const splits of [1, 2, 5]) {
      await tryDecode(bench, pass(real, [145], 1), half, layout, splits);
    }
    for (const splits of [1, 3]) {
      await tryDecode(bench, pass(odd, [33], 1), single, layout, splits);
    }
  }
  // Of a batch, whose sequences are of different lengths.
  await tryDecode(bench, pass(real, [145, 20, 99], 1), widened, "short", 2);
}

/** Random inputs of a pass, on the device, and what it must give. */
function inputs(bench: Bench, sizes: Attention, { cache, norm }: Types) {
  const { heads, kvHeads, headDim, lengths, tokens } = sizes;
  const given = attentionInputs(bench.random, sizes, { cache, norm });
  const { q, k, v } = appended(given, sizes);
  const keys = lengths.map((length) => length + tokens).join(" and ");
  const what =
    `${heads} heads of ${headDim} over ${kvHeads}, ${keys} keys in ${cache}, norms in ${norm}`;
  return {
    operands: {
      qkv: bench.upload(given.qkv),
      qNorm: bench.upload(given.qNorm),
      kNorm: bench.upload(given.kNorm),
      angles: bench.upload(given.angles),
      k: bench.upload(given.k),
      v: bench.upload(given.v),
      lengths: bench.u32(...lengths),
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
  types: Types,
) {
  const { heads, kvHeads, headDim, tokens } = sizes, { gpu } = bench;
  const given = inputs(bench, sizes, types), { operands, what } = given;
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
  const half = gpu.f16 && types.cache === "f16";
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
  types: Types,
  layout: ContextClass,
  splits: number,
) {
  const { heads, kvHeads, headDim, rows } = sizes, group = heads / kvHeads;
  const given = inputs(bench, sizes, types), { operands } = given;
  const partial = bench.room([rows * splits, heads * headDim]);
  const stats = bench.u32(...new Uint32Array(rows * splits * heads * 2));
  const arrived = bench.u32(...new Uint32Array(rows * heads));
  const choices = chooseDecodeAttention({ headDim, group, rows }, bench.gpu);
  const { constants, shares, merges, ahead } =
    choices[CONTEXT_CLASSES.indexOf(layout)];
  // Where some workgroups read the next weights ahead, they must change nothing.
  const weights = () => bench.upload(bench.random.tensor("bf16", [64, 128]));
  const next = ahead && { next: weights(), after: weights() };
  const fetchers = ahead ? 4 : 0;
  const expected = attended(given, sizes);
  // Runs of keys are merged by the kernel itself where it can, and by the other.
  for (const MERGE of splits > 1 && merges ? [0, 1] : [0]) {
    const y = bench.room([rows, heads * headDim]);
    await bench.run(attendDecode, {
      ...operands,
      ...{ y, partial, stats, arrived },
      ...next,
    }, {
      constants: { ...constants, ...ahead, MERGE },
      uniforms: { first: 0, eps: EPS, scale: given.scale },
      gridAt: () => decodeGrid(splits, kvHeads * shares, rows, fetchers),
    });
    const apart = splits > 1 && !MERGE;
    if (apart) {
      await bench.run(mergeSplits, {
        ...{ partial, stats, flags: operands.flags, y },
      }, {
        constants: { ...given.constants, ...laneConstants(bench.gpu) },
        uniforms: { heads },
      });
    }
    // The cache is read as it is, the new token's own key and value before rounding.
    bench.compare(
      apart ? "mergeSplits" : "attendDecode",
      `${given.what}, laid out for a ${layout} context` +
        (splits > 1 ? `, in ${splits} runs` : ""),
      await y.read(),
      expected,
      SUM,
    );
  }
}
