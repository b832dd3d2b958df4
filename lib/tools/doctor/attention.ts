/**
 * Self-tests of the attention kernels, dispatched as for a prompt and a decode step.
 *
 * @module
 */
import { attendDecode, decodeGrid } from "../../../kernels/attend_decode.ts";
import { attendPrefill } from "../../../kernels/attend_prefill.ts";
import { attendPrefillF16 } from "../../../kernels/attend_prefill_f16.ts";
import { mergeSplits } from "../../../kernels/merge_splits.ts";
import { qkNormRope } from "../../../kernels/qk_norm_rope.ts";
import { exactLanes, laneConstants } from "../../dispatch/capabilities.ts";
import { headVector } from "../../dispatch/precision.ts";
import type { Dtype } from "../../dtype.ts";
import { CONTEXT_CLASSES, type ContextClass } from "../../dispatch/shapes.ts";
import {
  chooseDecodeAttention,
  choosePrefillRows,
  headConstants,
} from "../../dispatch/attention.ts";
import type { SelfTest } from "./self_test.ts";
import {
  appended,
  attended,
  type Attention,
  attentionInputs,
} from "../../check/reference.ts";

const EPS = 1e-6;
/** Tolerance of f32 sums, relative to the norm of what they sum. */
const SUM = 1e-5;
/** Tolerance with an f16 cache, or with f16 arithmetic. */
const HALF = 4e-3;

/** Element types of the cache and the norm weights. */
interface Types {
  cache: "f16" | "f32";
  norm: Dtype;
}

/** Heads of a real model and odd sizes, with caches and norms of every type. */
export async function testAttention(test: SelfTest): Promise<void> {
  const real = { heads: 4, kvHeads: 2, headDim: 128, context: 160 };
  const odd = { heads: 3, kvHeads: 1, headDim: 6, context: 40 };
  const pass = (model: typeof real, lengths: number[], tokens: number) => {
    const rows = { first: 0, tokens, rows: lengths.length * tokens };
    return { ...model, ...rows, lengths, eps: EPS };
  };
  const half: Types = { cache: "f16", norm: "bf16" };
  const widened: Types = { cache: "f32", norm: "f16" };
  const single: Types = { cache: "f32", norm: "f32" };
  await testPrompt(test, pass(real, [145], 9), half);
  await testPrompt(test, pass(real, [17], 5), widened);
  await testPrompt(test, pass(odd, [0], 5), single);
  for (const layout of CONTEXT_CLASSES) {
    for (const splits of [1, 2, 5]) {
      await testDecode(test, pass(real, [145], 1), half, layout, splits);
    }
    for (const splits of [1, 3]) {
      await testDecode(test, pass(odd, [33], 1), single, layout, splits);
    }
  }
  // A batch with sequences of different lengths.
  await testDecode(test, pass(real, [145, 20, 99], 1), widened, "short", 2);
}

/** Random inputs of a pass on the device, and the expected q, k and v. */
function inputs(test: SelfTest, sizes: Attention, { cache, norm }: Types) {
  const { heads, kvHeads, headDim, lengths, tokens } = sizes;
  const given = attentionInputs(test.random, sizes, { cache, norm });
  const { q, k, v } = appended(given, sizes);
  const keys = lengths.map((length) => length + tokens).join(" and ");
  const what =
    `${heads} heads of ${headDim} over ${kvHeads}, ${keys} keys in ${cache}, norms in ${norm}`;
  return {
    operands: {
      qkv: test.upload(given.qkv),
      qNorm: test.upload(given.qNorm),
      kNorm: test.upload(given.kNorm),
      angles: test.upload(given.angles),
      k: test.upload(given.k),
      v: test.upload(given.v),
      lengths: test.u32(...lengths),
      flags: test.u32(0, 0, 0, 0),
    },
    q,
    k,
    v,
    what,
    stored: cache === "f16" ? HALF : SUM,
    constants: { HEAD_DIM: headDim, VEC: headVector(headDim) },
    scale: headDim ** -0.5,
  };
}

async function testPrompt(
  test: SelfTest,
  sizes: Attention,
  types: Types,
) {
  const { heads, kvHeads, headDim, tokens } = sizes, { gpu } = test;
  const given = inputs(test, sizes, types), { operands, what } = given;
  const q = test.output([tokens, heads * headDim]), group = heads / kvHeads;
  await test.run(qkNormRope, { ...operands, q }, {
    constants: headConstants(headDim, gpu),
    uniforms: { heads, first: 0, tokens, eps: EPS },
  });
  const sum = { values: given.q };
  test.compare("qkNormRope", `q, ${what}`, await q.read(), sum, SUM);
  for (const name of ["k", "v"] as const) {
    const stored = await operands[name].read(), values = given[name];
    const of = `${name} cache, ${what}`;
    test.compare("qkNormRope", of, stored, { values }, given.stored);
  }
  const expected = attended(given, sizes);
  const half = gpu.f16 && types.cache === "f16";
  for (const kernel of [attendPrefill, ...(half ? [attendPrefillF16] : [])]) {
    const y = test.output([tokens, heads * headDim]);
    await test.run(kernel, { ...operands, q, y }, {
      constants: {
        HEAD_DIM: headDim,
        ...exactLanes(gpu, 16),
        ...(kernel === attendPrefillF16
          ? choosePrefillRows(tokens * group, gpu)
          : {}),
      },
      uniforms: { first: 0, tokens, group, scale: given.scale },
    });
    test.compare(kernel.name, what, await y.read(), expected, given.stored);
  }
}

async function testDecode(
  test: SelfTest,
  sizes: Attention,
  types: Types,
  layout: ContextClass,
  splits: number,
) {
  const { heads, kvHeads, headDim, rows } = sizes, group = heads / kvHeads;
  const given = inputs(test, sizes, types), { operands } = given;
  const partial = test.output([rows * splits, heads * headDim]);
  const stats = test.u32(...new Uint32Array(rows * splits * heads * 2));
  const arrived = test.u32(...new Uint32Array(rows * heads));
  const choices = chooseDecodeAttention({ headDim, group, rows }, test.gpu);
  const { constants, shares, merges, ahead } =
    choices[CONTEXT_CLASSES.indexOf(layout)];
  // Workgroups that prefetch the next weights must not affect the result.
  const weights = () => test.upload(test.random.tensor("bf16", [64, 128]));
  const next = ahead && { next: weights(), after: weights() };
  const fetchers = ahead ? 4 : 0;
  const expected = attended(given, sizes);
  // Splits are merged by attendDecode itself where it can, and by mergeSplits.
  for (const MERGE of splits > 1 && merges ? [0, 1] : [0]) {
    const y = test.output([rows, heads * headDim]);
    await test.run(attendDecode, {
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
      await test.run(mergeSplits, {
        ...{ partial, stats, flags: operands.flags, y },
      }, {
        constants: { ...given.constants, ...laneConstants(test.gpu) },
        uniforms: { heads },
      });
    }
    // SUM even for f16: the cache is read as stored, the new key and value unrounded.
    test.compare(
      apart ? "mergeSplits" : "attendDecode",
      `${given.what}, laid out for a ${layout} context` +
        (splits > 1 ? `, in ${splits} splits` : ""),
      await y.read(),
      expected,
      SUM,
    );
  }
}
