/**
 * A tensor on a GPU: shape, element type and buffer.
 *
 * @module
 */
import type { Gpu } from "./device.ts";
import type { Dtype } from "../model/ops.ts";
import { BYTES, elements, f16ToF32 } from "../dtype.ts";

/** Rows of a tensor that lie in one buffer. */
export interface TensorPart {
  readonly buffer: GPUBuffer;
  /** Where it begins in the buffer, in bytes. */
  readonly offset: number;
  /** Its first row, and how many it has. */
  readonly begin: number;
  readonly rows: number;
}

/**
 * Shape, element type and GPU memory. A table that is larger than one binding
 * may be has several `parts`, each a run of rows.
 */
export class Tensor implements Disposable {
  /** The largest absolute value, where somebody measured it. */
  largest?: number;
  readonly #texels = new Map<TensorPart, GPUTexture>();

  constructor(
    readonly gpu: Gpu,
    readonly dtype: Dtype,
    readonly shape: readonly number[],
    readonly parts: readonly TensorPart[],
    /** What it is, for listings and errors: `layers.3.qkv_proj`. */
    readonly label: string = "tensor",
    /** Where each run of rows lies; the parts, unless a part holds two runs. */
    readonly runs: readonly TensorPart[] = parts,
  ) {}

  /** How much memory it takes. */
  get bytes(): number {
    return elements(this.shape) * BYTES[this.dtype];
  }

  /** The one buffer of a tensor that is not split. */
  get part(): TensorPart {
    if (this.parts.length !== 1) {
      throw new Error(
        `Cannot bind a tensor of shape [${
          this.shape.join(", ")
        }] whole: it is split over ${this.parts.length} buffers`,
      );
    }
    return this.parts[0];
  }

  /** The same memory under another shape of as many elements. */
  view(...shape: number[]): Tensor {
    if (elements(shape) !== elements(this.shape)) {
      throw new Error(
        `Cannot view [${this.shape.join(", ")}] as [${shape.join(", ")}]: ${
          elements(this.shape)
        } elements are not ${elements(shape)}`,
      );
    }
    const { buffer, offset } = this.part;
    return new Tensor(this.gpu, this.dtype, shape, [
      { buffer, offset, begin: 0, rows: shape[0] ?? 1 },
    ], this.label);
  }

  /** The first `rows` rows, the same memory. */
  rows(rows: number): Tensor {
    const { buffer, offset } = this.part;
    if (rows > this.shape[0]) {
      throw new Error(
        `Cannot take ${rows} rows of a tensor of shape [${
          this.shape.join(", ")
        }]: it has ${this.shape[0]}`,
      );
    }
    return new Tensor(this.gpu, this.dtype, [rows, ...this.shape.slice(1)], [
      { buffer, offset, begin: 0, rows },
    ], this.label);
  }

  /** A copy of a part as a texture, made once: for tensors that change no more. */
  texels(part: TensorPart): GPUTexture {
    let copy = this.#texels.get(part);
    if (!copy) {
      const bytes = part.rows * this.bytes / this.shape[0];
      copy = this.gpu.texels(part, bytes, this.label);
      this.#texels.set(part, copy);
    }
    return copy;
  }

  /** The elements as f32, in row order. Waits for the GPU (10 ms at least in Deno). */
  async read(): Promise<Float32Array> {
    const out = new Float32Array(elements(this.shape));
    const row = out.length / (this.shape[0] ?? 1);
    for (const run of this.runs) {
      const size = this.runs.length === 1 ? out.length : run.rows * row;
      const bytes = await this.gpu.readBuffer(
        run.buffer,
        run.offset,
        size * BYTES[this.dtype],
      );
      out.set(decode(bytes, this.dtype, size), run.begin * row);
    }
    return out;
  }

  /** Frees the memory. */
  [Symbol.dispose](): void {
    for (const part of this.parts) part.buffer.destroy();
    for (const copy of this.#texels.values()) copy.destroy();
  }
}

function decode(
  bytes: ArrayBuffer,
  dtype: Dtype,
  size: number,
): ArrayLike<number> {
  if (dtype === "f32") return new Float32Array(bytes, 0, size);
  if (dtype === "u32") return new Uint32Array(bytes, 0, size);
  const bits = new Uint16Array(bytes, 0, size);
  if (dtype === "f16") return Float32Array.from(bits, f16ToF32);
  return new Float32Array(Uint32Array.from(bits, (b) => b << 16).buffer);
}
