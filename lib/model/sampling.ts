/**
 * Sampling the next token: the options and the CPU implementation. Given the same seed,
 * the GPU kernels make the same draws.
 *
 * @module
 */
import {
  FAULT,
  HIGHEST_SCORE,
  MOST_BIASES,
  MOST_LOGPROBS,
} from "../dispatch/sampling.ts";
import { described, OptionError, testKind, wrongOption } from "../errors.ts";
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
   * From 0.001 to 1000; above 1, makes tokens in the prompt and the output less likely (CTRL,
   * https://arxiv.org/abs/1909.05858).
   */
  repetitionPenalty?: number;
  /**
   * From -2 to 2: what is subtracted from the logit of a token that was generated before.
   * Unlike `repetitionPenalty`, this and `frequencyPenalty` ignore the prompt, as in
   * OpenAI's API.
   */
  presencePenalty?: number;
  /** From -2 to 2: is subtracted once for each time that a token was generated. */
  frequencyPenalty?: number;
  /**
   * Numbers from -100 to 100 by token id, which are added to the model's logits before the
   * penalties apply, for at most 1,024 tokens. In effect, -100 bans a token and 100 forces
   * it.
   */
  logitBias?: Readonly<Record<number, number>>;
  /**
   * Reports the log probability of each token, and those of as many of the most likely
   * ones, from 0 to 20. They are log(softmax(logits)) after biases, penalties and a mask,
   * before temperature, top-k, top-p and min-p. OpenAI's documentation does not say at
   * which point theirs are; vLLM's are by default from before everything (`raw_logprobs`).
   */
  logprobs?: number;
  /** A 32-bit integer; the same seed gives the same text. Random by default. */
  seed?: number;
}

/**
 * Options with every default filled in. `temperature: 0` is greedy; without `logprobs`,
 * there are none.
 */
export type Sampling =
  & Readonly<Required<Omit<SamplingOptions, "logprobs">>>
  & Readonly<Pick<SamplingOptions, "logprobs">>;

/** The log probability of a token. */
export interface TokenLogprob {
  /** The token's id in the vocabulary. */
  tokenId: number;
  /** The natural logarithm of its probability; at most 0. */
  logprob: number;
}

/** What {@linkcode SamplingOptions.logprobs} asks for. */
export interface Logprobs {
  /** The log probability of the token that was chosen. */
  logprob: number;
  /**
   * The most likely tokens, in order. Those that cannot come next are left out, so there may
   * be fewer than asked for.
   */
  top: readonly TokenLogprob[];
}

/** Token ids with, if they were asked for, as many log probabilities. */
export type SampledTokens = readonly number[] & {
  readonly logprobs?: readonly Logprobs[];
};

/** Which tokens may come next; asked before each token of a sequence. */
export interface TokenMask {
  /**
   * Sets bit `id % 32` of word `floor(id / 32)` of `bits`, which are all 0, for each token
   * that may come next. Returns false, whatever the bits, if any token may.
   */
  fill(bits: Uint32Array): boolean;
  /** Tells it the token that was sampled. */
  accept(tokenId: number): void;
}

/** What samplers need of a {@linkcode TokenMask}. */
export type MaskSource = Pick<TokenMask, "fill">;

/**
 * Asks masks what may come next in each sequence. Returns bits as {@linkcode TokenMask}
 * describes; undefined where there is no mask, or it allows everything.
 */
export function allowedNext(
  masks: readonly (MaskSource | undefined)[],
  vocab: number,
): (Uint32Array<ArrayBuffer> | undefined)[] {
  return masks.map((mask) => {
    if (!mask) return undefined;
    const bits = new Uint32Array(Math.ceil(vocab / 32));
    return mask.fill(bits) ? bits : undefined;
  });
}

/** The options that are numbers. */
type NumericOption = Exclude<keyof SamplingOptions, "logitBias">;

const PENALTY: [(value: number) => boolean, string] = [
  (p) => p >= -2 && p <= 2,
  "from -2 to 2",
];

/** The range of each option, as a condition and in words. */
const RANGES: Record<
  NumericOption,
  [inRange: (value: number) => boolean, range: string]
> = {
  ...SAMPLING_RANGES,
  presencePenalty: PENALTY,
  frequencyPenalty: PENALTY,
  logprobs: [
    (n) => n >= 0 && n <= MOST_LOGPROBS && Number.isInteger(n),
    `an integer from 0 to ${MOST_LOGPROBS}`,
  ],
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
 * @param vocab the number of tokens, which limits the ids of `logitBias`
 * @throws {OptionError} if an option is not finite or out of its range.
 */
export function resolveSampling(
  options: SamplingOptions,
  defaults: GenerationDefaults = {},
  vocab = Infinity,
): Sampling {
  function given(key: NumericOption): number | undefined {
    const value = options[key];
    return value === undefined ? undefined : inRange(key, value);
  }
  const pick = (key: keyof typeof SAMPLING_RANGES, otherwise: number) =>
    given(key) ?? defaults[key] ?? otherwise;
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
    presencePenalty: given("presencePenalty") ?? 0,
    frequencyPenalty: given("frequencyPenalty") ?? 0,
    logitBias: checkBias(options.logitBias ?? {}, vocab),
    logprobs: given("logprobs"),
    seed: given("seed") ?? crypto.getRandomValues(new Uint32Array(1))[0],
  };
}

/** Returns a copy. */
function checkBias(
  bias: Readonly<Record<number, number>>,
  vocab: number,
): Record<number, number> {
  const key = "logitBias", must = testKind(bias, "object");
  if (must) throw wrongOption("Cannot sample", key, bias, must);
  const wrong = (what: string) =>
    new OptionError(key, `Cannot sample: ${key} ${what}`);
  const entries = Object.entries(bias);
  if (entries.length > MOST_BIASES) {
    throw wrong(
      `has ${entries.length} tokens, must have at most ${MOST_BIASES}`,
    );
  }
  for (const [id, value] of entries) {
    // Keys are text in any case; "1e3" and "01" would be other tokens than they seem.
    if (!/^(0|[1-9]\d*)$/.test(id) || Number(id) >= vocab) {
      throw wrong(
        `has token ${described(id)}, must have ids ${
          vocab === Infinity ? "of tokens" : `from 0 to ${vocab - 1}`
        }`,
      );
    }
    if (!(typeof value === "number" && value >= -100 && value <= 100)) {
      throw wrong(
        `of token ${id} is ${described(value)}, must be from -100 to 100`,
      );
    }
  }
  return Object.fromEntries(entries);
}

function inRange(key: NumericOption, value: number): number {
  const [test, range] = RANGES[key];
  if (!Number.isFinite(value) || !test(value)) {
    throw wrongOption("Cannot sample", key, value, range);
  }
  return value;
}

/** Whether the options change logits before sampling. */
export function adjustsLogits(
  { repetitionPenalty, presencePenalty, frequencyPenalty, logitBias }: Sampling,
): boolean {
  return repetitionPenalty !== 1 || presencePenalty !== 0 ||
    frequencyPenalty !== 0 || Object.keys(logitBias).length > 0;
}

/** A token's history: this bit if it is in the prompt. */
const IN_PROMPT = 0x80000000;

/**
 * What penalties depend on, u32 `[vocab]`: the highest bit is set if the token is in the
 * prompt, the others count how often it was generated.
 */
export type History = Uint32Array<ArrayBuffer>;

/** Creates the history of a sequence. */
export function historyOf(
  vocab: number,
  prompt: Iterable<number>,
  generated: Iterable<number> = [],
): History {
  const history = new Uint32Array(vocab);
  for (const id of prompt) history[id] = IN_PROMPT;
  for (const id of generated) history[id]++;
  return history;
}

const FAULT_TEXT: Readonly<Record<number, string>> = {
  [FAULT.nan]: "hold NaN, must be numbers",
  [FAULT.infinity]: "hold Infinity, must be finite or -Infinity",
  [FAULT.none]: "are all -Infinity, at least one must be finite",
  [FAULT.masked]:
    "are -Infinity for every token that the mask allows, at least one must be finite",
};

/** Says what is wrong with logits if `id` is a `FAULT` and not a token. */
export const faultText = (id: number): string | undefined => FAULT_TEXT[id];

/** The token to continue with after sampling `id`, which may be a `FAULT`. */
export const validToken = (id: number): number => id in FAULT_TEXT ? 0 : id;

/**
 * Samples the next token of each sequence in a batch from its row of logits, and counts
 * it in the sequence's history. Sequence `s` draws with the seed `(seed + s) mod 2³²`.
 * `allowed` are the bits that masks have filled, undefined where there are none.
 */
export function sampleEach(
  rows: readonly Float32Array[],
  sampling: Sampling,
  histories: readonly History[],
  step: number,
  allowed: readonly (Uint32Array | undefined)[] = [],
): SampledTokens {
  const logprobs: Logprobs[] = [];
  const ids = rows.map((row, s) => {
    const own = { ...sampling, seed: (sampling.seed + s) >>> 0 };
    const scores = adjusted(row, sampling, histories[s], allowed[s]);
    const id = sample(scores, own, step, allowed[s] !== undefined);
    histories[s][id]++; // none for a fault
    if (sampling.logprobs !== undefined) {
      logprobs.push(logprobsOf(scores, validToken(id), sampling.logprobs));
    }
    return id;
  });
  return sampling.logprobs === undefined
    ? ids
    : Object.assign(ids, { logprobs });
}

/**
 * Samples the next token. `logits`, `[vocab]`, are {@linkcode adjusted} and are not changed;
 * `step` counts the tokens generated before this one.
 *
 * Temperature, top-k, top-p and min-p apply in this order, as in transformers. The draw is
 * the Gumbel-max trick: of the kept tokens, the one with the largest
 * `(logit − max) / temperature + gumbel(gumbelHash(seed, step, id))` wins. That is
 * distributed as softmax and needs no state and no running sum, so a GPU can make the
 * same choice. Ties go to the lowest id.
 *
 * Returns a `FAULT` if a logit is NaN or +Infinity, or none is finite; `masked` says why
 * that may be.
 */
export function sample(
  logits: Float32Array,
  { temperature, topK = 0, topP = 1, minP = 0, seed }:
    & Pick<
      SamplingOptions,
      "topK" | "topP" | "minP"
    >
    & { temperature: number; seed: number },
  step: number,
  masked = false,
): number {
  const best = mostLikely(logits, masked);
  if (temperature === 0 || faultText(best) !== undefined) return best;
  const scaled = (id: number) => (logits[id] - logits[best]) / temperature;

  let kept = topK > 0 && topK < logits.length
    ? atLeast(logits, kthLargest(logits, topK))
    : atLeast(logits, -Infinity);
  if (topP < 1) kept = nucleus(kept, scaled, topP);

  // min-p keeps exp(scaled) ≥ minP, since the most likely token has exp(0).
  const lowest = Math.log(minP);
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

/**
 * Logits after what changes them before sampling, in this order: biases are added;
 * `repetitionPenalty` multiplies what is below 0 and divides the rest, for tokens that have
 * a history; `frequencyPenalty` is subtracted for each time that a token was generated, and
 * `presencePenalty` if it was; tokens whose bit in `allowed` is 0 become -Infinity. Logits
 * that are not finite stay as they are. Returns `logits` itself if there is nothing to do.
 */
export function adjusted(
  logits: Float32Array,
  {
    repetitionPenalty: repetition = 1,
    presencePenalty: presence = 0,
    frequencyPenalty: frequency = 0,
    logitBias = {},
  }: SamplingOptions,
  history: Uint32Array,
  allowed?: Uint32Array,
): Float32Array {
  const biases = Object.entries(logitBias);
  const penalizes = repetition !== 1 || presence !== 0 || frequency !== 0;
  if (!penalizes && !allowed && biases.length === 0) return logits;
  const bounded = (x: number) =>
    Math.min(Math.max(x, -HIGHEST_SCORE), HIGHEST_SCORE);
  const scores = logits.slice();
  for (const [id, bias] of biases) {
    const at = Number(id);
    if (Number.isFinite(scores[at])) scores[at] = bounded(scores[at] + bias);
  }
  if (penalizes) {
    for (let id = 0; id < scores.length; id++) {
      const known = history[id], x = scores[id];
      if (known === 0 || !Number.isFinite(x)) continue;
      const times = known & ~IN_PROMPT;
      const penalty = times * frequency + (times > 0 ? presence : 0);
      scores[id] = bounded(
        (x < 0 ? x * repetition : x / repetition) - penalty,
      );
    }
  }
  if (allowed) {
    for (let id = 0; id < scores.length; id++) {
      const out = (allowed[id >>> 5] >>> (id & 31) & 1) === 0;
      if (out && Number.isFinite(scores[id])) scores[id] = -Infinity;
    }
  }
  return scores;
}

/** The log probabilities of logits `[vocab]`, f64 `[vocab]`. */
export function logSoftmax(logits: Float32Array): Float64Array {
  const top = logits.reduce((most, x) => Math.max(most, x), -Infinity);
  let mass = 0;
  for (let id = 0; id < logits.length; id++) mass += Math.exp(logits[id] - top);
  const log = Math.log(mass);
  return Float64Array.from(logits, (x) => x - top - log);
}

/** The log probabilities of `token` and of the `n` most likely tokens. */
export function logprobsOf(
  logits: Float32Array,
  token: number,
  n: number,
): Logprobs {
  const all = logSoftmax(logits), most = Math.min(n, logits.length);
  const ids = most === 0
    ? new Uint32Array()
    : atLeast(logits, Math.max(kthLargest(logits, most), -Number.MAX_VALUE));
  const top = [...ids].sort((a, b) => logits[b] - logits[a] || a - b)
    .slice(0, most);
  return {
    logprob: all[token],
    top: top.map((tokenId) => ({ tokenId, logprob: all[tokenId] })),
  };
}

/** The token with the largest logit, or a `FAULT` if logits cannot be sampled from. */
function mostLikely(logits: Float32Array, masked: boolean): number {
  let best = -1, most = -Infinity;
  for (let id = 0; id < logits.length; id++) {
    const logit = logits[id];
    if (logit !== logit) return FAULT.nan;
    if (logit > most) {
      most = logit;
      best = id;
    }
  }
  if (most === Infinity) return FAULT.infinity;
  if (best >= 0) return best;
  return masked ? FAULT.masked : FAULT.none;
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
