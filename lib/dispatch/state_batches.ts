/**
 * Which texts share a forward pass when only the state after each one's last token is
 * needed. Shorter texts of a pass are padded at their end, which changes nothing before it:
 * attention is causal.
 *
 * @module
 */

/** Texts that run together, each padded to `tokens` tokens. */
export interface StateBatch {
  /** Indices of the texts. */
  readonly texts: readonly number[];
  readonly tokens: number;
}

/** How a device runs such passes. */
export interface StatePasses {
  /** What a pass costs besides its rows, in rows, such as reading all weights. */
  readonly overhead: number;
  /** Pads a length, so that few shapes occur where each is recorded. */
  padded(tokens: number): number;
}

/** Not measured by itself: recording a new shape takes longer, running a known one less. */
export const GPU_PASSES: StatePasses = { overhead: 64, padded: paddedTokens };

/** Not measured: the weights of one pass take as long to read as a few rows to multiply. */
export const CPU_PASSES: StatePasses = {
  overhead: 4,
  padded: (tokens) => tokens,
};

/** Tokens that are run before others may use the device. Not measured: some 0.1 s on a fast GPU. */
const SHARE_TOKENS = 4096;

/** Divides texts of these lengths into shares of neighbors by length, which share passes. */
export function* stateShares(lengths: readonly number[]): Generator<number[]> {
  const order = [...lengths.keys()].sort((a, b) => lengths[a] - lengths[b]);
  let share: number[] = [], tokens = 0;
  for (const text of order) {
    if (share.length > 0 && tokens + lengths[text] > SHARE_TOKENS) {
      yield share;
      [share, tokens] = [[], 0];
    }
    share.push(text);
    tokens += lengths[text];
  }
  if (share.length > 0) yield share;
}

/** The fewest tokens of a pass; with one, attention would run as in a decode step. */
const LEAST_TOKENS = 4;

/**
 * A length that `tokens` tokens are padded to: one of eight per power of 2, so that few
 * shapes occur.
 */
export function paddedTokens(tokens: number): number {
  const step = 2 ** (Math.floor(Math.log2(tokens)) - 3);
  const whole = Math.max(LEAST_TOKENS, step);
  return Math.ceil(tokens / whole) * whole;
}

/**
 * Divides texts of these lengths among passes of up to `rows` rows, so that the least is
 * computed: neighbors by length share a pass, which a program over the sorted lengths
 * finds. A text that needs more rows is alone, and not padded.
 */
export function chooseStateBatches(
  lengths: readonly number[],
  rows: number,
  { overhead, padded: pad }: StatePasses,
): StateBatch[] {
  const batches: StateBatch[] = [];
  const order: number[] = [];
  for (const [text, tokens] of lengths.entries()) {
    if (pad(tokens) <= rows) order.push(text);
    else batches.push({ texts: [text], tokens });
  }
  order.sort((a, b) => lengths[b] - lengths[a] || a - b);
  const padded = order.map((text) => pad(lengths[text]));
  // The least cost of the texts from each one on, and how many of them run first.
  const cost = new Float64Array(order.length + 1);
  const count = new Uint32Array(order.length);
  for (let i = order.length - 1; i >= 0; i--) {
    const most = Math.min(order.length - i, Math.floor(rows / padded[i]));
    cost[i] = Infinity;
    for (let some = most; some >= 1; some--) {
      const all = cost[i + some] + some * padded[i] + overhead;
      if (all < cost[i]) [cost[i], count[i]] = [all, some];
    }
  }
  for (let i = 0; i < order.length; i += count[i]) {
    const texts = order.slice(i, i + count[i]);
    batches.push({ texts, tokens: padded[i] });
  }
  return batches;
}

/** Texts whose states are read together: 16 MB with the widest Qwen3. Not measured. */
const MOST_UNREAD = 1024;

/** Divides batches into lists whose states are read together. */
export function readTogether(batches: readonly StateBatch[]): StateBatch[][] {
  const parts: StateBatch[][] = [];
  let texts = Infinity;
  for (const batch of batches) {
    texts += batch.texts.length;
    if (texts > MOST_UNREAD) {
      parts.push([]);
      texts = batch.texts.length;
    }
    parts.at(-1)!.push(batch);
  }
  return parts;
}

/** The tokens of a batch, padded, and the row of each text's last token. */
export function padBatch(
  texts: readonly (readonly number[])[],
  tokens: number,
): { input: Uint32Array<ArrayBuffer>; ends: Uint32Array<ArrayBuffer> } {
  const input = new Uint32Array(texts.length * tokens);
  texts.forEach((text, i) => input.set(text, i * tokens));
  const ends = Uint32Array.from(
    texts,
    ({ length }, i) => i * tokens + length - 1,
  );
  return { input, ends };
}
