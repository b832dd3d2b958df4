import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertThrows,
} from "@std/assert";
import { FAULT } from "../../lib/dispatch/sampling.ts";
import {
  adjusted,
  faultText,
  gumbel,
  gumbelHash,
  type History,
  historyOf,
  logprobsOf,
  logSoftmax,
  resolveSampling,
  sample,
  sampleEach,
  type Sampling,
  type SamplingOptions,
  validToken,
} from "../../lib/model/sampling.ts";
import { randomTest, uniform } from "../support/random.ts";
import { only } from "../support/sampling_inputs.ts";
import { slowTest } from "../support/quick.ts";

/** Samples with everything that changes logits first. */
const sampleAll = (
  logits: Float32Array,
  sampling: Sampling,
  history: History,
  step: number,
  allowed?: Uint32Array,
) =>
  sample(
    adjusted(logits, sampling, history, allowed),
    sampling,
    step,
    allowed !== undefined,
  );

/**
 * The logits processors of transformers, on plain numbers, and OpenAI's penalties: the
 * probability of each token, 0 if it was removed.
 */
function transformers(
  logits: Float32Array,
  sampling: Sampling,
  prompt: readonly number[] = [],
  generated: readonly number[] = [],
  allowed = (_id: number) => true,
): number[] {
  const { temperature, topK, topP, minP, repetitionPenalty } = sampling;
  const { presencePenalty, frequencyPenalty, logitBias } = sampling;
  const seen = new Set([...prompt, ...generated]);
  const softmax = (x: number[]) => {
    const max = Math.max(...x);
    const e = x.map((v) => Math.exp(v - max));
    const sum = e.reduce((a, b) => a + b);
    return e.map((v) => v / sum);
  };
  let scores = [...logits].map((l, id) => l + (logitBias[id] ?? 0));
  scores = scores.map((l, id) => {
    if (!seen.has(id)) return l;
    return l < 0 ? l * repetitionPenalty : l / repetitionPenalty;
  });
  scores = scores.map((l, id) => {
    const count = generated.filter((other) => other === id).length;
    return l - count * frequencyPenalty - (count > 0 ? presencePenalty : 0);
  });
  scores = scores.map((l, id) => allowed(id) ? l : -Infinity);
  scores = scores.map((l) => l / temperature);
  if (topK > 0) {
    const k = Math.min(topK, scores.length);
    const kth = [...scores].sort((a, b) => b - a)[k - 1];
    scores = scores.map((l) => l < kth ? -Infinity : l);
  }
  if (topP < 1) {
    const ascending = scores.map((_, id) => id)
      .sort((a, b) => scores[a] === scores[b] ? b - a : scores[a] - scores[b]);
    const probabilities = softmax(scores);
    let cumulative = 0;
    for (const id of ascending.slice(0, -1)) {
      cumulative += probabilities[id];
      if (cumulative <= 1 - topP) scores[id] = -Infinity;
    }
  }
  if (minP > 0) {
    const probabilities = softmax(scores);
    const least = minP * Math.max(...probabilities);
    scores = scores.map((l, id) => probabilities[id] < least ? -Infinity : l);
  }
  return softmax(scores);
}

/** Draws a token by the definition of Gumbel sampling. */
function draw(probabilities: number[], seed: number, step: number): number {
  const scores = probabilities.map((p, id) =>
    Math.log(p) + gumbel(gumbelHash(seed, step, id))
  );
  return scores.indexOf(Math.max(...scores));
}

randomTest(
  "sampling allows what transformers' processors allow",
  (source) => {
    const random = uniform(source);
    const choose = <T>(...options: T[]) =>
      options[Math.floor(random() * options.length)];
    const counts = new Map<number, number>();
    for (let trial = 0; trial < 1500; trial++) {
      const vocab = 1 + Math.floor(random() * 60);
      const sharp = choose(0.5, 2, 6);
      const whole = choose(true, false); // whole numbers tie
      const logits = Float32Array.from({ length: vocab }, () => {
        const logit = (random() * 2 - 1) * sharp;
        // Penalties and biases then change it exactly in f32.
        return whole ? Math.round(logit) : Math.round(logit * 4096) / 4096;
      });
      if (random() < 0.2) {
        logits[Math.floor(random() * (vocab - 1))] = -Infinity;
      }
      if (!logits.some(Number.isFinite)) continue;
      const ids = () =>
        Array.from({ length: 10 }, () => Math.floor(random() * vocab));
      const prompt = ids(), generated = ids();
      const history = historyOf(vocab, prompt, generated);
      const sampling: Sampling = {
        temperature: choose(0.3, 0.7, 1, 1.7),
        topK: choose(0, 1, 5, 20, 100),
        topP: choose(1, 0.9517, 0.8031, 0.5039, 0.01), // never a sum of equal shares, where rounding would decide
        minP: choose(0, 0, 0.05, 0.3, 1),
        // Exact in f32.
        repetitionPenalty: choose(1, 1, 2, 0.5),
        presencePenalty: choose(0, 0, 0.5, -1),
        frequencyPenalty: choose(0, 0, 0.25, -0.5),
        logitBias: choose<Record<number, number>>({}, { 0: -100, 3: 1.5 }),
        seed: Math.floor(random() * 2 ** 32),
      };
      const masked = random() < 0.3, best = logits.indexOf(Math.max(...logits));
      const spared = (id: number) => !masked || id % 3 === best % 3;
      const allowed = new Uint32Array(Math.ceil(vocab / 32));
      for (let id = 0; id < vocab; id++) {
        if (spared(id)) allowed[id >>> 5] |= 1 << (id & 31);
      }
      const bits = masked ? allowed : undefined;
      const probabilities = transformers(
        ...[logits, sampling, prompt, generated, spared],
      );
      for (let step = 0; step < 20; step++) {
        const token = sampleAll(logits, sampling, history, step, bits);
        const context = JSON.stringify({ sampling, logits: [...logits], step });
        assert(probabilities[token] > 0, context);
        assertEquals(token, draw(probabilities, sampling.seed, step), context);
      }
      const kept = probabilities.filter((p) => p > 0).length;
      counts.set(kept, (counts.get(kept) ?? 0) + 1);
    }
    assert(counts.size > 20, "the trials must keep many different numbers");
  },
);

randomTest("the draws follow the softmax", (given) => {
  const random = uniform(given);
  const logits = Float32Array.from({ length: 50 }, () => random() * 4);
  const steps = 20000;
  for (const options of [{}, { temperature: 0.7, topK: 20, topP: 0.9 }]) {
    const seed = Math.floor(random() * 2 ** 32);
    const sampling = only({ ...options, seed });
    const counts = new Array(50).fill(0);
    for (let step = 0; step < steps; step++) {
      counts[sample(logits, sampling, step)]++;
    }
    const expected = transformers(logits, sampling)
      .map((p) => p * steps);
    let chi2 = 0;
    let freedom = -1;
    for (const [id, e] of expected.entries()) {
      if (e === 0) assertEquals(counts[id], 0);
      else {
        chi2 += (counts[id] - e) ** 2 / e;
        freedom++;
      }
    }
    // The cube root of chi² / freedom is close to normal, with mean 1 − v and variance v
    // (Wilson and Hilferty, 1931). One draw in 500 million is six deviations off.
    const v = 2 / (9 * freedom);
    const deviation = (Math.cbrt(chi2 / freedom) - (1 - v)) / Math.sqrt(v);
    assert(Math.abs(deviation) < 6, `chi² ${chi2} for ${freedom}`);
  }
});

slowTest(
  "rare tokens of a large vocabulary appear as often as they should",
  () => {
    // One token has half the probability, 30,000 share the rest.
    const vocab = 30001;
    const logits = new Float32Array(vocab);
    logits[0] = Math.log(vocab - 1);
    let [first, low] = [0, 0];
    const steps = 800;
    for (let step = 0; step < steps; step++) {
      const token = sample(logits, only({ seed: 3 }), step);
      if (token === 0) first++;
      else if (token <= 15000) low++;
    }
    assertAlmostEquals(first / steps, 1 / 2, 0.053); // three standard deviations
    assertAlmostEquals(low / steps, 1 / 4, 0.046);
  },
);

Deno.test("a seed repeats its draws, another seed does not", () => {
  const logits = new Float32Array(1000);
  const text = (seed: number) =>
    Array.from(
      { length: 50 },
      (_, step) => sample(logits, only({ seed }), step),
    );
  assertEquals(text(5), text(5));
  const equal = text(5).filter((token, i) => token === text(6)[i]).length;
  assert(equal < 5, `${equal} of 50 tokens are equal`);
});

Deno.test("all tokens that tie with the k-th are kept, and the lowest id wins", () => {
  const logits = Float32Array.of(1, 3, 2, 2, 2, 3);
  assertEquals(sample(logits, only({ temperature: 0 }), 0), 1);
  const drawn = (options: SamplingOptions) => {
    const tokens = new Set<number>();
    for (let step = 0; step < 400; step++) {
      tokens.add(sample(logits, only(options), step));
    }
    return [...tokens].sort();
  };
  assertEquals(drawn({ topK: 1 }), [1, 5]);
  assertEquals(drawn({ topK: 3 }), [1, 2, 3, 4, 5]);
  assertEquals(drawn({ topK: 100 }), [0, 1, 2, 3, 4, 5]);
  assertEquals(drawn({ topP: 0.01 }), [1]);
  assertEquals(drawn({ topP: 1e-300 }), [1]);
  assertEquals(drawn({ minP: 1 }), [1, 5]);
  assertEquals(drawn({ temperature: 1e-300 }), [1, 5]);
  assertEquals(drawn({ temperature: 1e300 }), [0, 1, 2, 3, 4, 5]);
});

Deno.test("top-p keeps the lower ids of equal logits", () => {
  const drawn = (logits: Float32Array, topP: number) => {
    const tokens = new Set<number>();
    for (let step = 0; step < 600; step++) {
      tokens.add(sample(logits, only({ topP }), step));
    }
    return [...tokens].sort((a, b) => a - b);
  };
  const first = (n: number) => Array.from({ length: n }, (_, id) => id);
  assertEquals(drawn(new Float32Array(64), 0.25), first(16));
  assertEquals(drawn(new Float32Array(64).fill(-7), 0.5), first(32));
});

Deno.test("the repetition penalty applies to prompt and output, greedy or not", () => {
  const logits = Float32Array.of(4, 3, -1);
  for (const history of [historyOf(3, [0]), historyOf(3, [], [0])]) {
    const penalty = (repetitionPenalty: number) => {
      const sampling = only({ temperature: 0, repetitionPenalty });
      return sampleAll(logits, sampling, history, 0);
    };
    assertEquals(penalty(1), 0);
    assertEquals(penalty(2), 1);
  }
  assertEquals([...logits], [4, 3, -1]); // unchanged
});

Deno.test("presence and frequency penalties apply to the output alone", () => {
  const logits = new Float32Array(4);
  const history = historyOf(4, [0, 1], [1, 2, 2, 2]);
  const scores = (options: SamplingOptions) => [
    ...adjusted(logits, only(options), history),
  ];
  assertEquals(scores({ presencePenalty: 1.5 }), [0, -1.5, -1.5, 0]);
  assertEquals(scores({ frequencyPenalty: 0.5 }), [0, -0.5, -1.5, 0]);
  assertEquals(
    scores({ presencePenalty: -1, frequencyPenalty: 0.25 }),
    [0, 0.75, 0.25, 0],
  );
});

Deno.test("a bias is added before the penalties, and 100 either way decides", () => {
  const logits = Float32Array.of(20, -15, 3);
  const biased = (logitBias: Record<number, number>, more = {}) =>
    sampleAll(
      logits,
      only({ temperature: 0, logitBias, ...more }),
      historyOf(3, [1]),
      0,
    );
  assertEquals(biased({}), 0);
  assertEquals(biased({ 0: -100 }), 2);
  assertEquals(biased({ 1: 100 }), 1);
  assertEquals(biased({ 1: 60 }, { repetitionPenalty: 2 }), 1);
  assertEquals(biased({ 1: 50 }, { repetitionPenalty: 2 }), 0);
});

Deno.test("every way of sampling obeys a mask", () => {
  const logits = Float32Array.from({ length: 70 }, (_, id) => id % 11);
  const digits = Uint32Array.of(0, 0b1010, 0); // 33 and 35
  const ways: SamplingOptions[] = [
    { temperature: 0 },
    {},
    { topK: 1 },
    { topK: 40, topP: 0.99 },
    { topP: 0.999 },
    { minP: 0.001, temperature: 3 },
  ];
  const history = historyOf(70, [1, 2]);
  for (const options of ways) {
    const drawn = new Set<number>();
    for (let step = 0; step < 200; step++) {
      drawn.add(sampleAll(logits, only(options), history, step, digits));
    }
    const varied = options.temperature !== 0 && options.topK !== 1;
    const text = JSON.stringify(options);
    assertEquals([...drawn].sort(), varied ? [33, 35] : [35], text);
  }
});

Deno.test("a mask that allows nothing is a fault of its own", () => {
  const logits = Float32Array.of(1, 2, -Infinity);
  const history = historyOf(3, []);
  for (const options of [{ temperature: 0 }, {}, { topK: 1 }]) {
    const masked = (bits: number, row = logits) =>
      sampleAll(row, only(options), history, 0, Uint32Array.of(bits));
    assertEquals(masked(0b001), 0);
    assertEquals(masked(0), FAULT.masked);
    assertEquals(masked(0b100), FAULT.masked);
    assertEquals(masked(0, Float32Array.of(NaN, 1)), FAULT.nan);
  }
  assertEquals(
    faultText(FAULT.masked),
    "are -Infinity for every token that the mask allows, at least one must be finite",
  );
});

Deno.test("log probabilities are those of what the penalties leave", () => {
  const logits = Float32Array.of(1, 3, 2, 3, -Infinity, 0);
  const mass = [1, 3, 2, 3, 0].reduce((sum, x) => sum + Math.exp(x), 0);
  const log = (x: number) => x - Math.log(mass);
  const sampling = only({ logprobs: 3, temperature: 0.1, topK: 1 });
  const histories = [historyOf(6, [])];
  const [first, ...rest] = sampleEach([logits], sampling, histories, 0)
    .logprobs!;
  assertEquals(rest, []);
  assertAlmostEquals(first.logprob, log(3), 1e-12);
  assertEquals(first.top.map(({ tokenId }) => tokenId), [1, 3, 2]);
  [3, 3, 2].forEach((x, i) =>
    assertAlmostEquals(first.top[i].logprob, log(x), 1e-12)
  );
  // Tokens that cannot come next are no alternatives.
  const all = logprobsOf(logits, 0, 20);
  assertEquals(all.top.map(({ tokenId }) => tokenId), [1, 3, 2, 0, 5]);
  assertAlmostEquals(all.logprob, log(1), 1e-12);
  assertEquals(logprobsOf(logits, 0, 0).top, []);
  const forced = only({ logprobs: 1, logitBias: { 5: 100 } });
  const [biased] = sampleEach([logits], forced, histories, 0).logprobs!;
  assertEquals(biased.top[0].tokenId, 5);
  assertAlmostEquals(biased.top[0].logprob, 0, 1e-12);
  assertEquals(
    sampleEach([logits], only({}), histories, 0).logprobs,
    undefined,
  );
  assertAlmostEquals(
    logSoftmax(logits).reduce((sum, x) => sum + Math.exp(x), 0),
    1,
    1e-12,
  );
});

Deno.test("logits that cannot be sampled from give a fault, masked ones do not", () => {
  const all = [
    { temperature: 0 },
    {},
    { topK: 1 },
    { topP: 0.5, minP: 0.1 },
    { temperature: 0, repetitionPenalty: 2 },
  ];
  const give = (logits: number[], expected: number) => {
    for (const options of all) {
      const row = Float32Array.from(logits), ids = [...row.keys()];
      const history = historyOf(row.length, ids);
      assertEquals(sampleAll(row, only(options), history, 0), expected);
    }
  };
  give([1, NaN, 2], FAULT.nan);
  give([NaN, Infinity, -Infinity], FAULT.nan);
  give([Infinity, NaN], FAULT.nan);
  give([1, Infinity], FAULT.infinity);
  give([-Infinity, Infinity], FAULT.infinity);
  give([-Infinity, -Infinity], FAULT.none);
  give([], FAULT.none);
  give([-Infinity, -3, -Infinity], 1);
  give([-Infinity, -3e38], 1);
  const tiny = only({ temperature: 0, repetitionPenalty: 1e-30 });
  assertEquals(
    sampleAll(Float32Array.of(1, 3e38), tiny, historyOf(2, [0, 1]), 0),
    0,
  );
  assertEquals([7, FAULT.nan, FAULT.none].map(validToken), [7, 0, 0]);
});

Deno.test("sampled tokens are counted, a fault is not", () => {
  const histories = [historyOf(2, []), historyOf(2, [1])];
  const rows = [Float32Array.of(NaN, 0), Float32Array.of(0, 1)];
  const sampling = only({ temperature: 0 });
  const ids = sampleEach(rows, sampling, histories, 0);
  assertEquals([...ids], [FAULT.nan, 1]);
  sampleEach(rows, sampling, histories, 1);
  assertEquals(histories.map((history) => [...history]), [
    [0, 0],
    [0, 2 ** 31 + 2],
  ]);
});

const UNADJUSTED = {
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  logitBias: {},
  logprobs: undefined,
};

Deno.test("options override the checkpoint's, which override transformers' defaults", () => {
  const checkpoint = { doSample: true, temperature: 0.6, topK: 20, topP: 0.95 };
  assertEquals(resolveSampling({ seed: 9 }, checkpoint), {
    temperature: 0.6,
    topK: 20,
    topP: 0.95,
    minP: 0,
    ...UNADJUSTED,
    seed: 9,
  });
  const mine = { temperature: 2, topK: 0, minP: 0.1, repetitionPenalty: 1.2 };
  assertEquals(resolveSampling({ ...mine, seed: 0 }, checkpoint), {
    ...UNADJUSTED,
    ...mine,
    topP: 0.95,
    seed: 0,
  });
});

Deno.test("decoding is greedy unless the checkpoint or an option says to sample", () => {
  const temperature = (options: SamplingOptions, doSample?: boolean) =>
    resolveSampling(options, { doSample, temperature: 0.6 }).temperature;
  assertEquals(resolveSampling({}).temperature, 0);
  assertEquals(resolveSampling({ temperature: 1 }).topK, 50);
  assertEquals(temperature({}), 0);
  assertEquals(temperature({}, false), 0);
  assertEquals(temperature({ seed: 1, repetitionPenalty: 1.1 }, false), 0);
  assertEquals(temperature({}, true), 0.6);
  assertEquals(temperature({ temperature: 0, topK: 5 }, true), 0);
  assertEquals(temperature({ temperature: 0.9 }, false), 0.9);
  for (const options of [{ topK: 5 }, { topP: 0.5 }, { minP: 0.1 }]) {
    assertEquals(temperature(options, false), 0.6);
  }
});

Deno.test("a seed is drawn and reported if none is given", () => {
  const seeds = new Set(
    Array.from({ length: 8 }, () => resolveSampling({}).seed),
  );
  assert(seeds.size > 6);
  for (const seed of seeds) assertEquals(seed, seed >>> 0);
});

Deno.test("sampling options out of range are refused", () => {
  const refuse = (options: Record<string, unknown>, message: string) => {
    assertThrows(
      () => resolveSampling(options as SamplingOptions),
      RangeError,
      `Cannot sample: ${message}`,
    );
  };
  refuse(
    { temperature: -1 },
    "temperature is -1, must be a number of at least 0",
  );
  refuse({ temperature: Infinity }, "temperature is Infinity");
  refuse({ temperature: "hot" }, 'temperature is "hot"');
  refuse({ topK: 1.5 }, "topK is 1.5, must be an integer of at least 0");
  refuse({ topK: -1 }, "topK is -1");
  refuse({ topP: 0 }, "topP is 0, must be above 0 and at most 1");
  refuse({ topP: 1.01 }, "topP is 1.01");
  refuse({ minP: 2 }, "minP is 2, must be from 0 to 1");
  refuse(
    { repetitionPenalty: 0 },
    "repetitionPenalty is 0, must be from 0.001 to 1000",
  );
  refuse({ repetitionPenalty: 1e-300 }, "repetitionPenalty is 1e-300");
  refuse({ repetitionPenalty: 1001 }, "repetitionPenalty is 1001");
  refuse({ seed: 2 ** 32 }, "seed is 4294967296, must be an integer from 0");
  refuse({ seed: NaN }, "seed is NaN");
  refuse({ presencePenalty: 3 }, "presencePenalty is 3, must be from -2 to 2");
  refuse({ frequencyPenalty: NaN }, "frequencyPenalty is NaN, must be from -2");
  refuse({ logprobs: 21 }, "logprobs is 21, must be an integer from 0 to 20");
  refuse({ logprobs: true }, "logprobs is true, must be an integer");
  refuse(
    { logitBias: [1] },
    "logitBias is a list of 1, must be a plain object",
  );
  const bias = (id: string | number, value: unknown, message: string) =>
    refuse({ logitBias: { [id]: value } }, `logitBias ${message}`);
  bias(7, 101, "of token 7 is 101, must be from -100 to 100");
  bias(7, "5", 'of token 7 is "5", must be from -100 to 100');
  bias(7, NaN, "of token 7 is NaN");
  for (const id of ["-1", "1.5", "dog", "01", "1e3", ""]) {
    bias(id, 1, `has token "${id}", must have ids of tokens`);
  }
  assertThrows(
    () => resolveSampling({ logitBias: { 50: 1 } }, {}, 50),
    RangeError,
    'Cannot sample: logitBias has token "50", must have ids from 0 to 49',
  );
  assertEquals(resolveSampling({ logitBias: { 49: 1 } }, {}, 50).logitBias, {
    49: 1,
  });
  const many = Object.fromEntries(
    Array.from({ length: 1025 }, (_, i) => [i, 1]),
  );
  refuse(
    { logitBias: many },
    "logitBias has 1025 tokens, must have at most 1024",
  );
});

randomTest(
  "one bit of seed, step or id flips half the bits of the hash",
  (source) => {
    const random = uniform(source);
    const u32 = () => Math.floor(random() * 2 ** 32);
    const ones = (h: number) => {
      let n = 0;
      for (; h !== 0; h = h & (h - 1)) n++;
      return n;
    };
    for (const small of [true, false]) {
      for (let argument = 0; argument < 3; argument++) {
        for (let bit = 0; bit < 18; bit++) {
          let changed = 0;
          const trials = 400;
          for (let trial = 0; trial < trials; trial++) {
            const a = [u32(), u32(), u32()].map((v) => small ? v % 64 : v) as [
              number,
              number,
              number,
            ];
            const b = [...a] as typeof a;
            b[argument] = (b[argument] ^ 1 << bit) >>> 0;
            changed += ones(gumbelHash(...a) ^ gumbelHash(...b));
          }
          assertAlmostEquals(changed / trials, 16, 1);
        }
      }
    }
  },
);

Deno.test("noise of neighboring steps, seeds and ids does not correlate", () => {
  const n = 20000;
  const correlation = (
    f: (i: number) => number,
    g: (i: number) => number,
  ) => {
    // Uniform values have mean 1/2 and variance 1/12.
    let sum = 0;
    for (let i = 0; i < n; i++) {
      sum += (f(i) / 2 ** 32 - 0.5) * (g(i) / 2 ** 32 - 0.5);
    }
    return sum * 12 / n;
  };
  const base = (i: number) => gumbelHash(0, 0, i);
  for (let d = 1; d < 20; d++) {
    for (
      const other of [
        (i: number) => gumbelHash(0, d, i),
        (i: number) => gumbelHash(d, 0, i),
        (i: number) => gumbelHash(d, d, i),
        (i: number) => gumbelHash(0, 0, i + d),
      ]
    ) {
      assertAlmostEquals(correlation(base, other), 0, 4 / Math.sqrt(n));
    }
  }
});

Deno.test("the hash is fixed, so that seeds keep their meaning", () => {
  const fmix = (h: bigint) => {
    const u32 = (v: bigint) => v & 0xffffffffn;
    h = u32((h ^ h >> 16n) * 0x85ebca6bn);
    h = u32((h ^ h >> 13n) * 0xc2b2ae35n);
    return h ^ h >> 16n;
  };
  const wrap = (v: number, c: bigint) => (BigInt(v) + c) & 0xffffffffn;
  const max = 2 ** 32 - 1;
  for (const [seed, step, id] of [[0, 0, 0], [1, 2, 3], [max, max, max]]) {
    const key = fmix(
      fmix(wrap(seed, 0x9e3779b9n)) ^ fmix(wrap(step, 0x7f4a7c15n)),
    );
    const hash = fmix(key ^ fmix(wrap(id, 0x94d049bbn)));
    assertEquals(gumbelHash(seed, step, id), Number(hash));
  }
});

randomTest(
  "the Gumbel draw in f32 is close to that in f64",
  (source) => {
    const f = Math.fround;
    const f32 = (hash: number) => {
      const x = f(Math.min(f(f(f(hash) + 0.5) * 2 ** -32), 1 - 2 ** -24));
      const r = f(x / f(2 - x)), q = f(r * r);
      let sum = f(1 / 13);
      for (const odd of [11, 9, 7, 5, 3, 1]) sum = f(f(1 / odd) + f(q * sum));
      const series = f(f(2 * r) * sum);
      return f(-Math.log(x < 0.5 ? series : f(-Math.log(f(1 - x)))));
    };
    const random = uniform(source);
    const hashes = [
      0,
      1,
      2,
      255,
      2 ** 27 - 1,
      2 ** 27,
      2 ** 32 - 2,
      2 ** 32 - 1,
    ];
    for (let i = 0; i < 20000; i++) {
      hashes.push(Math.floor(random() * 2 ** (1 + Math.floor(random() * 32))));
    }
    for (const hash of hashes) {
      assert(Number.isFinite(gumbel(hash)));
      // f32 rounds x, which −log(−log(1 − x)) magnifies where x is near 1.
      const x = Math.min((hash + 0.5) / 2 ** 32, 1 - 2 ** -24);
      const slope = -1 / ((1 - x) * Math.log1p(-x));
      const off = 4e-6 + 2 ** -24 * x * slope;
      assertAlmostEquals(f32(hash), gumbel(hash), off, `hash ${hash}`);
    }
  },
);
