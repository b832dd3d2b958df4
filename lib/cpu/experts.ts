/**
 * Linear layers of experts on the CPU: rows are grouped by expert, so that each matrix is
 * read once.
 *
 * @module
 */
import { type Matrix, type MatrixPart, piecesOf } from "../formats/matrix.ts";
import type { CpuTensor } from "../formats/tensor.ts";
import type { CpuKernels, Work } from "./kernels.ts";

/** Which experts rows use. */
export interface Chosen {
  rows: number;
  used: number;
  /** Number of each row's experts, and their weights: `[rows, used]`. */
  expert(row: number, s: number): number;
  weight(row: number, s: number): number;
}

/** Reads what `chooseExperts` returns. */
export function chosenOf({ data, shape: [all, used] }: CpuTensor): Chosen {
  return {
    rows: all / 2,
    used,
    expert: (row, s) => data[2 * row * used + s],
    weight: (row, s) => data[(2 * row + 1) * used + s],
  };
}

/**
 * Chooses the experts of each row of scores; see `Ops.chooseExperts`. A score that is NaN or
 * Infinity makes all weights NaN.
 */
export function choose(
  scores: Float32Array,
  count: number,
  normalized: boolean,
  into: Float32Array,
  used: number,
): void {
  for (let r = 0; r < scores.length / count; r++) {
    const row = scores.subarray(r * count, (r + 1) * count);
    const order = Array.from(row, (_, e) => e)
      .sort((a, b) => row[b] - row[a] || a - b).slice(0, used);
    const share = Array.from(row, (score) => Math.exp(score - row[order[0]]));
    const over = normalized ? order.map((e) => share[e]) : share;
    const total = over.reduce((sum, value) => sum + value, 0);
    into.set(order, 2 * r * used);
    const sound = row.every((score) => score < Infinity);
    into.set(
      order.map((e) => sound ? share[e] / total : NaN),
      (2 * r + 1) * used,
    );
  }
}

/**
 * Multiplies pairs of a row and an expert: `[rows, k]` or `[rows · used, k]`, by `n` rows
 * of the matrix per expert, those of expert 0 first at `begin`. Row `pair` of the result
 * goes to `column` of row `pair` of `out`.
 *
 * @param apart whether each pair has a row of `x` of its own
 */
export function* multiplyExperts(
  kernels: CpuKernels,
  x: Float32Array,
  w: Matrix<CpuTensor>,
  { rows, used, expert }: Chosen,
  { begin, n, apart, out, stride, column }: {
    begin: number;
    n: number;
    apart: boolean;
    out: Float32Array;
    stride: number;
    column: number;
  },
): Work {
  const { k } = w, pairs = new Map<number, number[]>();
  for (let pair = 0; pair < rows * used; pair++) {
    const e = expert(Math.floor(pair / used), pair % used);
    const known = pairs.get(e);
    if (known) known.push(pair);
    else pairs.set(e, [pair]);
  }
  for (const [e, own] of pairs) {
    const from = new Float32Array(own.length * k);
    own.forEach((pair, i) => {
      const row = apart ? pair : Math.floor(pair / used);
      from.set(x.subarray(row * k, (row + 1) * k), i * k);
    });
    const y = new Float32Array(own.length * n);
    const first = begin + e * n;
    for (const piece of piecesOf(w, first, n)) {
      const to = { data: y, stride: n, column: piece.row - first };
      const part = partOf(piece.part, piece.at, piece.rows, k);
      yield* kernels.matmul(
        { data: from, rows: own.length, k },
        part,
        to,
        "store",
      );
    }
    own.forEach((pair, i) =>
      out.set(y.subarray(i * n, (i + 1) * n), pair * stride + column)
    );
  }
}

/** Rows `at` to `at + rows` of the planes of a part. */
function partOf(
  { format, planes }: MatrixPart<CpuTensor>,
  at: number,
  rows: number,
  k: number,
): MatrixPart<CpuTensor> {
  const views = format.planes(k).map(({ rowBytes }, i): CpuTensor => {
    const { dtype, data } = planes[i], size = data.BYTES_PER_ELEMENT;
    const end = Math.ceil((at + rows) * rowBytes / size);
    const own = data.subarray(at * rowBytes / size, end);
    return { dtype, shape: [own.length], data: own };
  });
  return { begin: at, rows, format, planes: views };
}
