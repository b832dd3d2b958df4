/**
 * How many tokens of a prompt go through the model in one pass.
 *
 * @module
 */

/** Where matmuls reach their full rate (bench/log.md, "f16 gemm"); more takes more memory. */
const MOST_ROWS = 2048;
/** Rows whose logits are kept at most: a vocabulary is wide. */
const MOST_LOGITS = 256;

/**
 * Tokens of a pass: a power of 2, because scratch memory grows by doubling, whose widest
 * activation, of `width` f32 values a token, fits a binding of `bytes`.
 */
export function choosePassRows(width: number, bytes: number): number {
  const fit = bytes / 4 / width;
  return Math.min(MOST_ROWS, Math.max(1, 2 ** Math.floor(Math.log2(fit))));
}

/** Tokens of a pass that keeps the logits of each: they take half a binding at most. */
export function chooseLogitsRows(
  passRows: number,
  vocabSize: number,
  bytes: number,
): number {
  const fit = Math.floor(bytes / 2 / 4 / vocabSize);
  return Math.max(1, Math.min(MOST_LOGITS, passRows, fit));
}
