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
 * Rows on the CPU. Not measured: weights are unpacked again for every 128 rows
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

/** A pass for whose tokens there are `padded` rows; what the last rows compute is not used. */
export interface PaddedPass extends PromptPass {
  padded: number;
}

/**
 * Divides a prompt of `length` tokens into passes of up to `rows` tokens; on a software
 * renderer, few enough that no dispatch takes long. `all` is whether each token needs
 * logits; such passes are not padded. The first `cached` tokens need no pass, and a sequence
 * has `room` positions. Depends on no measurement, so that results are reproducible.
 */
export function promptPasses(
  length: number,
  rows: number,
  work: ModelWork,
  { software, all, room, cached = 0 }: {
    software: boolean;
    all: boolean;
    room: number;
    cached?: number;
  },
): PaddedPass[] {
  const passes: PaddedPass[] = [];
  for (let begin = cached; begin < length;) {
    const left = length - begin;
    const pass = all
      ? exactPass(
        begin,
        left,
        software ? softwareRows(begin, rows, work, all) : rows,
      )
      : choosePass({ begin, left, room }, rows, work, software);
    passes.push(pass);
    begin += pass.tokens;
  }
  return passes;
}

function exactPass(begin: number, left: number, most: number): PaddedPass {
  const tokens = Math.min(most, left);
  return { begin, tokens, padded: tokens };
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
 * The sizes of recorded passes, so that prompts of any length need few. Padding adds at most
 * a quarter of the rows, from 512 on an eighth. Not measured.
 */
const PASS_SIZES = [
  ...[1, 2, 4, 6, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 112, 128, 160, 192],
  ...[224, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960, 1024],
  ...[1152, 1280, 1408, 1536, 1664, 1792, 1920, 2048],
];

/**
 * Chooses the pass for the next of `left` tokens of a text after the first `begin`: of up
 * to `rows` tokens, or more than are left, which are then padded, if that stays within
 * `room` positions.
 */
export function choosePass(
  { begin, left, room }: { begin: number; left: number; room: number },
  rows: number,
  work: ModelWork,
  software: boolean,
): PaddedPass {
  const most = software ? softwareRows(begin, rows, work, false) : rows;
  const fits = PASS_SIZES.filter((n) => n <= Math.min(most, room - begin));
  const padded = fits.find((n) => n >= left) ?? fits.at(-1)!;
  return { begin, tokens: Math.min(left, padded), padded };
}

/**
 * The most tokens of a text that is read together with others. Not measured: longer ones
 * fill a pass by themselves.
 */
const MOST_SHORT = 128;
/** The fewest tokens that such texts are padded to, so that there are few passes. */
const LEAST_SHORT = 16;

/** Tokens of a text that are read, and the pages of its positions. */
export interface ReadRange extends Readonly<Record<"begin" | "end", number>> {
  readonly pages: readonly number[];
}

/**
 * Divides parts of texts, in their order, into passes of several short ones, each padded to
 * as many tokens, and of one. A text that begins in pages which others of a pass fill waits
 * for the next. Passes have up to `rows` rows, and texts `room` positions.
 */
export function readTogether(
  parts: readonly ReadRange[],
  { rows, room, page, work, software }: {
    rows: number;
    room: number;
    page: number;
    work: ModelWork;
    software: boolean;
  },
): { count: number; tokens: number }[] {
  const groups: { count: number; tokens: number }[] = [];
  const filled = new Set<number>();
  for (const { begin, end, pages } of parts) {
    const last = groups.at(-1), before = Math.floor(begin / page);
    const isShort = end - begin <= MOST_SHORT && begin + MOST_SHORT <= room;
    const tokens = isShort
      ? Math.max(LEAST_SHORT, powerOf2(end - begin))
      : Infinity;
    const each = Math.max(tokens, last?.tokens ?? 0);
    const most = software ? softwareRows(begin, rows, work, false) : rows;
    const joins = last && each * powerOf2(last.count + 1) <= most &&
      !pages.slice(0, before).some((at) => filled.has(at));
    if (joins) {
      last.count++;
      last.tokens = each;
    } else {
      groups.push({ count: 1, tokens });
      filled.clear();
    }
    for (const at of pages.slice(before)) filled.add(at);
  }
  return groups;
}

const powerOf2 = (least: number) => 2 ** Math.ceil(Math.log2(least));

/** Token ids for a pass of `padded` rows: the last one fills it up. */
export function paddedTo(
  padded: number,
  ids: readonly number[],
): Uint32Array<ArrayBuffer> {
  const all = new Uint32Array(padded).fill(ids.at(-1)!);
  all.set(ids);
  return all;
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
  if (kernel === "feedForward") return dims.k * (dims.n + dims.inner);
  return /^gem/.test(kernel) ? dims.m * dims.n * dims.k : 0;
}
