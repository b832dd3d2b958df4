/**
 * Sampling the next token: the options and the CPU implementation. Given the same seed,
 * the GPU kernels make the same draws.
 *
 * @module
 */
import { FAULT, HIGHEST_SCORE } from "../dispatch/sampling.ts";
import { wrongOption } from "../errors.ts";
import {
  type GenerationDefaults,
  SAMPLING_RANGES,
} from "../checkpoint/generation_config.ts";
import { fmix32 } from "../fmix32.ts";

/** Options for sampling the next token. */
export interface SamplingOptions {
  /** Divides the logits; must be ≥ 0. 0 always takes the most likely token. */
  temperature?: number;
  /** Keeps the `topK` most likely tokens, and any that tie with the last; 0 keeps all. */
  topK?: number;
  /** Keeps the most likely tokens whose probabilities add up to this, 0 < topP ≤ 1. */
  topP?: number;
  /** Keeps tokens at least this fraction as likely as the most likely one, 0 ≤ minP ≤ 1. */
  minP?: number;
  /**
   * Above 1, makes tokens in the prompt and the output less likely (CTRL,
   * https://arxiv.org/abs/1909.05858).
   */
  repetitionPenalty?: number;
  /** A 32-bit integer; the same seed gives the same text. Random by default. */
  seed?: number;
}

/** Options with every default filled in. `temperature: 0` is greedy. */
export type Sampling = Readonly<Required<SamplingOptions>>;

/** The range of each option, as a condition and in words. */
const RANGES: Record<
  keyof SamplingOptions,
  [inRange: (value: number) => boolean, range: string]
> = {
  ...SAMPLING_RANGES,
  seed: [
    (s) => s >= 0 && s < 2 ** 32 && Number.isInteger(s),
    "an integer from 0 to 4294967295",
  ],
};

/**
 * Fills in missing options from the checkpoint's `generation_config.json`, else with
 * the defaults of transformers (temperature 1, top-k 50, the rest off). As in
 * transformers, a checkpoint without `doSample` is greedy unless the options set a
 * temperature above 0, `topK`, `topP` or `minP`.
 *
 * ```ts
 * const sampling = resolveSampling({ temperature: 0.6, seed: 7 });
 * console.assert(sampling.topK === 50 && sampling.seed === 7);
 * console.assert(resolveSampling({}).temperature === 0); // greedy
 * ```
 *
 * @throws {OptionError} if an option is not finite or out of its range.
 */
export function resolveSampling(
  options: SamplingOptions,
  defaults: GenerationDefaults = {},
): Sampling {
  function pick(
    key: Exclude<keyof SamplingOptions, "seed">,
    otherwise: number,
  ): number {
    return options[key] !== undefined
      ? inRange(key, options[key])
      : defaults[key] ?? otherwise;
  }
  const temperature = pick("temperature", 1);
  const asked = options.temperature ?? options.topK ?? options.topP ??
    options.minP;
  const greedy = !defaults.doSample && asked === undefined;
  return {
    temperature: greedy ? 0 : temperature,
    topK: pick("topK", 50),
    topP: pick("topP", 1),
    minP: pick("minP", 0),
    repetitionPenalty: pick("repetitionPenalty", 1),
    seed: options.seed !== undefined
      ? inRange("seed", options.seed)
      : crypto.getRandomValues(new Uint32Array(1))[0],
  };
}

function inRange(key: keyof SamplingOptions, value: number): number {
  const [test, range] = RANGES[key];
  if (!Number.isFinite(value) || !test(value)) {
    throw wrongOption("Cannot sample", key, value, range);
  }
  return value;
}

/**
 * Marks tokens that a repetition penalty applies to: sets bit `id % 32` of word
 * `floor(id / 32)` for each id.
 */
export function markSeen(seen: Uint32Array, ids: Iterable<number>): void {
  for (const id of ids) seen[id >>> 5] |= 1 << (id & 31);
}

/** Creates a bit set in which `ids` are marked (see {@linkcode markSeen}). */
export function seenBits(
  vocab: number,
  ids: Iterable<number>,
): Uint32Array<ArrayBuffer> {
  const seen = new Uint32Array(Math.ceil(vocab / 32));
  markSeen(seen, ids);
  return seen;
}

const FAULT_TEXT: Readonly<Record<number, string>> = {
  [FAULT.nan]: "hold NaN, must be numbers",
  [FAULT.infinity]: "hold Infinity, must be finite or -Infinity",
  [FAULT.none]: "are all -Infinity, at least one must be finite",
};

/** Says what is wrong with logits if `id` is a `FAULT` and not a token. */
export const faultText = (id: number): string | undefined => FAULT_TEXT[id];

/** The token to continue with after sampling `id`, which may be a `FAULT`. */
export const validToken = (id: number): number => id in FAULT_TEXT ? 0 : id;

/**
 * Samples the next token of each sequence in a batch from its row of logits, and marks
 * it in the sequence's `seen`. Sequence `s` draws with the seed `(seed + s) mod 2³²`.
 */
export function sampleEach(
  rows: readonly Float32Array[],
  sampling: Sampling,
  seen: readonly Uint32Array[],
  step: number,
): number[] {
  return rows.map((row, s) => {
    const own = { ...sampling, seed: (sampling.seed + s) >>> 0 };
    const id = sample(row, own, seen[s], step);
    markSeen(seen[s], [id]);
    return id;
  });
}

/**
 * Samples the next token. `logits` is `[vocab]` and is not changed; `seen` has a bit
 * for each token (see {@linkcode markSeen}) and is read only if there is a penalty;
 * `step` counts the tokens generated before this one.
 *
 * Penalty, temperature, top-k, top-p and min-p apply in this order, as in transformers.
 * The draw is the Gumbel-max trick: of the kept tokens, the one with the largest
 * `(logit − max) / temperature + gumbel(gumbelHash(seed, step, id))` wins. That is
 * distributed as softmax and needs no state and no running sum, so a GPU can make the
 * same choice. Ties go to the lowest id.
 *
 * Returns a `FAULT` if a logit is NaN or +Infinity, or none is finite.
 */
export function sample(
  logits: Float32Array,
  sampling: Sampling,
  seen: Uint32Array,
  step: number,
): number {
  const { temperature, topK, seed } = sampling;
  const fault = faultOf(logits);
  if (fault !== undefined) return fault;
  const scores = penalize(logits, sampling.repetitionPenalty, seen);
  const best = argmax(scores);
  if (temperature === 0) return best;
  const scaled = (id: number) => (scores[id] - scores[best]) / temperature;

  let kept = topK > 0 && topK < scores.length
    ? atLeast(scores, kthLargest(scores, topK))
    : atLeast(scores, -Infinity);
  if (sampling.topP < 1) kept = nucleus(kept, scaled, sampling.topP);

  // min-p keeps exp(scaled) ≥ minP, since the most likely token has exp(0).
  const lowest = Math.log(sampling.minP);
  const key = stepKey(seed, step);
  let token = best;
  let highest = -Infinity;
  // A larger hash cannot win, because gumbel(hash) ≤ −ln(hash / 2³²). Skipping it saves
  // logarithms.
  let useful = Infinity;
  for (let i = 0; i < kept.length; i++) {
    const id = kept[i];
    const hash = keyedHash(key, id);
    if (hash > useful || scaled(id) < lowest) continue;
    const score = scaled(id) + gumbel(hash);
    if (score > highest || (score === highest && id < token)) {
      highest = score;
      token = id;
      useful = Math.exp(-highest) * 2 ** 32 + 1;
    }
  }
  return token;
}

function penalize(
  logits: Float32Array,
  penalty: number,
  seen: Uint32Array,
): Float32Array {
  if (penalty === 1) return logits;
  if (seen.length * 32 < logits.length) {
    throw new Error(
      `Cannot apply a repetition penalty: seen has ${
        seen.length * 32
      } bits, must have one for each of ${logits.length} logits`,
    );
  }
  return logits.map((logit, id) => {
    if ((seen[id >>> 5] >>> (id & 31) & 1) === 0) return logit;
    const score = logit < 0 ? logit * penalty : logit / penalty;
    if (logit === -Infinity) return logit;
    return Math.min(Math.max(score, -HIGHEST_SCORE), HIGHEST_SCORE);
  });
}

/** Why logits cannot be sampled from, if so. */
function faultOf(logits: Float32Array): number | undefined {
  let most = -Infinity;
  for (let id = 0; id < logits.length; id++) {
    const logit = logits[id];
    if (logit !== logit) return FAULT.nan;
    if (logit > most) most = logit;
  }
  if (most === Infinity) return FAULT.infinity;
  return most === -Infinity ? FAULT.none : undefined;
}

function argmax(scores: Float32Array): number {
  let best = -1;
  let max = -Infinity;
  for (let id = 0; id < scores.length; id++) {
    const score = scores[id];
    if (score > max) {
      max = score;
      best = id;
    }
  }
  return best;
}

/** Ids of scores that are at least `threshold`, ascending. */
function atLeast(scores: Float32Array, threshold: number): Uint32Array {
  const ids = new Uint32Array(scores.length);
  let count = 0;
  for (let id = 0; id < scores.length; id++) {
    if (scores[id] >= threshold) ids[count++] = id;
  }
  return ids.subarray(0, count);
}

/** The k-th largest value, by Hoare's selection: linear time, no sort. */
function kthLargest(scores: Float32Array, k: number): number {
  const values = scores.slice();
  let low = 0;
  let high = values.length - 1;
  while (low < high) {
    const pivot = values[k - 1];
    let i = low;
    let j = high;
    while (i <= j) {
      while (values[i] > pivot) i++;
      while (values[j] < pivot) j--;
      if (i > j) break;
      [values[i], values[j]] = [values[j], values[i]];
      i++;
      j--;
    }
    if (j < k - 1) low = i;
    if (k - 1 < i) high = j;
  }
  return values[k - 1];
}

/**
 * Top-p (https://arxiv.org/abs/1904.09751) as transformers computes it: from the least
 * likely token up, tokens are dropped while their cumulative probability is at most
 * 1 − p. Of equally likely tokens the highest id goes first; one token always stays.
 */
function nucleus(
  ids: Uint32Array,
  scaled: (id: number) => number,
  topP: number,
): Uint32Array {
  // Tokens go into buckets by likelihood, so that only the bucket at the boundary is sorted.
  let lowest = -1e-9;
  for (const id of ids) lowest = Math.min(lowest, scaled(id));
  const perUnit = 1023 / Math.min(32, -lowest); // e^−32 is negligible
  const bucketOf = (id: number) =>
    Math.min(1023, Math.floor(-scaled(id) * perUnit));
  const mass = new Float64Array(1024);
  for (const id of ids) mass[bucketOf(id)] += Math.exp(scaled(id));
  const budget = (1 - topP) * mass.reduce((sum, m) => sum + m);

  let boundary = 1023;
  let gone = 0;
  while (boundary > 0 && gone + mass[boundary] <= budget) {
    gone += mass[boundary--];
  }
  // Tokens above the boundary fill the array from the front, those at it from the back.
  const kept = new Uint32Array(ids.length);
  let count = 0;
  let back = ids.length;
  for (const id of ids) {
    const bucket = bucketOf(id);
    if (bucket < boundary) kept[count++] = id;
    else if (bucket === boundary) kept[--back] = id;
  }
  const sorted = kept.slice(back)
    .sort((a, b) => scaled(b) - scaled(a) || a - b);
  kept.set(sorted, count);
  count += sorted.length;
  while (count > 1) {
    gone += Math.exp(scaled(kept[count - 1]));
    if (gone > budget) break;
    count--;
  }
  return kept.subarray(0, count);
}

// fmix32(0) is 0; the constants keep small seeds, steps and ids away from 0 and distinct.
function stepKey(seed: number, step: number): number {
  return fmix32(fmix32(seed + 0x9e3779b9) ^ fmix32(step + 0x7f4a7c15));
}

function keyedHash(key: number, id: number): number {
  return fmix32(key ^ fmix32(id + 0x94d049bb));
}

/**
 * The 32 random bits of token `id` at `step`, in u32 arithmetic (sums and products
 * wrap), so that WGSL computes the same bits:
 *
 *     key  = fmix32(fmix32(seed + 0x9e3779b9) ^ fmix32(step + 0x7f4a7c15))
 *     hash = fmix32(key ^ fmix32(id + 0x94d049bb))
 */
export function gumbelHash(seed: number, step: number, id: number): number {
  return keyedHash(stepKey(seed, step), id);
}

/**
 * A draw from the standard Gumbel distribution: `−ln(e)` with `e = −ln(1 − x)`
 * and `x = (hash + ½) / 2³²`, at most 1 − 2⁻²⁴.
 *
 * Tokens with a small `x` win, and there `log(1 − x)` in f32 is mostly rounding error.
 * For `x < ½` the kernels use a series instead, `e = 2 artanh(x / (2 − x))`.
 */
export function gumbel(hash: number): number {
  const x = Math.min((hash + 0.5) * 2 ** -32, 1 - 2 ** -24);
  return -Math.log(-Math.log1p(-x));
}
