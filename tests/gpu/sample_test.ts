import { Tensor } from "../../lib/webgpu/tensor.ts";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { Gpu } from "../../lib/webgpu/device.ts";
import { Plan } from "../../lib/webgpu/plan.ts";
import { chooseSampling } from "../../lib/dispatch/sampling.ts";
import { addSampling, createSamplerState } from "../../lib/gpu/sample.ts";
import {
  gumbel,
  gumbelHash,
  markSeen,
  sample,
  type Sampling,
  type SamplingOptions,
} from "../../lib/model/sampling.ts";
import { gpuTest } from "../support/gpu.ts";
import { type Random, randomTest, uniform } from "../support/random.ts";
import { only } from "../support/sampling_inputs.ts";

const concatenate = (rows: Uint32Array[]) =>
  Uint32Array.from(rows.flatMap((row) => [...row]));

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
  {},
  { temperature: 0.6, topK: 20, topP: 0.95 },
  { temperature: 0.7, topK: 20, topP: 0.8, repetitionPenalty: 1.1 },
  { topK: 1 },
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
];

/**
 * The smallest error of scores, or of a share of the mass, that would make `token` the
 * choice, in float64; 0 if it is the choice.
 */
function errorThatGives(
  token: number,
  logits: Float32Array,
  sampling: Sampling,
  seen: Uint32Array,
  step: number,
): number {
  const { temperature, topK, topP, minP, repetitionPenalty, seed } = sampling;
  const scores = logits.map((l, id) => {
    if ((seen[id >>> 5] >>> (id & 31) & 1) === 0) return l;
    return l < 0 ? l * repetitionPenalty : l / repetitionPenalty;
  });
  const top = scores.reduce((a, b) => Math.max(a, b));
  if (temperature === 0) return top - scores[token];
  const scaled = Array.from(scores, (l) => (l - top) / temperature);
  const order = scaled.map((_, id) => id)
    .sort((a, b) => scaled[b] - scaled[a] || a - b);
  const cut = topK > 0 && topK < order.length;
  const last = cut ? scaled[order[topK - 1]] : -Infinity;
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
        cut ? last - scaled[id] : -Infinity,
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
 * Samples `steps` steps on the GPU, one sequence for each kind of logits, and compares
 * the tokens with the CPU's. A difference is `excused` where an error of 1e-5 in a score
 * or in a share of the mass explains it.
 */
async function compare(
  { gpu, random: source }: { gpu: Gpu; random: Random },
  vocab: number,
  options: SamplingOptions,
  steps: number,
  shapes = Object.keys(SHAPES),
): Promise<{ checked: number; excused: number }> {
  const sequences = shapes.length;
  const sampling = only(options);
  const random = uniform(source);
  const rows = Array.from(
    { length: steps },
    () => shapes.map((shape) => SHAPES[shape](random, vocab)),
  );
  using state = createSamplerState(gpu, { sequences, vocab, steps });
  using logits = Tensor.create(gpu, "f32", [sequences, vocab]);
  const seen = shapes.map(() => new Uint32Array(Math.ceil(vocab / 32)));
  seen.forEach((bits, s) =>
    markSeen(bits, [s % vocab, Math.floor(random() * vocab), vocab - 1])
  );
  state.seen.write(0, concatenate(seen));
  state.lengths.write(0, new Uint32Array(sequences).fill(7));
  using plan = new Plan(gpu);
  using _scratch = addSampling(plan, logits, sampling, state, {
    advance: 2,
  });
  for (const row of rows) {
    row.forEach((l, s) => logits.write(s * vocab * 4, l));
    plan.run();
  }
  const ring = await state.ring.read();
  let excused = 0;
  for (let n = 0; n < steps; n++) {
    for (let s = 0; s < sequences; s++) {
      const own = { ...sampling, seed: (sampling.seed + s) >>> 0 };
      const chosen = ring[n * sequences + s];
      const expected = sample(rows[n][s], own, seen[s], n);
      if (chosen !== expected) {
        const error = errorThatGives(chosen, rows[n][s], own, seen[s], n);
        assert(
          error < 1e-5,
          `${JSON.stringify(options)}, vocab ${vocab}, ${
            shapes[s]
          }, step ${n}: the GPU chose ${chosen}, the CPU ${expected}, which takes an error of ${error}`,
        );
        excused++;
      }
      markSeen(seen[s], [chosen]);
    }
  }
  const last = ring.slice((steps - 1) * sequences);
  assertEquals(await state.tokens.read(), last);
  assertEquals(
    await state.lengths.read(),
    new Float32Array(sequences).fill(7 + 2 * steps),
  );
  assertEquals(
    await state.step.read(),
    new Float32Array(sequences).fill(steps),
  );
  const bits = await gpu.readBuffer(
    state.seen.buffer,
    0,
    4 * seen.length * seen[0].length,
  );
  assertEquals(new Uint32Array(bits), concatenate(seen));
  return { checked: steps * sequences, excused };
}

randomTest("few other tokens would be excused", (source) => {
  const random = uniform(source);
  let trials = 0, others = 0;
  for (const options of OPTIONS) {
    const sampling = only(options);
    for (let step = 0; step < 20; step++) {
      const logits = SHAPES.ordinary(random, 37);
      const seen = new Uint32Array([Math.floor(random() * 2 ** 32), 1]);
      const possible = Array.from(logits, (_, id) => id).filter((id) =>
        errorThatGives(id, logits, sampling, seen, step) < 1e-5
      );
      assert(possible.includes(sample(logits, sampling, seen, step)));
      trials++;
      others += possible.length - 1;
    }
  }
  assert(
    others <= 2,
    `${others} other tokens of ${trials} trials would be excused`,
  );
});

for (const [vocab, steps] of [[1, 2], [37, 12], [500, 8], [4096, 4]]) {
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

for (const vocab of [151_936, 151_935]) {
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
      descriptor: gpu.descriptor,
      subgroupSize: 0,
      vulkan: false,
      timestamps: false,
      readsAtOnce: false,
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
  await compare(trial, 500, { topP: 0.9 }, 3, shapes);
  await compare(trial, 500, { topK: 5, topP: 0.9 }, 3, shapes);
});

gpuTest(
  "the ring wraps, lengths stop at the longest, and steps count on",
  async (gpu, trial) => {
    const vocab = 50, sampling = only({ topK: 20, seed: 9 });
    const row = SHAPES.ordinary(uniform(trial.random), vocab);
    using logits = Tensor.create(gpu, "f32", [1, vocab], row);
    using state = createSamplerState(gpu, { sequences: 1, vocab, steps: 3 });
    using plan = new Plan(gpu);
    using _scratch = addSampling(plan, logits, sampling, state, { longest: 5 });
    for (let n = 0; n < 7; n++) plan.run();
    const chosen = await state.ring.read();
    for (const [i, step] of [6, 4, 5].entries()) {
      const off = errorThatGives(
        chosen[i],
        row,
        sampling,
        new Uint32Array(2),
        step,
      );
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
    rows.forEach((row, s) => logits.write(s * vocab * 4, row));
    const words = Math.ceil(vocab / 32);
    for (const options of OPTIONS) {
      const sampling = only(options);
      using state = createSamplerState(gpu, { sequences, vocab, steps });
      const seen = new Uint32Array(words).fill(0x55555555);
      state.seen.write(0, concatenate(rows.map(() => seen)));
      using plan = new Plan(gpu);
      using _scratch = addSampling(plan, logits, sampling, state);
      plan.run();
      const { buffer, bytes } = state.ring;
      const ring = new Uint32Array(await gpu.readBuffer(buffer, 0, bytes));
      for (const [s, row] of rows.entries()) {
        const own = { ...sampling, seed: (sampling.seed + s) >>> 0 };
        const expected = sample(row, own, seen, 0);
        const excused = ring[s] < vocab && expected < vocab &&
          errorThatGives(ring[s], row, own, seen, 0) < 1e-5;
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

gpuTest("sampling takes few dispatches, each with a reason", (gpu) => {
  const vocab = 151_936;
  using logits = Tensor.create(gpu, "f32", [1, vocab]);
  using state = createSamplerState(gpu, { sequences: 1, vocab, steps: 1 });
  const before = gpu.allocated;
  const kernels = (options: SamplingOptions) => {
    using plan = new Plan(gpu);
    using _scratch = addSampling(plan, logits, only(options), state);
    for (const { reason } of plan.seal().dispatches) assert(reason.length > 10);
    return plan.dispatches.map(({ kernel }) => kernel);
  };
  assertEquals(kernels({ temperature: 0 }), ["argmax", "sampleFinish"]);
  assertEquals(kernels({ minP: 0.1 }), [
    "argmax",
    "sampleDraw",
    "sampleFinish",
  ]);
  const qwen3 = { temperature: 0.6, topK: 20, topP: 0.95 };
  assertEquals(kernels(qwen3), ["sampleTopK", "sampleFinish"]);
  assertEquals(kernels({ topK: 65 }).length, 4);
  assertEquals(kernels({ topP: 0.9 }).length, 4);
  assertEquals(gpu.allocated, before);
  assertEquals(chooseSampling(only(qwen3), vocab), {
    path: "top-k",
    reason: "top-k of 20: at most 64",
  });
});

gpuTest(
  "mismatched shapes and vocabularies that are too large are refused",
  (gpu) => {
    using plan = new Plan(gpu);
    using state = createSamplerState(gpu, {
      sequences: 2,
      vocab: 64,
      steps: 1,
    });
    using three = Tensor.create(gpu, "f32", [3, 64]);
    using large = Tensor.create(gpu, "f32", [1, 2 ** 18]);
    const before = gpu.allocated;
    assertThrows(
      () => addSampling(plan, three, only({ temperature: 0 }), state),
      Error,
      "Cannot run sampleFinish: tokens has shape [2], but sequences is 3 in records and 2 in tokens",
    );
    assertThrows(
      () => addSampling(plan, large, only({}), state),
      Error,
      "Cannot sample: the vocabulary is 262144, it must be below 262144 on a GPU",
    );
    assertEquals(gpu.allocated, before);
  },
);
