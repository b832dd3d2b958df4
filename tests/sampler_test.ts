import { assert, assertEquals, assertThrows } from "@std/assert";
import { type Gpu, openDevice } from "../lib/device.ts";
import { Plan } from "../lib/plan.ts";
import {
  addSampling,
  chooseSampling,
  createSamplerState,
} from "../lib/sampler.ts";
import {
  gumbel,
  gumbelHash,
  markSeen,
  sample,
  type Sampling,
  type SamplingOptions,
} from "../lib/sampling.ts";

/** Everything off but what is given. */
const only = (options: SamplingOptions): Sampling => ({
  temperature: 1,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  seed: 1,
  ...options,
});

/** Repeatable random numbers in [0, 1). */
function lcg(state: number) {
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

/** Logits of one sequence. */
type Shape = (
  random: () => number,
  vocab: number,
) => Float32Array<ArrayBuffer>;

const normal = (spread: number): Shape => (random, vocab) =>
  Float32Array.from({ length: vocab }, () =>
    spread * Math.sqrt(-2 * Math.log(1 - random())) *
    Math.cos(2 * Math.PI * random()));

/** What logits may look like. */
const SHAPES: Record<string, Shape> = {
  ordinary: normal(3),
  flat: normal(0.01),
  peaked: (random, vocab) => {
    const logits = normal(2)(random, vocab);
    for (let i = 0; i < 5; i++) logits[Math.floor(random() * vocab)] += 18;
    return logits;
  },
  tied: (random, vocab) => normal(3)(random, vocab).map(Math.round), // −0 too
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
];

/**
 * How far `token` is from being the choice, in float64: the smallest error of a
 * score or of a share of the mass that makes it so. 0 if it is the choice.
 */
function errorThatGives(
  token: number,
  logits: Float32Array,
  sampling: Sampling,
  seen: Uint32Array,
  step: number,
): number {
  const { temperature, topK, topP, minP, repetitionPenalty, seed } = sampling;
  const scores = Array.from(logits, (l, id) => {
    if ((seen[id >>> 5] >>> (id & 31) & 1) === 0) return l;
    return l < 0 ? l * repetitionPenalty : l / repetitionPenalty;
  });
  const top = scores.reduce((a, b) => Math.max(a, b));
  if (temperature === 0) return top - scores[token];
  const scaled = scores.map((l) => (l - top) / temperature);
  const order = scaled.map((_, id) => id)
    .sort((a, b) => scaled[b] - scaled[a] || a - b);

  // By how much each token fails (> 0) or passes (< 0) the filters.
  const kth = topK > 0 && topK < order.length
    ? scaled[order[topK - 1]]
    : -Infinity;
  const survivors = order.filter((id) => scaled[id] >= kth - 1e-5);
  const mass = survivors.reduce((sum, id) => sum + Math.exp(scaled[id]), 0);
  const fails = new Map<number, number>();
  let ahead = 0;
  for (const id of survivors) {
    const byMass = topP < 1 && ahead > 0 ? ahead / mass - topP : -Infinity;
    const below = kth === -Infinity ? -Infinity : kth - scaled[id];
    fails.set(id, Math.max(byMass, below, Math.log(minP) - scaled[id]));
    ahead += Math.exp(scaled[id]);
  }
  const score = (id: number) =>
    scaled[id] + gumbel(gumbelHash((seed + 0) >>> 0, step, id));
  let error = Math.max(0, fails.get(token) ?? Infinity);
  for (const [id, by] of fails) {
    if (id === token) continue;
    // Another wins unless it is out or its score is lower: one of both must be wrong.
    const lead = score(id) - score(token);
    if (by <= 0) error = Math.max(error, Math.min(lead, -by));
  }
  return error;
}

/** Runs `steps` steps of every option set on the GPU, then compares with the CPU's choice. */
async function compare(
  gpu: Gpu,
  vocab: number,
  options: SamplingOptions,
  steps: number,
  shapes: string[],
): Promise<{ checked: number; excused: number }> {
  const sequences = shapes.length;
  const sampling = only(options);
  const random = lcg(vocab * 31 + steps);
  const rows = Array.from(
    { length: steps },
    () => shapes.map((shape) => SHAPES[shape](random, vocab)),
  );
  using state = createSamplerState(gpu, { sequences, vocab, steps });
  using logits = gpu.tensor("f32", [sequences, vocab]);
  const seen = shapes.map(() => new Uint32Array(Math.ceil(vocab / 32)));
  seen.forEach((bits, s) =>
    markSeen(bits, [s % vocab, Math.floor(random() * vocab), vocab - 1])
  );
  gpu.write(state.seen, 0, Uint32Array.from(seen.flatMap((b) => [...b])));
  gpu.write(state.lengths, 0, new Uint32Array(sequences).fill(7));
  using plan = new Plan(gpu);
  using _scratch = addSampling(plan, logits, sampling, state, 2);
  for (const row of rows) {
    row.forEach((l, s) => gpu.write(logits, s * vocab * 4, l));
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
          `${
            JSON.stringify(options)
          }, vocab ${vocab}, ${shapes[s]}, step ${n}: the GPU chose ${chosen}, the CPU ${expected}, which takes an error of ${error}`,
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
    state.seen.part.buffer,
    0,
    4 * seen.length * seen[0].length,
  );
  assertEquals(
    new Uint32Array(bits),
    Uint32Array.from(seen.flatMap((b) => [...b])),
  );
  return { checked: steps * sequences, excused };
}

const ALL = Object.keys(SHAPES);

for (const [vocab, steps] of [[1, 2], [37, 12], [500, 12], [4096, 6]]) {
  Deno.test(`the GPU samples as the CPU does, vocabulary ${vocab}`, async () => {
    using gpu = await openDevice();
    let checked = 0, excused = 0;
    for (const options of OPTIONS) {
      const done = await compare(gpu, vocab, options, steps, ALL);
      checked += done.checked;
      excused += done.excused;
    }
    console.log(vocab, checked, excused);
    assert(excused * 500 <= checked, `${excused} of ${checked} are rounding`);
  });
}

Deno.test("big", async () => {
  using gpu = await openDevice();
  for (const vocab of [151936, 151935]) {
  for (const options of OPTIONS) {
    const t = performance.now();
    const done = await compare(gpu, vocab, options, 2, ALL);
    console.log(vocab, JSON.stringify(options), done, Math.round(performance.now() - t));
  }}
});
