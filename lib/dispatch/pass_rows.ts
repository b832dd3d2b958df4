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
 * (lib/cpu/jobs.ts), so more rows would save little, and an abort would wait longer, since
 * signals are only checked between passes.
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
