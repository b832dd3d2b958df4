/** Matrices of stored rows, for tests. */
import type { CaseRandom } from "../../kernels/case.ts";
import type { CpuTensor } from "../../lib/formats/tensor.ts";
import { bytesOf } from "../../lib/formats/tensor.ts";
import {
  allocateMatrix,
  type LayoutOptions,
  type Matrix,
  piecesOf,
} from "../../lib/formats/matrix.ts";
import { formatNamed } from "../../lib/formats/mod.ts";
import { gpuStore } from "../../lib/gpu/store.ts";
import type { Gpu } from "../../lib/webgpu/device.ts";
import type { Tensor } from "../../lib/webgpu/tensor.ts";
import type { Trial } from "./gpu.ts";

/**
 * A copy of a matrix of one part on the device, in as many parts as its bindings
 * require.
 */
export function splitMatrix(
  trial: Trial,
  gpu: Gpu,
  matrix: Matrix<CpuTensor>,
  pairs: boolean,
): Matrix<Tensor> {
  const { label, n, k, parts: [{ format, planes }] } = matrix;
  const store = gpuStore(gpu), { most } = store;
  const copy = allocateMatrix(
    label,
    [{ rows: n, format }],
    k,
    { pairs, most },
    (bytes, label) => trial.own(store.allocate(bytes, label)),
  );
  for (const { part, row, at, rows } of piecesOf(copy, 0, n)) {
    format.planes(k).forEach(({ rowBytes }, i) => {
      const piece = bytesOf(planes[i])
        .slice(row * rowBytes, (row + rows) * rowBytes);
      store.write(part.planes[i], at * rowBytes, piece);
    });
  }
  return copy;
}

/** A matrix of random tensors, one after another, laid out as a model's weights are. */
export function stackedMatrix(
  random: CaseRandom,
  stack: readonly { rows: number; format: string; scale?: number }[],
  k: number,
  options: LayoutOptions = {},
): Matrix<CpuTensor> {
  const matrix = allocateMatrix(
    "stacked",
    stack.map(({ rows, format }) => ({ rows, format: formatNamed(format) })),
    k,
    options,
    (bytes): CpuTensor => {
      const data = new Uint32Array(bytes / 4);
      return { dtype: "u32", shape: [data.length], data };
    },
  );
  let begin = 0;
  for (const { rows, format, scale } of stack) {
    const one = random.matrix(format, [rows, k], scale);
    const [{ format: { planes }, planes: from }] = one.parts;
    for (const { part, row, at, rows: some } of piecesOf(matrix, begin, rows)) {
      planes(k).forEach(({ rowBytes }, i) => {
        const first = (row - begin) * rowBytes;
        const piece = bytesOf(from[i])
          .subarray(first, first + some * rowBytes);
        bytesOf(part.planes[i]).set(piece, at * rowBytes);
      });
    }
    begin += rows;
  }
  return matrix;
}
