/**
 * How many tokens of a prompt go through the model in one pass.
 *
 * @module
 */

/**
 * Maximum rows on a GPU: f16 matmuls are fast here ("f16 gemm"). More rows were not
 * measured and would take more memory.
 */
const MOST_ROWS = 2048;
/**
 * Maximum rows whose logits are kept. Not measured: with the vocabulary of Qwen3, their
 * logits take 156 MB.
 */
const MOST_LOGITS = 256;

/**
 * Rows on the CPU. Not measured: weights are unpacked again for every 96 rows
 * (lib/cpu/jobs.ts), so more rows would save little and take more memory.
 */
export const CPU_PASS_ROWS = 256;

/**
 * Chooses the tokens per pass so that the widest activation, `width` f32 values per
 * token, fits a binding of `bytes`. It is a power of 2, because scratch memory grows by
 * doubling.
 */
export function choosePassRows(width: number, bytes: number): number {
  const fit = bytes / 4 / width;
  return Math.min(MOST_ROWS, Math.max(1, 2 ** Math.floor(Math.log2(fit))));
}

/**
 * Chooses the tokens per pass when the logits of each are kept: they take at most half
 * a binding.
 */
export function chooseLogitsRows(
  passRows: number,
  vocabSize: number,
  bytes: number,
): number {
  const fit = Math.floor(bytes / 2 / 4 / vocabSize);
  return Math.max(1, Math.min(MOST_LOGITS, passRows, fit));
}

/**
 * Multiplications that a software renderer does in one dispatch in about a tenth of a
 * second (llvmpipe on two cores: 0.08 s for a matmul, 0.15 s for attention). A dispatch
 * cannot be divided, and nothing else happens until it has finished.
 */
const SOFTWARE_WORK = 1 << 28;

/** Multiplications of a model per token. */
export interface ModelWork {
  layers: number;
  /** In the matrices of a layer, and in the largest of them. */
  layer: number;
  largest: number;
  /** In the LM head. */
  head: number;
  /** In the attention of a layer, per position that the token attends to. */
  attention: number;
}

/** A pass of a prompt: `tokens` tokens after the first `begin`. */
export interface PromptPass {
  begin: number;
  tokens: number;
}

/**
 * Divides a prompt of `length` tokens into passes of up to `rows` tokens; on a software
 * renderer, few enough that no dispatch takes long. `all` is whether each token needs
 * logits, and the first `cached` tokens need no pass. Depends on no measurement, so that
 * results are reproducible.
 */
export function promptPasses(
  length: number,
  rows: number,
  work: ModelWork,
  { software, all, cached = 0 }: {
    software: boolean;
    all: boolean;
    cached?: number;
  },
): PromptPass[] {
  const passes: PromptPass[] = [];
  for (let begin = cached; begin < length;) {
    const most = software ? softwareRows(begin, rows, work, all) : rows;
    const tokens = Math.min(most, length - begin);
    passes.push({ begin, tokens });
    begin += tokens;
  }
  return passes;
}

/** As many of `rows` tokens as keep a software renderer's dispatches short. */
function softwareRows(
  begin: number,
  rows: number,
  work: ModelWork,
  all: boolean,
): number {
  let most = rows;
  while (most > 1) {
    const dispatch = Math.max(
      work.largest,
      all ? work.head : 0,
      2 * work.attention * (begin + most), // attention is half as fast
    );
    if (most * dispatch <= SOFTWARE_WORK) break;
    most = Math.ceil(most / 2);
  }
  return most;
}

/**
 * The sizes of recorded passes that read texts, so that texts of any length need few. Not
 * measured: padding adds at most a quarter, and from 512 tokens on at most a fifth.
 */
const READ_SIZES = [
  ...[1, 2, 4, 6, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 112, 128, 160, 192],
  ...[
    224,
    256,
    320,
    384,
    448,
    512,
    640,
    768,
    896,
    1024,
    1280,
    1536,
    1792,
    2048,
  ],
];

/**
 * Chooses the pass for the next of `left` tokens of a text after the first `begin`: of up
 * to `rows` tokens, or more than are left, which are then padded, if that stays within
 * `room` positions.
 */
export function chooseReadPass(
  { begin, left, room }: { begin: number; left: number; room: number },
  rows: number,
  work: ModelWork,
  software: boolean,
): { tokens: number; padded: number } {
  const most = software ? softwareRows(begin, rows, work, false) : rows;
  const fits = READ_SIZES.filter((n) => n <= Math.min(most, room - begin));
  const padded = fits.find((n) => n >= left) ?? fits.at(-1)!;
  return { tokens: Math.min(left, padded), padded };
}

/**
 * Rows of a pass of many short texts: `rows`, on a software renderer as many as keep its
 * dispatches short.
 */
export function chooseStateRows(
  rows: number,
  work: ModelWork,
  software: boolean,
): number {
  while (software && rows > 1) {
    const dispatch = Math.max(work.largest, 2 * work.attention * rows);
    if (rows * dispatch <= SOFTWARE_WORK) break;
    rows /= 2;
  }
  return rows;
}

/** Multiplications of one dispatch of a pass, roughly: of matmuls and attention. */
export function dispatchWork(
  { kernel, dims }: {
    kernel: string;
    dims: Readonly<Record<string, number>>;
  },
  work: ModelWork,
  { begin, tokens }: PromptPass,
): number {
  if (/^attend/.test(kernel)) {
    return 2 * work.attention * dims.m * (begin + tokens);
  }
  if (/^expert/.test(kernel)) return tokens * work.largest;
  return /^gem/.test(kernel) ? dims.m * dims.n * dims.k : 0;
}
