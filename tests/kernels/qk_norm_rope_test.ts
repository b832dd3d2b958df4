import { assertEquals } from "@std/assert";
import { positionsTensor } from "../../kernels/attention_case.ts";
import { cacheConstant } from "../../lib/dispatch/attention.ts";
import type { CacheDtype } from "../../lib/formats/cached.ts";
import { assertCached } from "../support/cached.ts";
import { qkNormRope } from "../../kernels/qk_norm_rope.ts";
import { toF32 } from "../../lib/formats/tensor.ts";
import type { Gpu } from "../../lib/webgpu/device.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
import { gpuTest, lanes, type Trial } from "../support/gpu.ts";
import {
  appended,
  type Attention,
  type AttentionInputs,
  attentionInputs,
} from "../support/reference.ts";

const SIZES = { first: 0, tokens: 1, rows: 1, eps: 1e-6 };

/** Types of norm weights, one per head size, because each type is another pipeline. */
const NORMS = ["bf16", "f16", "f32"] as const;

function run(
  trial: Trial,
  inputs: AttentionInputs,
  sizes: Attention,
  constants = lanes(trial.gpu, true),
) {
  const { heads, headDim, first, tokens, eps, rows, lengths } = sizes;
  const upload = (name: keyof AttentionInputs) => trial.upload(inputs[name]);
  const [k, v, state] = [upload("k"), upload("v"), trial.u32(0, 0, 0, 0)];
  const q = trial.filled([rows, heads * headDim]);
  trial.run(qkNormRope, {
    qkv: upload("qkv"),
    qNorm: upload("qNorm"),
    kNorm: upload("kNorm"),
    positions: trial.upload(positionsTensor(lengths, inputs.angles)),
    q,
    k,
    v,
    state,
  }, {
    constants: {
      HEAD_DIM: headDim,
      VEC: headDim % 8 === 0 ? 4 : 1,
      ...cacheConstant(inputs.k.dtype === "u32" ? "q8_0" : "f32"),
      ...constants,
    },
    uniforms: { heads, first, tokens, eps },
  });
  return { q, k, v, state };
}

async function check(
  trial: Trial,
  sizes: Attention,
  cache: CacheDtype,
  constants?: ReturnType<typeof lanes>,
): Promise<void> {
  const norm = NORMS[sizes.headDim % 3];
  const inputs = attentionInputs(trial.random, sizes, { cache, norm });
  const { q, k, v, state } = run(trial, inputs, sizes, constants);
  const expected = appended(inputs, sizes);
  const message = JSON.stringify({ ...sizes, cache, norm });
  const f32 = { absolute: 2e-6, relative: 2e-6 };
  assertAllClose(await q.read(), expected.q, f32, `q of ${message}`);
  await assertCached({ k, v }, expected, cache, sizes, message);
  assertEquals((await state.read())[0], 0);
}

gpuTest(
  "qkNormRope norms, rotates and appends heads of any size",
  async (gpu, trial) => {
    const { random } = trial;
    for (const headDim of [2, 6, 16, 20, 64, 80, 100, 128, 256]) {
      const shape = { heads: 4, kvHeads: 2, headDim, context: 11 };
      const pass = { lengths: [3, 0, 7], first: 0, tokens: 4, rows: 12 };
      const all = { ...SIZES, ...shape, ...pass };
      const cache = headDim % 8 ? "f32" : random.pick(["f32", "f16"] as const);
      await check(trial, all, cache);
    }
    const constants = lanes(gpu, false);
    const sizes = { ...SIZES, heads: 6, kvHeads: 2, headDim: 16, context: 9 };
    for (const LOG_LANES of [0, 3, 5]) {
      const given = { ...constants, LOG_LANES };
      await check(trial, { ...sizes, lengths: [8] }, "f16", given);
    }
  },
);

gpuTest(
  "qkNormRope appends to a cache in q8_0, with heads of any size",
  async (gpu, trial) => {
    const { random } = trial;
    const some = (headDim: number) => ({
      ...{ heads: 4, kvHeads: 2, headDim, context: 11, eps: 1e-6 },
      ...{ lengths: [3, 0, 7], first: 0, tokens: 4, rows: 12 },
    });
    for (const headDim of [32, 64, 96, 128, 160, 256]) {
      await check(trial, some(headDim), "q8_0");
    }
    for (const LOG_LANES of [2, 3, 5]) {
      const constants = { ...lanes(gpu, false), LOG_LANES };
      await check(trial, some(random.pick([32, 96, 128])), "q8_0", constants);
    }
  },
);

gpuTest(
  "qkNormRope appends only to the sequences of the pass",
  async (_, trial) => {
    const { random } = trial;
    for (let i = 0; i < 20; i++) {
      const kvHeads = random.int(1, 3),
        heads = kvHeads * random.pick([1, 2, 3, 6, 8]);
      const tokens = random.int(1, 9), sequences = random.int(1, 4);
      const first = random.int(0, sequences - 1);
      const rows = tokens * random.int(1, sequences - first);
      const context = random.int(tokens, 30);
      const lengths = Array.from(
        { length: sequences },
        () =>
          random.pick([0, context - tokens, random.int(0, context - tokens)]),
      );
      const sizes = { heads, kvHeads, context, eps: 1e-6 };
      const pass = { lengths, first, tokens, rows };
      const cache = random.pick(["f32", "f16", "q8_0"] as const);
      const headDim = cache === "q8_0" ? 32 : 16;
      await check(trial, { ...sizes, headDim, ...pass }, cache);
    }
  },
);

gpuTest(
  "qkNormRope appends the same in chunks as in one pass",
  async (_, trial) => {
    const heads = 2, kvHeads = 1, headDim = 16, context = 12, tokens = 10;
    const sizes = { ...SIZES, heads, kvHeads, headDim, context, lengths: [1] };
    const all = { ...sizes, tokens, rows: tokens };
    const inputs = attentionInputs(trial.random, all, { cache: "f16" });
    const once = run(trial, inputs, all);
    const width = (heads + 2 * kvHeads) * headDim;
    let { k, v } = inputs;
    const q: number[] = [];
    for (let begin = 0, chunk = 1; begin < tokens; begin += chunk++) {
      const rows = Math.min(chunk, tokens - begin);
      const data = inputs.qkv.data.slice(begin * width, (begin + rows) * width);
      const qkv = { ...inputs.qkv, shape: [rows, width], data };
      const part = { ...sizes, lengths: [1 + begin], tokens: rows, rows };
      const done = run(trial, { ...inputs, qkv, k, v }, part);
      q.push(...await done.q.read());
      k = { ...k, data: await bits(trial.gpu, done.k) };
      v = { ...v, data: await bits(trial.gpu, done.v) };
    }
    assertAllClose(q, await once.q.read(), {}, "q");
    assertAllClose(toF32(k), await once.k.read(), {}, "k");
    assertAllClose(toF32(v), await once.v.read(), {}, "v");
  },
);

async function bits(gpu: Gpu, tensor: ReturnType<typeof run>["k"]) {
  const elements = tensor.shape.reduce((a, b) => a * b);
  return new Uint16Array(await gpu.readBuffer(tensor.buffer, 0, 2 * elements));
}

gpuTest(
  "qkNormRope raises the flag exactly when f16 cannot hold a value",
  async (_, trial) => {
    const { random } = trial;
    const sizes = { ...SIZES, heads: 2, kvHeads: 2, headDim: 16, context: 5 };
    const all = { ...sizes, lengths: [2], tokens: 3, rows: 3 };
    const flag = async (
      cache: "f16" | "f32",
      change: (inputs: AttentionInputs, width: number) => void,
    ) => {
      const inputs = attentionInputs(random, all, { cache });
      change(inputs, inputs.qkv.shape[1]);
      return (await run(trial, inputs, all).state.read())[0];
    };
    const value = (x: number) => (inputs: AttentionInputs, width: number) => {
      const column = random.int(4 * 16, 6 * 16 - 1); // of v
      inputs.qkv.data[random.int(0, 2) * width + column] = x;
    };
    for (const sign of [1, -1]) {
      assertEquals(await flag("f16", value(sign * 65504)), 0);
      assertEquals(await flag("f16", value(sign * 65504.01)), 1);
      assertEquals(await flag("f16", value(sign * Infinity)), 1);
      assertEquals(await flag("f32", value(sign * 1e30)), 0);
    }
    // q and k may be large before the norm; a normed k of [1, 1, …] equals its weights.
    const row = (head: number, x: number) => (inputs: AttentionInputs) => {
      inputs.qkv.data.fill(x, head * 16, (head + 1) * 16);
    };
    assertEquals(await flag("f16", row(2, 1e6)), 0);
    for (const [weight, expected] of [[60000, 0], [65600, 1]]) {
      const huge = (name: "qNorm" | "kNorm") => (inputs: AttentionInputs) => {
        row(name === "kNorm" ? 2 : 0, 1)(inputs);
        inputs[name].data[3] = weight;
        for (let at = 0; at < inputs.angles.data.length; at += 16) {
          inputs.angles.data.fill(1, at, at + 8).fill(0, at + 8, at + 16);
        }
        inputs.qkv.data.fill(1, 0, 4 * 16);
        for (const r of [1, 2]) {
          inputs.qkv.data.fill(1, r * 96, r * 96 + 64);
        }
      };
      assertEquals(await flag("f16", huge("kNorm")), expected);
      assertEquals(await flag("f16", huge("qNorm")), 0);
    }
  },
);
