import { Tensor } from "../../lib/webgpu/tensor.ts";
import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertThrows,
} from "@std/assert";
import { Gpu } from "../../lib/webgpu/device.ts";
import { Plan } from "../../lib/webgpu/plan.ts";
import { chooseSampling, FAULT } from "../../lib/dispatch/sampling.ts";
import {
  addSampling,
  readLogprobs,
  sampledRow,
  SamplerState,
} from "../../lib/gpu/sample.ts";
import {
  adjusted,
  gumbel,
  gumbelHash,
  type History,
  historyOf,
  logprobsOf,
  logSoftmax,
  sample,
  type Sampling,
  type SamplingOptions,
} from "../../lib/model/sampling.ts";
import { gpuTest, someOf } from "../support/gpu.ts";
import { type Random, randomTest, uniform } from "../support/random.ts";
import { only } from "../support/sampling_inputs.ts";

/** The dispatches for sequences that are sampled like this. */
const choose = (rows: readonly Sampling[], vocab: number, masked = false) =>
  chooseSampling(rows.map((row) => sampledRow(row, masked)), vocab);

/** Samples on the CPU. */
const expectedOf = (
  logits: Float32Array,
  sampling: Sampling,
  history: History,
  step: number,
  allowed?: Uint32Array,
) => {
  const scores = adjusted(logits, sampling, history, allowed);
  return sample(scores, sampling, step, allowed !== undefined);
};

/** Makes logits of one sequence. */
type Shape = (
  random: () => number,
  vocab: number,
) => Float32Array<ArrayBuffer>;

const normal = (spread: number): Shape => (random, vocab) =>
  Float32Array.from(
    { length: vocab },
    () =>
      spread * Math.sqrt(-2 * Math.log(1 - random())) *
      Math.cos(2 * Math.PI * random()),
  );

/** Kinds of logits. */
const SHAPES: Record<string, Shape> = {
  ordinary: normal(3),
  flat: normal(0.01),
  peaked: (random, vocab) => {
    const logits = normal(2)(random, vocab);
    for (let i = 0; i < 5; i++) logits[Math.floor(random() * vocab)] += 18;
    return logits;
  },
  tied: (random, vocab) => normal(3)(random, vocab).map(Math.round), // −0 too
  zeros: (random, vocab) =>
    new Float32Array(vocab).map(() => random() < 0.5 ? 0 : -0),
  equal: (_, vocab) => new Float32Array(vocab).fill(-1.5),
  masked: (random, vocab) => {
    const logits = normal(3)(random, vocab);
    const spared = Math.floor(random() * vocab);
    return logits.map((l, id) =>
      id !== spared && random() < 0.6 ? -Infinity : l
    );
  },
};

const OPTIONS: SamplingOptions[] = [
  { temperature: 0 },
  { temperature: 0, repetitionPenalty: 1.3 },
  { temperature: 0, presencePenalty: 2, logitBias: { 0: 1.5, 30: -100 } },
  {},
  { temperature: 0.6, topK: 20, topP: 0.95 },
  { temperature: 0.7, topK: 20, topP: 0.8, repetitionPenalty: 1.1 },
  { topK: 1 },
  { topK: 20, frequencyPenalty: 1.5, presencePenalty: -0.5 },
  { topP: 0.95, frequencyPenalty: -0.3, repetitionPenalty: 1.2 },
  { minP: 0.02, presencePenalty: 1, logitBias: { 5: 100 } },
  { temperature: 5, topK: 50 },
  { temperature: 2, topK: 300 },
  { temperature: 1.5, topK: 100, topP: 0.9, minP: 0.001 },
  { topK: 1_000_000 },
  { topP: 0.9 },
  { temperature: 1.3, topP: 0.5, repetitionPenalty: 0.8 },
  { topP: 0.01 },
  { minP: 0.05, temperature: 1.7 },
  { topP: 0.99, minP: 0.02 },
  { topK: 64, minP: 0.1 },
  { temperature: 0.01, topK: 40, topP: 0.9 },
  { temperature: 0.05, topP: 0.97 },
  { temperature: 30, topP: 0.7, seed: 0xffffffff },
  { topP: 1e-50 },
  { temperature: 1e9, topP: 0.5 },
  { temperature: 1e-300, topK: 5 },
  { temperature: 2, topK: 2 }, // the fewest for which there is a search
];

/**
 * The smallest error of scores, or of a share of the mass, that would make `token` the
 * choice, in float64; 0 if it is the choice.
 */
function errorThatGives(
  token: number,
  logits: Float32Array,
  sampling: Sampling,
  history: History,
  step: number,
  allowed?: Uint32Array,
): number {
  const { temperature, topK, topP, minP, repetitionPenalty, seed } = sampling;
  const { presencePenalty, frequencyPenalty, logitBias } = sampling;
  const scores = Array.from(logits, (logit, id) => {
    const bit = allowed === undefined ? 1 : allowed[id >>> 5] >>> (id & 31) & 1;
    if (bit === 0) return -Infinity;
    const l = logit + (logitBias[id] ?? 0), times = history[id] % 2 ** 31;
    if (history[id] === 0) return l;
    return (l < 0 ? l * repetitionPenalty : l / repetitionPenalty) -
      times * frequencyPenalty - (times > 0 ? presencePenalty : 0);
  });
  const top = scores.reduce((a, b) => Math.max(a, b));
  if (temperature === 0) return top - scores[token];
  const scaled = scores.map((l) => (l - top) / temperature);
  const order = scaled.map((_, id) => id)
    .sort((a, b) => scaled[b] - scaled[a] || a - b);
  const cut = topK > 0 && topK < order.length;
  const last = cut ? scaled[order[topK - 1]] : -Infinity;
  // A token that top-k keeps is as safe as it is above the best that is dropped.
  const next = order.map((id) => scaled[id]).find((one) => one < last) ??
    -Infinity;
  const mass = order.reduce(
    (sum, id) => sum + (scaled[id] < last ? 0 : Math.exp(scaled[id])),
    0,
  );
  const excess = new Map<number, number>(); // above 0 where a token is filtered out
  let ahead = 0;
  for (const id of order) {
    excess.set(
      id,
      Math.max(
        cut ? (scaled[id] < last ? last : next) - scaled[id] : -Infinity,
        topP < 1 && ahead > 0 ? ahead / mass - topP : -Infinity,
        minP > 0 ? Math.log(minP) - scaled[id] : -Infinity,
      ),
    );
    ahead += Math.exp(scaled[id]);
  }
  const score = (id: number) => scaled[id] + gumbel(gumbelHash(seed, step, id));
  let error = Math.max(0, excess.get(token)!);
  for (const [id, by] of excess) {
    // A kept token with a higher score wins, unless its filter or score is off.
    const lead = score(id) - score(token);
    if (by <= 0 && id !== token) error = Math.max(error, Math.min(lead, -by));
  }
  return error;
}

/**
 * Samples `steps` steps on the GPU, one sequence for each kind of logits, with `options` in
 * turn, and compares the tokens with the CPU's. A difference is `excused` where an error of
 * 1e-5 in a score or in a share of the mass explains it.
 */
async function compare(
  { gpu, random: source }: { gpu: Gpu; random: Random },
  vocab: number,
  options: SamplingOptions | readonly SamplingOptions[],
  steps: number,
  { shapes = Object.keys(SHAPES), masked = false } = {},
): Promise<{ checked: number; excused: number }> {
  const sequences = shapes.length, all = [options].flat();
  const samplings = shapes.map((_, s): Sampling => {
    const sampling = only(all[s % all.length]);
    return { ...sampling, seed: (sampling.seed + s) >>> 0 };
  });
  const random = uniform(source);
  const rows = Array.from(
    { length: steps },
    () => shapes.map((shape) => SHAPES[shape](random, vocab)),
  );
  const size = { sequences: sequences + 1, vocab, steps };
  using state = new SamplerState(gpu, size);
  using logits = Tensor.create(gpu, "f32", [sequences, vocab]);
  const histories = shapes.map((_, s) =>
    historyOf(vocab, [s % vocab, Math.floor(random() * vocab), vocab - 1])
  );
  samplings.forEach((sampling, s) =>
    state.set(s, sampling, () => histories[s], { masked })
  );
  state.lengths.write(0, new Uint32Array(sequences).fill(7));
  using plan = new Plan(gpu);
  const choice = choose(samplings, vocab, masked);
  addSampling(plan, logits, choice, state, { advance: 2 });
  const masks: (Uint32Array<ArrayBuffer> | undefined)[][] = [];
  for (const row of rows) {
    row.forEach((l, s) => logits.write(s * vocab * 4, l));
    masks.push(row.map((l, s) => {
      if (!masked) return undefined;
      const bits = maskOf(random, l);
      state.allow(s, bits);
      return bits;
    }));
    plan.run();
  }
  const ring = await state.ring.read();
  let excused = 0;
  for (let n = 0; n < steps; n++) {
    for (let s = 0; s < sequences; s++) {
      const own = samplings[s], allowed = masks[n][s];
      const chosen = ring[n * (sequences + 1) + s];
      const given = [rows[n][s], own, histories[s], n, allowed] as const;
      const expected = expectedOf(...given);
      if (chosen !== expected) {
        const error = errorThatGives(chosen, ...given);
        assert(
          error < 1e-5,
          `${JSON.stringify(own)}, vocab ${vocab}, ${
            shapes[s]
          }, step ${n}: the GPU chose ${chosen}, the CPU ${expected}, which takes an error of ${error}`,
        );
        excused++;
      }
      histories[s][chosen]++;
    }
  }
  const last = ring.slice((steps - 1) * (sequences + 1));
  last[sequences] = 0; // that of the sequence that took no part
  assertEquals(await state.tokens.read(), last);
  const each = (value: number) =>
    Float32Array.from(last, (_, s) => s < sequences ? value : 0);
  assertEquals(await state.lengths.read(), each(7 + 2 * steps));
  assertEquals(await state.step.read(), each(steps));
  if (choice.adjusts) {
    const { buffer } = state.adjustments.history;
    const bytes = await gpu.readBuffer(buffer, 0, 4 * sequences * vocab);
    const words = new Uint32Array(bytes);
    for (const [s, history] of histories.entries()) {
      const own = words.slice(s * vocab, (s + 1) * vocab);
      // Only those are set that depend on it.
      if (sampledRow(samplings[s]).adjusts) assertEquals(own, history);
    }
  }
  return { checked: steps * sequences, excused };
}

/** A mask that leaves about a third of the tokens, one of them with a finite logit. */
function maskOf(
  random: () => number,
  logits: Float32Array,
): Uint32Array<ArrayBuffer> {
  const bits = new Uint32Array(Math.ceil(logits.length / 32));
  const spared = logits.findIndex(Number.isFinite);
  for (let id = 0; id < logits.length; id++) {
    if (id === spared || random() < 0.3) bits[id >>> 5] |= 1 << (id & 31);
  }
  return bits;
}

randomTest("few other tokens would be excused", (source) => {
  const random = uniform(source);
  let trials = 0, others = 0;
  for (const options of OPTIONS) {
    const sampling = only(options);
    for (let step = 0; step < 20; step++) {
      const logits = SHAPES.ordinary(random, 37);
      const history = new Uint32Array(37).map(() => random() < 0.5 ? 0 : 3);
      const given = [logits, sampling, history, step] as const;
      const possible = Array.from(logits, (_, id) => id).filter((id) =>
        errorThatGives(id, ...given) < 1e-5
      );
      assert(possible.includes(expectedOf(...given)));
      trials++;
      others += possible.length - 1;
    }
  }
  assert(
    others <= 2,
    `${others} other tokens of ${trials} trials would be excused`,
  );
});

// Each vocabulary has texts of its own.
const SMALL = [[1, 2], [37, 12], [500, 8], [4096, 4]];
for (const [vocab, steps] of someOf(SMALL, 2)) {
  gpuTest(
    `GPU and CPU sample the same tokens: vocabulary ${vocab}`,
    async (_, trial) => {
      let checked = 0, excused = 0;
      for (const options of OPTIONS) {
        const done = await compare(trial, vocab, options, steps);
        checked += done.checked;
        excused += done.excused;
      }
      assert(excused * 200 <= checked, `${excused} of ${checked} were excused`);
    },
  );
}

for (const vocab of someOf([151_936, 151_935], 1)) {
  gpuTest(
    `GPU and CPU sample the same tokens: vocabulary ${vocab}`,
    async (_, trial) => {
      for (
        const options of [
          { temperature: 0 },
          { minP: 0.01 },
          { temperature: 0.6, topK: 20, topP: 0.95, repetitionPenalty: 1.1 },
          { temperature: 1.5, topK: 100, topP: 0.9 },
          { topP: 0.9 },
        ]
      ) {
        await compare(trial, vocab, options, 1);
      }
    },
  );
}

gpuTest(
  "GPU and CPU sample the same tokens without subgroups",
  async (gpu, { random }) => {
    const plain = new Gpu(gpu.adapter, gpu.device, {
      implementation: gpu.implementation,
      descriptor: gpu.descriptor,
      subgroupMatrices: [],
      subgroupSize: 0,
      compiler: gpu.compiler,
      vulkan: false,
      timestamps: false,
      readsAtOnce: false,
      readsApart: false,
      choices: [],
    });
    let excused = 0;
    for (const options of [{ temperature: 0 }, {}, { topK: 20, topP: 0.9 }]) {
      const given = { gpu: plain, random };
      excused += (await compare(given, 1500, options, 2)).excused;
    }
    assert(excused <= 1, `${excused} were excused`);
  },
);

gpuTest("64 sequences sample independently", async (_, trial) => {
  const shapes = Array.from({ length: 64 }, () => "equal");
  await compare(trial, 500, { topP: 0.9 }, 3, { shapes });
  await compare(trial, 500, { topK: 5, topP: 0.9 }, 3, { shapes });
});

for (const masked of [false, true]) {
  gpuTest(
    `one plan samples sequences by settings of their own${
      masked ? ", each with a mask" : ""
    }`,
    async (_, trial) => {
      const small = OPTIONS.filter(({ topK = 0, temperature }) =>
        temperature === 0 || topK > 0 && topK <= 64
      );
      const draws = OPTIONS.filter(({ topK = 0, topP = 1, temperature }) =>
        temperature === 0 || topK === 0 && topP === 1
      );
      let checked = 0, excused = 0;
      for (const vocab of [37, 1500, 4099]) {
        for (const mix of [OPTIONS, small, draws, [{ temperature: 0 }]]) {
          const kinds = Object.keys(SHAPES);
          const shapes = mix.map((_, s) => kinds[s % kinds.length]);
          const how = { shapes, masked };
          const done = await compare(trial, vocab, mix, 8, how);
          checked += done.checked;
          excused += done.excused;
        }
      }
      assert(excused * 100 <= checked, `${excused} of ${checked} were excused`);
    },
  );
}

gpuTest("settings change between two runs of a plan", async (gpu, trial) => {
  const vocab = 300, sequences = 3;
  const row = SHAPES.ordinary(uniform(trial.random), vocab);
  using state = new SamplerState(gpu, { sequences, vocab, steps: 4 });
  using logits = Tensor.create(gpu, "f32", [sequences, vocab]);
  for (let s = 0; s < sequences; s++) logits.write(s * vocab * 4, row);
  const greedy = only({ temperature: 0 });
  const drawing = only({ topP: 0.99, seed: 7 });
  using plan = new Plan(gpu);
  addSampling(plan, logits, choose([drawing], vocab), state);
  const none = () => historyOf(vocab, []);
  state.set(0, greedy, none);
  state.set(1, drawing, none, { step: 40 });
  state.idle(2);
  plan.run();
  state.set(0, drawing, none, { step: 40 });
  state.idle(1);
  state.set(2, greedy, none);
  plan.run();
  const ring = await state.ring.read();
  const best = expectedOf(row, greedy, none(), 0);
  const drawn = expectedOf(row, drawing, none(), 40);
  assertEquals([...ring], [
    ...[drawn, drawn, best], // steps 40 and 0
    ...[0, 0, 0],
    ...[0, 0, 0],
    ...[0, 0, 0],
  ]);
  assertEquals([...await state.step.read()], [41, 41, 1]);
  assertEquals([...await state.tokens.read()], [drawn, drawn, best]);
});

gpuTest(
  "the ring wraps, lengths stop at the longest, and steps count on",
  async (gpu, trial) => {
    const vocab = 50, sampling = only({ topK: 20, seed: 9 });
    const row = SHAPES.ordinary(uniform(trial.random), vocab);
    using logits = Tensor.create(gpu, "f32", [1, vocab], row);
    using state = new SamplerState(gpu, { sequences: 1, vocab, steps: 3 });
    const none = historyOf(vocab, []);
    state.set(0, sampling, () => none);
    using plan = new Plan(gpu);
    const choice = choose([sampling], vocab);
    addSampling(plan, logits, choice, state, { longest: 5 });
    for (let n = 0; n < 7; n++) plan.run();
    const chosen = await state.ring.read();
    for (const [i, step] of [6, 4, 5].entries()) {
      const off = errorThatGives(chosen[i], row, sampling, none, step);
      assert(off < 1e-5, `step ${step}: ${chosen[i]} takes an error of ${off}`);
    }
    assertEquals([...await state.lengths.read()], [5]);
    assertEquals([...await state.step.read()], [7]);
  },
);

gpuTest(
  "logits that cannot be sampled from give the CPU's fault and a valid token",
  async (gpu, trial) => {
    const vocab = 2500;
    const ordinary = SHAPES.ordinary(uniform(trial.random), vocab);
    const at = trial.random.int(0, vocab - 1);
    const rows = [
      ordinary.map((l, id) => id === at ? NaN : l),
      ordinary.map((l, id) => id === at ? -NaN : l / 0),
      ordinary.map((l, id) => id === at ? Infinity : l),
      ordinary.map((_, id) => id === at ? Infinity : -Infinity),
      ordinary.map((_, id) => id === at ? NaN : -Infinity),
      new Float32Array(vocab).fill(NaN),
      new Float32Array(vocab).fill(-Infinity),
      ordinary.map((l, id) => id === at ? l : -Infinity),
      ordinary.map((l, id) => id === at ? -3e38 : l),
      ordinary.map((_, id) => id === at ? -3e38 : -Infinity),
    ];
    const sequences = rows.length, steps = 1;
    using logits = Tensor.create(gpu, "f32", [sequences, vocab]);
    const history = historyOf(vocab, rows[0].keys());
    for (const options of OPTIONS) {
      const sampling = only(options);
      using state = new SamplerState(gpu, { sequences, vocab, steps });
      const own = (s: number) => ({
        ...sampling,
        seed: (sampling.seed + s) >>> 0,
      });
      // Adjusting changes the logits.
      rows.forEach((row, s) => {
        logits.write(s * vocab * 4, row);
        state.set(s, own(s), () => history);
      });
      using plan = new Plan(gpu);
      const choice = choose([sampling], vocab);
      addSampling(plan, logits, choice, state);
      plan.run();
      const { buffer, bytes } = state.ring;
      const ring = new Uint32Array(await gpu.readBuffer(buffer, 0, bytes));
      for (const [s, row] of rows.entries()) {
        const given = [row, own(s), history, 0] as const;
        const expected = expectedOf(...given);
        const excused = ring[s] < vocab && expected < vocab &&
          errorThatGives(ring[s], ...given) < 1e-5;
        const what = `${JSON.stringify(options)}, row ${s}`;
        assert(excused || ring[s] === expected, `${what}: ${ring[s]}`);
      }
      const next = await state.tokens.read();
      assert(next.every((id) => id < vocab), `${next}`);
      assertEquals([...await state.step.read()], rows.map(() => 1));
      assertEquals([...await state.lengths.read()], rows.map(() => 1));
    }
  },
);

gpuTest("log probabilities are the CPU's", async (gpu, trial) => {
  const shapes = Object.keys(SHAPES), sequences = shapes.length, steps = 3;
  const random = uniform(trial.random);
  for (const vocab of [1, 19, 37, 5000, 151_936]) {
    const samplings = shapes.map((_, s) =>
      only({
        ...OPTIONS[(s * 5 + vocab) % OPTIONS.length],
        logprobs: [20, 5, 0, 1, 20, 13, undefined][s],
      })
    );
    const rows = shapes.map((shape) => SHAPES[shape](random, vocab));
    const prompt = [0, 18].filter((id) => id < vocab);
    const histories = rows.map(() => historyOf(vocab, prompt));
    using state = new SamplerState(gpu, { sequences, vocab, steps });
    using logits = Tensor.create(gpu, "f32", [sequences, vocab]);
    samplings.forEach((sampling, s) =>
      state.set(s, sampling, () => histories[s])
    );
    using plan = new Plan(gpu);
    const choice = choose(samplings, vocab);
    addSampling(plan, logits, choice, state);
    for (let n = 0; n < steps; n++) {
      rows.forEach((row, s) => logits.write(s * vocab * 4, row));
      plan.run();
    }
    const ring = await state.ring.read();
    const { buffer, bytes } = state.logprobs;
    const words = new Uint32Array(await gpu.readBuffer(buffer, 0, bytes));
    const found = readLogprobs(words);
    for (let i = 0; i < steps * sequences; i++) {
      const s = i % sequences, n = samplings[s].logprobs ?? 0;
      const scores = adjusted(rows[s], samplings[s], histories[s]);
      const { logprob, top } = logprobsOf(scores, ring[i], n);
      const where = `${vocab}, ${shapes[s]}, ${JSON.stringify(samplings[s])}`;
      assertAlmostEquals(found[i].logprob, logprob, 2e-5, where);
      assertEquals(found[i].top.length, top.length, where);
      const all = logSoftmax(scores);
      const ids = new Set<number>();
      for (const [place, { tokenId, logprob }] of found[i].top.entries()) {
        ids.add(tokenId);
        // Tokens whose scores differ by rounding may change places.
        assertAlmostEquals(logprob, top[place].logprob, 2e-5, where);
        assertAlmostEquals(logprob, all[tokenId], 2e-5, where);
      }
      assertEquals(ids.size, top.length);
      histories[s][ring[i]]++;
    }
  }
});

gpuTest("a mask that allows nothing gives a fault", async (gpu) => {
  const vocab = 1100, sequences = 3, steps = 1;
  for (const options of OPTIONS) {
    const sampling = only({ ...options, logitBias: {} });
    using logits = Tensor.create(gpu, "f32", [sequences, vocab]);
    using state = new SamplerState(gpu, { sequences, vocab, steps });
    const history = () => historyOf(vocab, []);
    for (let s = 0; s < sequences; s++) {
      state.set(s, sampling, history, { masked: s < 2 });
    }
    const bits = new Uint32Array(Math.ceil(vocab / 32));
    state.allow(0, bits);
    bits[32] = 1 << 5;
    state.allow(1, bits);
    using plan = new Plan(gpu);
    const choice = choose([sampling], vocab, true);
    addSampling(plan, logits, choice, state);
    plan.run();
    const { buffer, bytes } = state.ring;
    const ring = new Uint32Array(await gpu.readBuffer(buffer, 0, bytes));
    assertEquals([...ring.subarray(0, 2)], [FAULT.masked, 32 * 32 + 5]);
    assert(ring[2] < vocab);
  }
});

gpuTest("sampling takes few dispatches, each with a reason", (gpu) => {
  const vocab = 151_936;
  using logits = Tensor.create(gpu, "f32", [1, vocab]);
  using state = new SamplerState(gpu, { sequences: 1, vocab, steps: 1 });
  const kernels = (...rows: SamplingOptions[]) => {
    using plan = new Plan(gpu);
    const choice = choose(rows.map(only), vocab);
    addSampling(plan, logits, choice, state);
    for (const { reason } of plan.seal().dispatches) assert(reason.length > 10);
    return plan.dispatches.map(({ kernel }) => kernel);
  };
  assertEquals(kernels({ temperature: 0 }), ["sampleGreedy"]);
  assertEquals(kernels({ minP: 0.1 }), [
    "argmax",
    "sampleDraw",
    "sampleFinish",
  ]);
  const qwen3 = { temperature: 0.6, topK: 20, topP: 0.95 };
  assertEquals(kernels(qwen3), ["sampleTopK", "sampleFinish"]);
  assertEquals(kernels({ topK: 65 }).length, 4);
  assertEquals(kernels({ topP: 0.9 }).length, 4);
  assertEquals(kernels(qwen3, { temperature: 0 }), kernels(qwen3));
  // Plans share their scratch memory.
  const before = gpu.allocated;
  for (const options of [qwen3, { minP: 0.1 }, { topP: 0.9 }]) kernels(options);
  assertEquals(gpu.allocated, before);
  const penalty = { ...qwen3, presencePenalty: 1 };
  assertEquals(kernels(qwen3, penalty), ["sampleAdjust", ...kernels(qwen3)]);
  assertEquals(choose([only(qwen3)], vocab), {
    path: "top-k",
    parts: 64,
    adjusts: false,
    logprobs: false,
    reason: "top-k of 20: at most 64",
  });
});

gpuTest(
  "mismatched shapes and vocabularies that are too large are refused",
  (gpu) => {
    using plan = new Plan(gpu);
    using state = new SamplerState(gpu, { sequences: 2, vocab: 64, steps: 1 });
    const greedy = only({ temperature: 0 });
    using three = Tensor.create(gpu, "f32", [3, 64]);
    using large = Tensor.create(gpu, "f32", [1, 2 ** 18]);
    const before = gpu.allocated;
    assertThrows(
      () => addSampling(plan, three, choose([greedy], 64), state),
      Error,
      "Cannot take 3 rows of a tensor of shape [2, 16]: it has 2",
    );
    assertThrows(
      () => addSampling(plan, large, choose([greedy], 2 ** 18), state),
      Error,
      "Cannot sample: the vocabulary is 262144, it must be below 262144 on a GPU",
    );
    assertEquals(gpu.allocated, before);
  },
);
