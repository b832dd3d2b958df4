/** Rows of random blocks for tests of the WebAssembly kernels, and their products in float64. */
import { assertAllClose } from "./assert_all_close.ts";
import { threadSpace, writeMasks } from "../../lib/cpu/jobs.ts";
import type { CpuOps } from "../../lib/cpu/ops.ts";
import { bind } from "../../lib/cpu/pool.ts";
import type { BlockFormat } from "../../lib/cpu/wasm_blocks.ts";
import {
  type Planes,
  unsignedBytes,
  wasmKernels,
} from "../../lib/cpu/wasm_kernels.ts";
import { roundedBytes } from "../../lib/cpu/wasm_round.ts";
import { storedRowBytes } from "../../lib/formats/format.ts";
import { type Matrix, packed } from "../../lib/formats/matrix.ts";
import type { CpuTensor } from "../../lib/formats/tensor.ts";
import type { Random } from "./random.ts";

/** Blocks of random bits, whose elements are all finite. */
export function randomRows(
  random: Random,
  format: BlockFormat,
  n: number,
  k: number,
) {
  const { bytes, elements } = format;
  const stored = new Uint8Array(n * storedRowBytes(format, k));
  const values = new Float32Array(elements);
  for (let at = 0; at < stored.length; at += bytes) {
    const block = stored.subarray(at, at + bytes);
    do {
      for (let i = 0; i < bytes; i++) block[i] = random.int(0, 255);
      const planes = packed(format, block.slice(), elements, 1);
      format.unpack(planes, 0, elements, values);
    } while (!values.every((value) => Math.abs(value) < 1e6));
  }
  return stored;
}

/** All elements of stored rows. */
export function unpacked(format: BlockFormat, stored: Uint8Array, k: number) {
  const n = stored.length / storedRowBytes(format, k);
  const planes = packed(format, stored.slice(), k, n);
  const all = new Float32Array(n * k);
  for (let row = 0; row < n; row++) {
    format.unpack(planes, row, k, all.subarray(row * k, (row + 1) * k));
  }
  return all;
}

/** Row widths: some with every number of groups in the last vector of factors. */
export const widths = ({ elements }: BlockFormat) =>
  (elements === 32 ? [1, 2, 3, 4, 7, 16, 33] : [1, 2, 3]).map((n) =>
    n * elements
  );

/**
 * `x · wᵀ` in float64, and the sums of what was summed: products of scaled quants and
 * minimums are no larger than a few times the largest element of their group.
 */
export function product(x: ArrayLike<number>, w: Float32Array, k: number) {
  const values: number[] = [], norms: number[] = [];
  for (let r = 0; r < x.length; r += k) {
    for (let j = 0; j < w.length; j += k) {
      let sum = 0, norm = 0;
      for (let i = 0; i < k; i += 16) {
        let largest = 0, size = 0;
        for (let e = i; e < i + 16; e++) {
          sum += x[r + e] * w[j + e];
          largest = Math.max(largest, Math.abs(w[j + e]));
          size += Math.abs(x[r + e]);
        }
        norm += 3 * largest * size;
      }
      values.push(sum);
      norms.push(norm);
    }
  }
  return { values, norms };
}

/**
 * Asserts that results are within a few roundings of what was summed. The kernels may lose
 * elements that are subnormal, as only MXFP4 has them.
 */
export function assertSums(
  actual: ArrayLike<number>,
  { values, norms }: ReturnType<typeof product>,
  message: string,
  absolute = EXACT,
): void {
  const inNorms = (list: ArrayLike<number>) =>
    Float64Array.from(list, (value, i) => value / (norms[i] + 2 ** -90));
  assertAllClose(inNorms(actual), inNorms(values), { absolute }, message);
}

/** Errors of sums in f32, and of x rounded to 16 bits, in sizes of what was summed. */
export const EXACT = 3e-7, ROUNDED = 2e-5;

/** The modules that this engine runs right, by what they use. */
export const MODULES = {
  "plain SIMD": new WebAssembly.Module(wasmKernels(false)),
  "relaxed SIMD": new WebAssembly.Module(wasmKernels(true, 7)),
  ...unsignedBytes() && {
    "relaxed SIMD, unsigned bytes": new WebAssembly.Module(
      wasmKernels(true, 8),
    ),
  },
};
export const GUARD = 64;
/** Where the masks have ended. */
const FREE = threadSpace(0);

/** A memory full of NaN with masks, planes and x. */
export function placed(
  format: BlockFormat,
  module: WebAssembly.Module,
  stored: Uint8Array,
  x: Float32Array,
  /** Changes planes before they are placed. */
  change: (plane: Uint8Array, p: number) => Uint8Array = (plane) => plane,
) {
  const memory = new WebAssembly.Memory({
    initial: 16,
    maximum: 65536,
    shared: true,
  });
  new Float32Array(memory.buffer).fill(NaN, FREE / 4);
  writeMasks(memory.buffer);
  const { kernels } = bind(module, memory);
  let at = FREE;
  const place = (bytes: Uint8Array) => {
    const address = at;
    new Uint8Array(memory.buffer, address).set(bytes);
    at += Math.ceil(bytes.length / 4) * 4 + GUARD;
    return address;
  };
  const k = x.length, n = stored.length / storedRowBytes(format, k);
  const planes = packed(format, stored.slice(), k, n)
    .map((plane, p) => place(change(plane, p)));
  while (planes.length < 4) planes.push(0);
  const xAt = place(new Uint8Array(x.buffer));
  at += roundedBytes(format.simd, k) - GUARD; // the end of what roundRow writes
  const mask = (k: number) => k / format.simd.group % 4 * 32;
  return { memory, kernels, planes: planes as Planes, xAt, free: at, mask };
}

/** Its sizes do not matter to matmuls. */
export const CONFIG = {
  modelType: "qwen3",
  vocabSize: 8,
  hiddenSize: 32,
  intermediateSize: 32,
  numHiddenLayers: 1,
  numAttentionHeads: 1,
  numKeyValueHeads: 1,
  headDim: 32,
  maxPositionEmbeddings: 64,
  rmsNormEps: 1e-6,
  ropeTheta: 1e4,
  ropeScaling: null,
  tieWordEmbeddings: true,
  bosTokenId: null,
  eosTokenIds: [],
};

/** A matrix in the memory of `ops`; `next` is called before each plane. */
export function onOps(
  ops: CpuOps,
  matrix: Matrix<CpuTensor>,
  next: () => void = () => {},
): Matrix<CpuTensor> {
  const parts = matrix.parts.map((part) => ({
    ...part,
    planes: part.planes.map(({ shape, data }) => {
      next();
      const tensor = ops.tensor("u32", shape);
      tensor.data.set(data);
      return tensor;
    }),
  }));
  return { ...matrix, parts };
}
