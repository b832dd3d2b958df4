/**
 * Weight matrices: ranges of rows, each with its own format and memory.
 *
 * @module
 */
import { DeviceError } from "../errors.ts";
import type { Format } from "./format.ts";
import { formatNamed } from "./mod.ts";

/** Rows in one format and one set of planes, each of which is one binding. */
export interface MatrixPart<T> {
  /** The part's first row; `rows` is how many rows it has. */
  readonly begin: number;
  readonly rows: number;
  /**
   * Set if the two halves of the matrix (gate, then up) are read together: the first of
   * another `rows` rows, from the second half. They follow the others in the planes, so
   * that one kernel sees both.
   */
  readonly twin?: number;
  readonly format: Format;
  /** One buffer per plane of the format; their element types do not matter. */
  readonly planes: readonly T[];
}

/** A weight matrix `[n, k]`, stored by output row. */
export interface Matrix<T> {
  /** The name in listings and errors: `layers.3.qkv_proj`. */
  readonly label: string;
  readonly n: number;
  readonly k: number;
  readonly parts: readonly MatrixPart<T>[];
  /** The largest absolute value, if it was measured. */
  largest?: number;
  /** Whether many rows multiply by it in f32, even where f16 is allowed. */
  readonly exact?: boolean;
}

/** A part without its memory. */
export type PartLayout = Omit<MatrixPart<never>, "planes">;

/** The number of rows in a part's planes, including twins. */
export const rowsHeld = ({ rows, twin }: PartLayout): number =>
  twin === undefined ? rows : 2 * rows;

/** Bytes of each plane of a part. */
export const planeBytes = (part: PartLayout, k: number): number[] =>
  part.format.planes(k).map(({ rowBytes }) => rowsHeld(part) * rowBytes);

/** Parts are split at multiples of this many rows, so that each is word-aligned. */
const CUT = 8;

/** How {@linkcode layOut} divides a matrix. */
export interface LayoutOptions {
  /** Whether the two halves are read together. */
  pairs?: boolean;
  /** The most bytes of a plane. */
  most?: number;
  /** Rows of each tensor of the stack, if parts must hold them whole. */
  together?: number;
  /** See {@linkcode Matrix.exact}; it does not change the layout. */
  exact?: boolean;
}

/**
 * Lays out tensors with `k` columns that are stacked in one matrix. Neighbors in the
 * same format share a part, unless a plane would exceed `most` bytes or the second would
 * not begin at a whole word. With `pairs`, the two halves are read together: if they share
 * parts, each holds the same range of both; otherwise, each half has its own parts.
 *
 * @throws {Error} if rows are not whole blocks of a format.
 * @throws {DeviceError} if `most` bytes cannot hold eight rows, or those that must be
 * together.
 */
export function layOut(
  label: string,
  stack: readonly { rows: number; format: Format }[],
  k: number,
  { pairs = false, most = Infinity, together: cut = CUT }: LayoutOptions = {},
): PartLayout[] {
  const n = stack.reduce((sum, { rows }) => sum + rows, 0);
  let runs = runsOf(stack, k);
  if (pairs && runs.length > 1) runs = runsOf(stack, k, n / 2);
  for (const { format: { name, elements } } of runs) {
    if (k % elements === 0) continue;
    throw new Error(
      `Cannot lay out ${label} of shape [${n}, ${k}] in ${name}: its rows must be whole blocks of ${elements}`,
    );
  }
  const half = pairs && runs.length === 1 ? n / 2 : undefined;
  return runs.flatMap(({ begin, rows, format }) => {
    const rowBytes = Math.max(
      ...format.planes(k).map(({ rowBytes }) => rowBytes),
    ) * (half === undefined ? 1 : 2);
    const all = half ?? rows;
    const step = all * rowBytes <= most
      ? all
      : Math.floor(most / rowBytes / cut) * cut;
    if (step === 0) {
      throw new DeviceError(
        `Cannot allocate ${label} of shape [${n}, ${k}]: ${cut} rows take ${
          cut * rowBytes
        } bytes in ${format.name}, one buffer holds at most ${most}`,
      );
    }
    const parts: PartLayout[] = [];
    for (let at = 0; at < all; at += step) {
      parts.push({
        begin: begin + at,
        rows: Math.min(step, all - at),
        twin: half === undefined ? undefined : half + at,
        format,
      });
    }
    return parts;
  });
}

/** Merges neighbors in the same format, unless they meet at row `apart`. */
function runsOf(
  stack: readonly { rows: number; format: Format }[],
  k: number,
  apart?: number,
): { begin: number; rows: number; format: Format }[] {
  const runs: { begin: number; rows: number; format: Format }[] = [];
  const wholeWords = ({ rows, format }: { rows: number; format: Format }) =>
    format.planes(k).every(({ rowBytes }) => rows * rowBytes % 4 === 0);
  let n = 0;
  for (const { rows, format } of stack) {
    const last = runs.at(-1);
    const merges = last?.format === format && n !== apart && wholeWords(last);
    if (merges) last.rows += rows;
    else runs.push({ begin: n, rows, format });
    n += rows;
  }
  return runs;
}

/** Lays out a matrix with {@linkcode layOut} and allocates its planes. */
export function allocateMatrix<T>(
  label: string,
  stack: readonly { rows: number; format: Format }[],
  k: number,
  options: LayoutOptions,
  allocate: (bytes: number, label: string) => T,
): Matrix<T> {
  const parts = layOut(label, stack, k, options).map((part) => {
    const names = part.format.planes(k).map(({ name }) => name);
    const planes = planeBytes(part, k).map((bytes, i) =>
      allocate(
        4 * Math.ceil(bytes / 4),
        names.length > 1 ? `${label}.${names[i]}` : label,
      )
    );
    return { ...part, planes };
  });
  const n = stack.reduce((sum, { rows }) => sum + rows, 0);
  return { label, n, k, parts, exact: options.exact };
}

/** A matrix in other memory: `copy` copies each plane. */
export function withPlanes<T, U>(
  matrix: Matrix<T>,
  copy: (plane: T) => U,
): Matrix<U> {
  const parts = matrix.parts.map((part) => ({
    ...part,
    planes: part.planes.map(copy),
  }));
  return { ...matrix, parts };
}

/** Rows of a matrix that are contiguous in the planes of one part. */
export interface Piece<T> {
  part: MatrixPart<T>;
  /**
   * The first row, as an index in the matrix; `at` is its index in the part's planes.
   */
  row: number;
  at: number;
  rows: number;
}

/** Lists the pieces that hold rows `begin` to `begin + rows` of a matrix. */
export function piecesOf<T>(
  { parts }: Matrix<T>,
  begin: number,
  rows: number,
): Piece<T>[] {
  const pieces: Piece<T>[] = [];
  for (const part of parts) {
    const starts = [part.begin, ...part.twin === undefined ? [] : [part.twin]];
    starts.forEach((start, i) => {
      const row = Math.max(begin, start);
      const end = Math.min(begin + rows, start + part.rows);
      if (row >= end) return;
      const at = i * part.rows + row - start;
      pieces.push({ part, row, at, rows: end - row });
    });
  }
  return pieces;
}

/** Rearranges stored rows into the planes of their format. */
export function packed(
  format: Format,
  blocks: Uint8Array<ArrayBuffer>,
  k: number,
  rows: number,
): Uint8Array<ArrayBuffer>[] {
  if (!format.pack) return [blocks];
  const planes = format.planes(k).map(({ rowBytes }) =>
    new Uint8Array(rows * rowBytes)
  );
  format.pack(blocks, k, planes);
  return planes;
}

/** Rearranges the stored rows of a piece, and writes them to its planes. */
export function writePiece<T>(
  { part: { format, planes }, at, rows }: Piece<T>,
  k: number,
  stored: Uint8Array<ArrayBuffer>,
  write: (plane: T, begin: number, bytes: Uint8Array<ArrayBuffer>) => void,
): void {
  packed(format, stored, k, rows).forEach((bytes, i) =>
    write(planes[i], at * bytes.length / rows, bytes)
  );
}

/**
 * Wraps a tensor `[n, k]` or `[k]` as a matrix. Set `pairs` if its two halves are read
 * together.
 */
export function matrixOf<
  T extends { dtype: string; shape: readonly number[] },
>(tensor: T, label = "matrix", pairs = false): Matrix<T> {
  const { shape } = tensor, format = formatNamed(tensor.dtype);
  const n = shape.length > 1 ? shape[0] : 1, k = shape.at(-1)!;
  const parts = layOut(label, [{ rows: n, format }], k, { pairs })
    .map((part) => ({ ...part, planes: [tensor] }));
  return { label, n, k, parts };
}
