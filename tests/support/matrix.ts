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
 * A copy of a matrix of one plane on the device, in as many parts as its bindings
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
  const bytes = bytesOf(planes[0]), [{ rowBytes }] = format.planes(k);
  for (const { part, row, at, rows } of piecesOf(copy, 0, n)) {
    const piece = bytes.slice(row * rowBytes, (row + rows) * rowBytes);
    store.write(part.planes[0], at * rowBytes, piece);
  }
  return copy;
}
