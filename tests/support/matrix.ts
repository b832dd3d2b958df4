/** Matrices of stored rows, for tests. */
import type { CpuTensor } from "../../lib/formats/tensor.ts";
import { bytesOf } from "../../lib/formats/tensor.ts";
import {
  allocateMatrix,
  type Matrix,
  piecesOf,
} from "../../lib/formats/matrix.ts";
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
