/**
 * A stored type of weights. Everything that is known of it is in one file of this
 * folder, listed in mod.ts: how a file stores it, how it lies in memory, how kernels
 * and the CPU read it.
 *
 * @module
 */

/** One buffer of a matrix: its rows, end to end. */
export interface Plane {
  /** Short and in lower case; it names the binding where a format has several. */
  readonly name: string;
  readonly rowBytes: number;
}

/** How a kernel reads a format; see {@linkcode Format.wgsl}. */
export interface WgslReader {
  /** By plane, the WGSL type of an array element. */
  readonly types: readonly string[];
  /** Declarations, one each. */
  readonly code: readonly string[];
}

/** Code that reads array element `at` of a plane. */
export type ReadPlane = (plane: number, at: string) => string;

/** One stored type. */
export interface Format {
  /** In listings, tuning keys and `--dtype`. */
  readonly name: string;
  /** Its name in safetensors files, where they can hold it. */
  readonly safetensors?: string;
  /** Elements and bytes of a block, as files store it. A row is whole blocks. */
  readonly elements: number;
  readonly bytes: number;
  /**
   * Elements of one load, widest first: usually what 16 bytes hold, then 4. Formats
   * whose rows may have any length end with 1.
   */
  readonly loads: readonly number[];
  /** The buffers that a matrix with rows of `k` elements has in memory. */
  planes(k: number): readonly Plane[];
  /**
   * Rearranges whole rows from file order into planes. Absent where the only plane
   * is what the file holds: such rows are copied once, from the file to the device.
   */
  pack?(
    blocks: Uint8Array,
    k: number,
    into: readonly Uint8Array<ArrayBuffer>[],
  ): void;
  /**
   * WGSL that reads buffer `x`, with one of {@linkcode loads}. Loads are numbered
   * through all rows of a buffer, `row · (k / elements) + i`, so that a kernel keeps
   * one u32 per row and adds to it, whatever the planes are:
   *
   * - `x_Raw`: what a load brings, as it is kept in registers;
   * - `x_load(at: u32) -> x_Raw`: load number `at`;
   * - `x_four_0(raw: x_Raw) -> vec4f`, `x_four_1` …: its elements, by fours;
   * - `x_masked(raw: x_Raw, inside: bool) -> x_Raw`: zeros unless `inside`;
   *
   * and for loads of one element `x_at(at: u32) -> f32` alone.
   */
  wgsl(x: string, elements: number, read: ReadPlane): WgslReader;
  /** Row `row` of planes as f32: the definition, and the CPU path without SIMD. */
  unpack(
    planes: readonly Uint8Array[],
    row: number,
    k: number,
    into: Float32Array,
  ): void;
  /** How WebAssembly reads it; without, the CPU path unpacks rows before it multiplies. */
  readonly simd?: SimdReader;
}

/**
 * Eight elements of the only plane, as two vectors of four f32. `V` is the code of a
 * vector.
 */
export interface SimdReader {
  /** Bytes of eight elements. */
  readonly bytes: number;
  /** Which elements the vectors have: the first and last four, or the even and odd ones. */
  readonly order: "straight" | "even first";
  unpack<V>(simd: SimdCode<V>, load: (byte: number) => V): [V, V];
}

/** Instructions on vectors of four lanes; shifts are of unsigned integers' bits. */
export interface SimdCode<V> {
  /** A value that is used more than once. */
  keep(value: V): V;
  /** Four times 32 bits, and four times a number. */
  bits(value: number): V;
  number(value: number): V;
  shiftLeft(value: V, by: number): V;
  /** Keeps the sign. */
  shiftRight(value: V, by: number): V;
  and(a: V, b: V): V;
  or(a: V, b: V): V;
  mul(a: V, b: V): V;
  abs(value: V): V;
  /** All bits set where a ≥ b. */
  greaterEqual(a: V, b: V): V;
}

/** Bytes of a row as a file stores it. */
export const storedRowBytes = (
  { elements, bytes }: Pick<Format, "elements" | "bytes">,
  k: number,
): number => k / elements * bytes;

/** Elements of a wide load of rows of `k` elements; 1 where rows are not whole ones. */
export const wideLoad = ({ loads }: Pick<Format, "loads">, k: number): number =>
  k % loads[0] === 0 ? loads[0] : loads.at(-1)!;

/** Elements of a load for kernels that take four at a time; 1 where 4 does not divide `k`. */
export const fourLoad = ({ loads }: Pick<Format, "loads">, k: number): number =>
  k % 4 === 0 ? 4 : loads.at(-1)!;
