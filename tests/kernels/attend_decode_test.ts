import { assert, assertEquals, assertThrows } from "@std/assert";
import { attendDecode, decodeGrid } from "../../kernels/attend_decode.ts";
import { cacheConstant } from "../../lib/dispatch/attention.ts";
import type { CacheDtype } from "../../lib/formats/cached.ts";
import { assertCached } from "../support/cached.ts";
import {
  counting,
  positionsTensor,
  stateTensor,
} from "../../kernels/attention_case.ts";
import { QUERY_SUM, SUM, u32Tensor } from "../../kernels/case.ts";
import {
  HALF_A_STEP,
  roundedSizes,
  roundedValues,
  stepsOff,
} from "../../kernels/rounded_row.ts";
import { mergeSplits } from "../../kernels/merge_splits.ts";
import type { Gpu } from "../../lib/webgpu/device.ts";
import type { Operands } from "../../lib/webgpu/kernel.ts";
import { Plan } from "../../lib/webgpu/plan.ts";
import type { Constants } from "../../lib/dispatch/shapes.ts";
import { gpuTest, lanes, type Trial } from "../support/gpu.ts";
import {
  appended,
  assertSums,
  attended,
  type Attention,
  type AttentionInputs,
  attentionInputs,
} from "../support/reference.ts";

const ONE = { first: 0, tokens: 1, rows: 1, eps: 1e-6 };

/** Types of norm weights, one per head size, because each type is another pipeline. */
const NORMS = ["bf16", "f16", "f32"] as const;

/** Constants that keep the unrolled WGSL short, which software adapters compile slowly. */
function small(gpu: Gpu, WORKGROUP = 64): Constants {
  const { SUBGROUPS, LOG_LANES } = lanes(gpu, true);
  return {
    SUBGROUPS,
    LOG_LANES,
    WORKGROUP,
    STEPS: 1,
    LOG_KEY_LANES: SUBGROUPS ? Math.min(LOG_LANES, 3) : 3,
  };
}

const toleranceOf = (cache: CacheDtype) => cache === "q8_0" ? QUERY_SUM : SUM;

/** One step with `splits` splits of the keys, which are merged if there are several. */
function run(
  trial: Trial,
  inputs: AttentionInputs,
  sizes: Attention,
  splits: number,
  constants: Constants = {},
) {
  const { heads, kvHeads, headDim, first, rows, eps } = sizes;
  const SHARES = Number(constants.SHARES ?? 1),
    GROUP = heads / kvHeads / SHARES;
  const VEC = headDim % 8 === 0 ? 4 : 1;
  const cache = inputs.k.dtype === "u32" ? "q8_0" : "f32"; // or f16, which is read likewise
  const upload = (name: keyof AttentionInputs) => trial.upload(inputs[name]);
  const [k, v] = [upload("k"), upload("v")];
  const state = trial.upload(stateTensor(sizes.lengths.length, heads));
  const y = trial.filled([rows * (1 + splits), heads * headDim]);
  const fetchers = Number(constants.FETCHERS ?? 0);
  const ahead: Operands = fetchers
    ? { next: trial.filled([70, 24]), after: trial.filled([7, 3]) }
    : {};
  const { words } = roundedSizes(heads * headDim);
  const left = trial.upload(u32Tensor([1, words]));
  trial.run(attendDecode, {
    qkv: upload("qkv"),
    qNorm: upload("qNorm"),
    kNorm: upload("kNorm"),
    positions: trial.upload(positionsTensor(sizes.lengths, inputs.angles)),
    k,
    v,
    y,
    state,
    ...(constants.LEAVES ? { left } : {}),
    ...ahead,
  }, {
    constants: {
      HEAD_DIM: headDim,
      GROUP,
      VEC,
      ...small(trial.gpu),
      ...cacheConstant(cache),
      ...constants,
    },
    uniforms: { firstSequence: first, eps, scale: headDim ** -0.5 },
    gridAt: () => decodeGrid(splits, kvHeads * SHARES, rows, fetchers),
  });
  if (splits > 1 && !constants.MERGE) {
    trial.run(mergeSplits, { state, y }, {
      constants: { HEAD_DIM: headDim, VEC },
      uniforms: { heads: rows * heads },
    });
  }
  return { k, v, y: y.rows(rows), state, left };
}

async function check(
  trial: Trial,
  sizes: Attention,
  cache: CacheDtype,
  splits: number,
  constants?: Constants,
): Promise<void> {
  const norm = NORMS[sizes.headDim % 3];
  const inputs = attentionInputs(trial.random, sizes, { cache, norm });
  const { k, v, y, state } = run(
    trial,
    inputs,
    sizes,
    splits,
    constants,
  );
  const expected = appended(inputs, sizes);
  const message = JSON.stringify({ ...sizes, cache, norm, splits, constants });
  await assertCached({ k, v }, expected, cache, sizes, message);
  // The new token's own key and value are used before rounding.
  const sums = attended(expected, sizes), what = `y of ${message}`;
  assertSums(await y.read(), sums, what, toleranceOf(cache));
  const after = await state.read();
  assertEquals(after[0], 0);
  assert(!counting(after, sizes.lengths.length, sizes.heads), message);
}

gpuTest(
  "attendDecode attends with heads of any size and ratio",
  async (_, trial) => {
    const { random } = trial;
    const sizes = [
      ...[[2, 1], [6, 6], [16, 2], [20, 8], [24, 2], [64, 1], [80, 3]],
      ...[[100, 1], [128, 2], [256, 1]],
    ];
    for (const [headDim, ratio] of trial.some(sizes, 3)) {
      const cache = headDim % 8 ? "f32" : random.pick(["f32", "f16"] as const);
      const kvHeads = random.int(1, 2), heads = ratio * kvHeads;
      const shape = { ...ONE, heads, kvHeads, headDim, context: 140 };
      const merges = trial.some([0, 1], 1);
      for (const splits of [1, 2, 7]) {
        const lengths = [random.int(0, 139), random.int(0, 139)];
        const pass = { lengths, rows: 2 };
        const constants = {
          ...small(trial.gpu),
          MERGE: random.pick(merges),
        };
        await check(trial, { ...shape, ...pass }, cache, splits, constants);
      }
    }
  },
);

gpuTest(
  "attendDecode attends to a cache in q8_0, with heads of any size and ratio",
  async (_, trial) => {
    const { random } = trial;
    const sizes = [[32, 8], [64, 3], [96, 1], [128, 2], [160, 2]];
    for (const [headDim, ratio] of trial.some(sizes, 1)) {
      const kvHeads = random.int(1, 3), heads = ratio * kvHeads;
      const shape = { ...ONE, heads, kvHeads, headDim, context: 140 };
      const merges = trial.some([0, 1], 1);
      for (const splits of [1, 7]) {
        const lengths = [random.int(0, 139), random.int(0, 139), 1];
        const pass = { lengths, first: 0, rows: 2 };
        const MERGE = random.pick(merges),
          constants = { ...small(trial.gpu), MERGE };
        await check(trial, { ...shape, ...pass }, "q8_0", splits, constants);
      }
    }
    // Units in few lanes, and lanes that exchange sums through workgroup memory.
    const choices: Constants[] = [
      { SUBGROUPS: 0, WORKGROUP: 64, LOG_KEY_LANES: 3, STEPS: 2 },
      { SUBGROUPS: 0, WORKGROUP: 32, LOG_KEY_LANES: 1, STEPS: 1, SHARES: 2 },
      { WORKGROUP: 64, LOG_KEY_LANES: 1, LOG_LANES: 2, STEPS: 3, MERGE: 1 },
      { WORKGROUP: 128, LOG_KEY_LANES: 2, LOG_LANES: 3, STEPS: 2, SHARES: 2 },
    ];
    const borders = [0, 1, 31, 32, 33, 127, 128, 129, 300];
    const subgroups = trial.gpu.subgroupSize >= 8;
    const cases = choices
      .filter(({ SUBGROUPS }) => subgroups || SUBGROUPS === 0)
      .flatMap((constants) =>
        [32, 96].map((headDim) => ({ constants, headDim }))
      );
    for (const { constants, headDim } of trial.some(cases, 2)) {
      const shape = { ...ONE, heads: 4, kvHeads: 2, headDim, context: 301 };
      const pass = { lengths: borders, first: 0, rows: borders.length };
      await check(trial, { ...shape, ...pass }, "q8_0", 3, constants);
    }
  },
);

gpuTest(
  "attendDecode finds the lengths of more sequences than a head has elements",
  async (_, trial) => {
    const { random } = trial, rows = 35;
    for (const headDim of [6, 16]) {
      const shape = { ...ONE, heads: 2, kvHeads: 1, headDim, context: 20 };
      const lengths = Array.from({ length: rows }, () => random.int(0, 19));
      for (const MERGE of [0, 1]) {
        const pass = { ...shape, rows, lengths };
        const constants = { ...small(trial.gpu), MERGE };
        await check(trial, pass, "f32", 3, constants);
        // A pass over the last sequences only.
        const last = { ...pass, first: 30, rows: 5 };
        await check(trial, last, "f32", 3, constants);
      }
    }
  },
);

gpuTest(
  "attendDecode attends at every boundary of tiles and splits",
  async (_, trial) => {
    const { random } = trial;
    const shape = { ...ONE, heads: 4, kvHeads: 2, headDim: 16, context: 1001 };
    const borders = [0, 1, 31, 32, 33, 63, 127, 128, 129, 255, 300, 1000];
    for (const splits of [1, 2, 7, 64]) {
      const lengths = [random.int(0, 999), ...borders, random.int(0, 999)];
      const pass = { lengths, first: 1, rows: borders.length };
      for (const MERGE of [0, 1]) {
        const constants = { ...small(trial.gpu), MERGE };
        await check(trial, { ...shape, ...pass }, "f16", splits, constants);
      }
    }
  },
);

gpuTest(
  "attendDecode gives the same for every choice of threads and lanes",
  async (_, trial) => {
    const { random } = trial;
    const shape = { ...ONE, heads: 4, kvHeads: 2, headDim: 6, context: 301 };
    const none = { SUBGROUPS: 0, MERGE: 1, WORKGROUP: 64 };
    const choices: Constants[] = [
      { ...none, LOG_KEY_LANES: 3, STEPS: 2 },
      { ...none, LOG_KEY_LANES: 1, WORKGROUP: 32, STEPS: 1, SHARES: 2 },
      { WORKGROUP: 64, STEPS: 3, LOG_KEY_LANES: 1, LOG_LANES: 2 },
      {
        WORKGROUP: 32,
        STEPS: 1,
        LOG_KEY_LANES: 0,
        LOG_LANES: 3,
        MERGE: 1,
      },
      { WORKGROUP: 128, STEPS: 2, LOG_KEY_LANES: 2, LOG_LANES: 3, SHARES: 2 },
      { ...none, LOG_KEY_LANES: 2, STEPS: 4, FETCHERS: 5, AHEAD: 425 },
    ];
    const subgroups = trial.gpu.subgroupSize >= 8;
    const possible = choices
      .filter(({ SUBGROUPS }) => subgroups || SUBGROUPS === 0);
    for (const constants of trial.some(possible, 2)) {
      const lengths = [0, 300, random.int(1, 299)];
      const pass = { lengths, rows: 3 };
      for (const splits of [1, 3]) {
        await check(trial, { ...shape, ...pass }, "f32", splits, constants);
      }
    }
  },
);

gpuTest(
  "attendDecode multiplies any q by keys in q8_0",
  async (_, trial) => {
    const { random } = trial, cache = "q8_0";
    const shape = { ...ONE, heads: 4, kvHeads: 2, headDim: 64, context: 140 };
    for (const value of [0, 1e15, 1e-30, 1e4, NaN, Infinity]) {
      const sizes = { ...shape, lengths: [random.int(1, 139)] };
      const inputs = attentionInputs(random, sizes, { cache });
      const { data } = inputs.qkv, head = random.int(0, 3), from = 64 * head;
      if (value === 0) data.fill(0, from, from + 64);
      else data[from + random.int(0, 63)] = value;
      const splits = random.pick([1, 7]), MERGE = random.int(0, 1);
      const constants = { ...small(trial.gpu), MERGE };
      const { y } = run(trial, inputs, sizes, splits, constants);
      const sums = attended(appended(inputs, sizes), sizes);
      const what = JSON.stringify({ ...sizes, value, head, splits, constants });
      const row = await y.read();
      if (Number.isFinite(value)) {
        assertSums(row, sums, what, toleranceOf(cache));
      } else {
        const own = row.subarray(from, from + 64);
        assert(own.every(isNaN), `${what}: ${own}`);
        assertEquals(row.filter(isNaN).length, 64, what);
      }
    }
  },
);

gpuTest(
  "attendDecode keeps what is beside an outlier of q with keys in q8_0",
  async (_, trial) => {
    const { random } = trial, cache = "q8_0";
    const shape = { ...ONE, heads: 2, kvHeads: 1, headDim: 128, context: 140 };
    for (const [weight, tolerance] of [[10, 1e-4], [1000, 1e-2]]) {
      const sizes = { ...shape, lengths: [random.int(20, 139)] };
      const inputs = attentionInputs(random, sizes, { cache, norm: "f32" });
      // Keys are nearly zero there, so that all else still counts.
      const column = random.int(0, 127), half = (column + 64) % 128;
      inputs.qNorm.data[column] = weight;
      for (const at of [column, half]) inputs.kNorm.data[at] = 1e-3 / weight;
      const splits = random.pick([1, 7]);
      const { y } = run(trial, inputs, sizes, splits, small(trial.gpu));
      const sums = attended(appended(inputs, sizes), sizes);
      const what = JSON.stringify({ ...sizes, weight, column, splits });
      assertSums(await y.read(), sums, what, tolerance);
    }
  },
);

gpuTest(
  "attendDecode raises the flag exactly when f16 cannot hold a value",
  async (_, trial) => {
    const { random } = trial;
    const shape = { ...ONE, heads: 2, kvHeads: 1, headDim: 16, context: 201 };
    const lengths = [random.int(0, 200)];
    const flag = async (
      cache: CacheDtype,
      column: number,
      value: number,
    ) => {
      const headDim = cache === "q8_0" ? 32 : 16; // the smallest
      const sizes = { ...shape, headDim, lengths };
      const inputs = attentionInputs(random, sizes, { cache });
      inputs.qkv.data[column * headDim / 16] = value;
      const splits = random.pick([1, 2, 7]);
      const { state } = run(trial, inputs, sizes, splits);
      return (await state.read())[0];
    };
    const v = 3 * 16; // columns: q of two heads, k, v
    for (const sign of [1, -1]) {
      const column = v + random.int(0, 15);
      assertEquals(await flag("f16", column, sign * 65504), 0);
      assertEquals(await flag("f16", column, sign * 65504.01), 1);
      assertEquals(await flag("f16", column, sign * Infinity), 1);
      assertEquals(await flag("f16", v - 1, sign * 1e6), 0); // k is normed
      assertEquals(await flag("f16", 0, sign * 1e6), 0);
      assertEquals(await flag("f32", column, sign * 1e30), 0);
      assertEquals(await flag("q8_0", v + 1, sign * 65504), 0);
      assertEquals(await flag("q8_0", v + 1, sign * 65504.01), 1);
    }
  },
);

gpuTest(
  "attendDecode rounds its row, beside outliers too, and NaN stays",
  async (gpu, trial) => {
    if (gpu.subgroupSize < 8) return; // no kernel reads a rounded row there
    const { random } = trial;
    const sizes = [[16, 1], [48, 3], [64, 8], [128, 2], [128, 4]];
    for (const [headDim, ratio] of trial.some(sizes, 2)) {
      const kvHeads = random.int(1, 2), heads = ratio * kvHeads;
      const shape = { ...ONE, heads, kvHeads, headDim, context: 140 };
      const cache = headDim % 32
        ? "f32"
        : random.pick(["f32", "q8_0"] as const);
      for (const splits of [1, 7]) {
        const given = { ...shape, lengths: [random.int(1, 139)] };
        const inputs = attentionInputs(random, given, { cache });
        const v = (heads + kvHeads) * headDim, kind = random.int(0, 2);
        // The outlier of a block, or two, or a value that is none.
        const columns = [
          random.int(0, headDim - 1),
          random.int(0, headDim - 1),
        ];
        for (const c of columns) {
          if (kind) inputs.qkv.data[v + c] = kind === 1 ? 3e5 : NaN;
        }
        const constants = {
          ...small(gpu, random.pick([32, 64, 128])),
          SHARES: random.pick([1, ratio]),
          MERGE: 1,
          LEAVES: 1,
        };
        const { y, left } = run(trial, inputs, given, splits, constants);
        const message = JSON.stringify({ ...given, splits, kind, constants });
        const words = new Uint32Array(
          await left.gpu.readBuffer(left.buffer, 0, left.bytes),
        );
        const row = await y.read();
        const sums = attended(appended(inputs, given), given);
        assertSums(row, sums, message, toleranceOf(cache));
        const off = stepsOff(words, row);
        assert(off.every((steps) => Math.abs(steps) < HALF_A_STEP), message);
        const { sumsOff } = roundedValues(words, row.length);
        assert(sumsOff.every((off) => off === 0), message);
        assertEquals(row.some(isNaN), kind === 2, message);
      }
    }
    const given = { ...ONE, heads: 2, kvHeads: 1, headDim: 24, context: 9 };
    const sized = { ...given, lengths: [3] };
    const inputs = attentionInputs(random, sized, { cache: "f32" });
    for (
      const [more, what] of [
        [{ MERGE: 1 }, "heads of 24"],
        [{ MERGE: 0 }, "no other kernel that merges splits"],
      ] as const
    ) {
      const constants = { ...small(gpu), LEAVES: 1, ...more };
      assertThrows(() => run(trial, inputs, sized, 1, constants), Error, what);
    }
  },
);

gpuTest("attendDecode handles large scores", async (_, trial) => {
  const shape = { ...ONE, heads: 4, kvHeads: 2, headDim: 16, context: 301 };
  const sizes = { ...shape, lengths: [300] };
  const inputs = attentionInputs(trial.random, sizes, { cache: "f32" });
  inputs.qNorm.data.fill(200);
  for (const splits of [1, 3]) {
    const { k, v, y } = run(trial, inputs, sizes, splits);
    const { q } = appended(inputs, sizes);
    const stored = { q, k: await k.read(), v: await v.read() };
    // Errors grow with scores, which are in the hundreds here.
    assertSums(await y.read(), attended(stored, sizes), `${splits}`, 3e-4);
  }
});

gpuTest(
  "attendDecode merges its splits itself, every time",
  async (gpu, trial) => {
    const { random } = trial, splits = 64, rows = 4, times = 100;
    const shape = { ...ONE, heads: 4, kvHeads: 2, headDim: 16, context: 1001 };
    const lengths = Array.from({ length: rows }, () => random.int(900, 1000));
    const sizes = { ...shape, rows, lengths };
    const inputs = attentionInputs(random, sizes, { cache: "f16" });
    // Two tokens take turns on the same scratch memory, so stale values would show.
    const tokens = [inputs, {
      ...inputs,
      qkv: attentionInputs(random, sizes, { cache: "f16" }).qkv,
    }];
    const [k, v] = [trial.upload(inputs.k), trial.upload(inputs.v)];
    const qkv = tokens.map(({ qkv }) => trial.upload(qkv));
    const norms = {
      qNorm: trial.upload(inputs.qNorm),
      kNorm: trial.upload(inputs.kNorm),
    };
    const state = trial.upload(stateTensor(rows, 4));
    const positions = trial.upload(positionsTensor(lengths, inputs.angles));
    const rest = { ...norms, positions, k, v, state };
    const y = trial.filled([rows * (1 + splits), 4 * 16]);
    const all = trial.filled([times * rows, 4 * 16]);
    using memory = new DisposableStack();
    const plans = qkv.map((qkv) => {
      const plan = memory.use(new Plan(gpu));
      plan.add(attendDecode, { ...rest, qkv, y }, {
        constants: {
          HEAD_DIM: 16,
          ...small(gpu),
          SHARES: 2,
          GROUP: 1,
          MERGE: 1,
        },
        uniforms: { firstSequence: 0, eps: sizes.eps, scale: 0.25 },
        gridAt: () => decodeGrid(splits, 4, rows, 0),
      });
      return plan.seal();
    });
    const encoder = gpu.device.createCommandEncoder();
    const { bytes } = y.rows(rows), size = bytes / 4;
    for (let i = 0; i < times; i++) {
      const pass = encoder.beginComputePass();
      plans[i % 2].encode(pass);
      pass.end();
      encoder.copyBufferToBuffer(y.buffer, 0, all.buffer, i * bytes, bytes);
    }
    gpu.device.queue.submit([encoder.finish()]);
    const expected = tokens.map((given) =>
      attended(appended(given, sizes), sizes)
    );
    const found = await all.read();
    for (let i = 0; i < times; i++) {
      const y = found.subarray(i * size, (i + 1) * size);
      assertSums(y, expected[i % 2], `time ${i}`);
    }
    assert(!counting(await state.read(), rows, 4));
  },
);
