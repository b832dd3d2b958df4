/**
 * The interface of a weight format. Each format has one file in this folder with
 * everything specific to it: how files store it, how it is laid out in memory, and how
 * kernels and the CPU read it. mod.ts lists the formats.
 *
 * @module
 */

import type { Gather } from "./gather.ts";

/** One of the buffers that hold a matrix, row by row. */
export interface Plane {
  /** Short and lowercase: part of the name in WGSL if a format has several planes. */
  readonly name: string;
  readonly rowBytes: number;
}

/** What {@linkcode Format.wgsl} returns. */
export interface WgslReader {
  /** The WGSL type of an array element, for each plane. */
  readonly types: readonly string[];
  /** Declarations, one per entry. */
  readonly code: readonly string[];
}

/** Returns the expression for array element `at` of a plane. */
export type ReadPlane = (plane: number, at: string) => string;

/** A weight format. */
export interface Format {
  /** The name in listings, tuning keys and `--dtype`. */
  readonly name: string;
  /** The dtype in safetensors files; undefined if they cannot store the format. */
  readonly safetensors?: string;
  /** Elements of a block; `bytes` is its size in files. Rows are whole blocks. */
  readonly elements: number;
  readonly bytes: number;
  /**
   * Elements per load, widest first: usually as many as 16 bytes hold, then 4. Formats
   * whose rows can have any length end with 1. Formats of blocks may have loads of
   * {@linkcode STRIP} elements.
   */
  readonly loads: readonly number[];
  /** Lists the in-memory buffers of a matrix with rows of `k` elements. */
  planes(k: number): readonly Plane[];
  /**
   * Rearranges whole rows from file order into planes. Absent if the only plane is laid
   * out as in the file; such rows go from the file to the device without another copy.
   */
  pack?(
    blocks: Uint8Array,
    k: number,
    into: readonly Uint8Array<ArrayBuffer>[],
  ): void;
  /** What `pack` does, for a kernel: how each plane is made. Present if `pack` is. */
  readonly gathers?: readonly Gather[];
  /**
   * WGSL that reads buffer `x` with `elements` per load, one of {@linkcode loads}.
   * Loads are numbered across the rows of a buffer, `row · (k / elements) + i`, so a
   * kernel keeps one u32 per row and increments it, however many planes there are.
   *
   * - `x_Raw`: the type of a load, as kept in registers;
   * - `x_load(at: u32) -> x_Raw`: load number `at`;
   * - `x_four_0(raw: x_Raw) -> vec4f`, `x_four_1`, …: its elements, four at a time;
   * - `x_masked(raw: x_Raw, inside: bool) -> x_Raw`: zeros unless `inside`.
   *
   * With one element per load, only `x_at(at: u32) -> f32`.
   *
   * With {@linkcode STRIP} elements, a load also comes in steps, so that several can share
   * factors and nothing waits for what is not used yet:
   *
   * - `x_words(at: u32) -> x_Words`: the quants of load `at`;
   * - `x_scale_words(unit: u32) -> x_ScaleWords`: the scales of a unit, one of the widest
   *   loads, and `x_factors(words: x_ScaleWords, unit: u32) -> x_Factors` what they mean;
   * - `x_raw(words: x_Words, factors: x_Factors, at: u32) -> x_Raw`: the load.
   */
  wgsl(x: string, elements: number, read: ReadPlane): WgslReader;
  /**
   * Whether kernels can also multiply its quants as integers, and what they must know then.
   * With the widest loads, {@linkcode Format.wgsl} then also declares
   *
   * - `x_Words`: the bits of a load, and of its scales;
   * - `x_words(at: u32) -> x_Words`: load number `at`;
   * - `x_bytes_0(words: x_Words) -> u32`, …: its quants, four at a time, as bytes;
   * - `x_factors(scales: x_ScaleWords, at: u32) -> x_Factors` of `words.scales`, and
   *   `x_scale_0(factors: x_Factors) -> f32`, `x_min_0`, …: those of each group.
   *
   * An element is `scale · (quant - offset) - min`.
   */
  readonly integers?: {
    /** Elements of a load that share a scale. */
    readonly group: number;
    readonly offset: number;
    /** Whether there are minimums. */
    readonly min: boolean;
  };
  /** Unpacks row `row` to f32: the reference, and the CPU path without SIMD. */
  unpack(
    planes: readonly Uint8Array[],
    row: number,
    k: number,
    into: Float32Array,
  ): void;
  /**
   * How WebAssembly reads the format. If absent, the CPU path unpacks rows before
   * multiplying.
   */
  readonly simd?: SimdReader | SimdBlocks;
}

/**
 * Reads eight elements of the only plane as two vectors of four f32. `V` is code that
 * computes a vector.
 */
export interface SimdReader {
  /** Bytes per eight elements. */
  readonly bytes: number;
  /** The elements of the two vectors: the first and last four, or the even and odd ones. */
  readonly order: "straight" | "even first";
  unpack<V>(simd: SimdCode<V>, load: (byte: number) => V): [V, V];
  /** What takes less where all elements are finite. */
  readonly finite?: FiniteReader;
}

/** Reads elements, unless there are infinities or NaN. */
export interface FiniteReader {
  /** As {@linkcode SimdReader.unpack}; in a third vector, bits of `marks` say that it is wrong. */
  unpack<V>(simd: SimdCode<V>, load: (byte: number) => V): [V, V, V];
  readonly marks: number;
}

/**
 * Blocks of quants, in planes as blocks.ts describes. An element is
 * `scale · values[quant] - min`. `V` is code that computes a vector.
 */
export interface SimdBlocks {
  /** Bits of a quant in each plane of quants, the lowest first. */
  readonly bits: readonly number[];
  /** Elements in 16 bytes of the first plane. */
  readonly unit: number;
  /** Elements that share a scale, and a minimum if there is one. */
  readonly group: number;
  readonly min: boolean;
  /** Elements of a block, and its bytes in each plane of scales. */
  readonly elements: number;
  readonly scaleBytes: readonly number[];
  readonly values: readonly number[];
  /** The factors of the next groups, four in each vector; `read` reads planes of scales. */
  factors<V>(simd: SimdCode<V>, read: ReadScales<V>): SimdFactors<V>[];
  /** Those of the next block, where they are integers times a number of the block. */
  integers?<V>(simd: SimdCode<V>, read: ReadScales<V>): SimdIntegers<V>;
}

/** Scales and minimums of a block. */
export interface SimdIntegers<V> {
  /** Signed bytes, in the order of groups. */
  readonly scales: V;
  /** What they are times: four copies of an f32. */
  readonly d: V;
  readonly mins?: V;
  readonly dmin?: V;
}

/** Scales and minimums of four groups, as f32. */
export interface SimdFactors<V> {
  readonly scale: V;
  readonly min?: V;
}

/**
 * Reads a plane of scales, `byte` bytes past the next block, as four 32-bit numbers: four
 * words, unsigned half words or unsigned bytes, or four copies of one word or half word.
 */
export type ReadScales<V> = (
  plane: number,
  as: "words" | "halves" | "bytes" | "word" | "half",
  byte?: number,
) => V;

/** Instructions on vectors of four 32-bit lanes. */
export interface SimdCode<V> {
  /** Computes a value once so that it can be used several times. */
  keep(value: V): V;
  /** Four copies of a 32-bit pattern; `number` makes four copies of an f32. */
  bits(value: number): V;
  number(value: number): V;
  words(values: readonly number[]): V;
  /** The bytes of a vector at 16 indices; 0 where they are negative. */
  bytes(value: V, indices: readonly number[]): V;
  /** Lanes of a and b in turns. */
  interleave(a: V, b: V): [V, V];
  shiftLeft(value: V, by: number): V;
  /** Shifts lane i by `by[i]`. */
  shiftLanes(value: V, by: readonly number[]): V;
  /** Arithmetic: keeps the sign. */
  shiftRight(value: V, by: number): V;
  and(a: V, b: V): V;
  or(a: V, b: V): V;
  /** Of integers; the others are of f32. */
  addInts(a: V, b: V): V;
  subInts(a: V, b: V): V;
  toFloat(ints: V): V;
  add(a: V, b: V): V;
  sub(a: V, b: V): V;
  mul(a: V, b: V): V;
  /** The smaller one, of numbers. */
  min(a: V, b: V): V;
  abs(value: V): V;
  /** All bits of a lane are set if a ≥ b. */
  greaterEqual(a: V, b: V): V;
}

/**
 * Elements of a load that takes a word of quants: of each 32 elements, load `j` of four has
 * `4 j … 4 j + 3`, and the same 16 later. Their neighbors in other rows are loaded by the
 * same thread, which so computes fewer scales than one that takes four of each.
 */
export const STRIP = 8;

/** Whether a format can be loaded in strips. */
export const hasStrips = ({ elements, loads }: Format): boolean =>
  elements > 1 && loads.includes(STRIP);

/** Bytes of a row of `k` elements in files. */
export const storedRowBytes = (
  { elements, bytes }: Pick<Format, "elements" | "bytes">,
  k: number,
): number => k / elements * bytes;

/** Elements per load: those of the widest load if it divides `k`, else of the narrowest. */
export const wideLoad = ({ loads }: Pick<Format, "loads">, k: number): number =>
  k % loads[0] === 0 ? loads[0] : loads.at(-1)!;

/**
 * Elements per load in kernels that take four at a time: 4 if it divides `k`, else the
 * format's fewest.
 */
export const fourLoad = ({ loads }: Pick<Format, "loads">, k: number): number =>
  k % 4 === 0 ? 4 : loads.at(-1)!;
