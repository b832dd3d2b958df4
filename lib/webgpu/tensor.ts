/**
 * A tensor on a GPU: shape, element type and buffer.
 *
 * @module
 */
import type { Gpu } from "./device.ts";
import type { Dtype } from "../dtype.ts";
import { DeviceError } from "../errors.ts";
import { TEXELS_WIDE } from "./wgsl.ts";
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

  /**
   * A tensor of `shape` on `gpu`, holding `data` if given. With `split`, rows that one
   * binding cannot hold go to several buffers: `rows` puts consecutive rows in each;
   * `pairs` puts the same range of the first and the second half of the rows in each
   * (gate and up projections, which are read together).
   *
   * @throws {DeviceError} if the adapter's limits are too small.
   */
  static create(
    gpu: Gpu,
    dtype: Dtype,
    shape: readonly number[],
    data?: ArrayBufferView<ArrayBuffer>,
    label = "tensor",
    split?: "rows" | "pairs",
  ): Tensor {
    const bytes = elements(shape) * BYTES[dtype];
    const rows = shape[0] ?? 1, rowBytes = bytes / rows;
    const limit = gpu.limits.maxStorageBufferBindingSize;
    if (bytes <= limit) {
      const part = { buffer: gpu.buffer(bytes, label), offset: 0 };
      const all = [{ ...part, begin: 0, rows }];
      const tensor = new Tensor(gpu, dtype, shape, all, label);
      if (data) tensor.write(0, data);
      return tensor;
    }
    // Multiples of 8 rows keep every part aligned to 16 bytes for any row size.
    const most = Math.floor(limit / rowBytes / 16) * 8;
    if (!split || most === 0) {
      throw new DeviceError(
        `Cannot allocate ${label} of shape [${
          shape.join(", ")
        }]: ${bytes} bytes, ${gpu.name} binds at most ${limit}`,
      );
    }
    const parts: TensorPart[] = [], runs: TensorPart[] = [];
    const step = split === "pairs" ? most : 2 * most;
    const end = split === "pairs" ? rows / 2 : rows;
    for (let begin = 0; begin < end; begin += step) {
      const n = Math.min(step, end - begin);
      const stacked = split === "pairs" ? 2 * n : n;
      const buffer = gpu.buffer(stacked * rowBytes, label);
      parts.push({ buffer, offset: 0, begin, rows: stacked });
      runs.push({ buffer, offset: 0, begin, rows: n });
      if (split === "pairs") {
        runs.push({
          buffer,
          offset: n * rowBytes,
          begin: end + begin,
          rows: n,
        });
      }
    }
    const tensor = new Tensor(gpu, dtype, shape, parts, label, runs);
    if (data) tensor.write(0, data);
    return tensor;
  }

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
      copy = copyToTexture(this.gpu, part, bytes, this.label);
      this.#texels.set(part, copy);
    }
    return copy;
  }

  /**
   * Copies `data` into the tensor, starting at byte `begin`.
   *
   * @throws {DeviceError} if a part would be written off a multiple of 4 bytes.
   */
  write(begin: number, data: ArrayBufferView<ArrayBuffer>): void {
    const { queue } = this.gpu.device;
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    const rowBytes = this.bytes / (this.shape[0] ?? 1);
    for (const run of this.runs) {
      const from = run.begin * rowBytes;
      const to = this.runs.length === 1 ? Infinity : from + run.rows * rowBytes;
      const a = Math.max(begin, from), b = Math.min(begin + bytes.length, to);
      if (a >= b) continue;
      const piece = bytes.subarray(a - begin, b - begin);
      // writeBuffer takes multiples of 4 bytes; only a tensor's end may fall short.
      const whole = piece.length & ~3;
      const at = run.offset + a - from;
      if (at % 4) {
        throw new DeviceError(
          `Cannot write ${this.label}: rows begin at byte ${at} of a buffer, must be at a multiple of 4`,
        );
      }
      if (whole) queue.writeBuffer(run.buffer, at, piece, 0, whole);
      if (whole < piece.length) {
        const rest = new Uint8Array(4);
        rest.set(piece.subarray(whole));
        queue.writeBuffer(run.buffer, at + whole, rest);
      }
    }
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

/** Copies whole units of 16 bytes into a texture, {@linkcode TEXELS_WIDE} to a row. */
function copyToTexture(
  gpu: Gpu,
  { buffer, offset }: TensorPart,
  bytes: number,
  label: string,
): GPUTexture {
  const { device } = gpu, bytesPerRow = 16 * TEXELS_WIDE;
  const rows = Math.floor(bytes / bytesPerRow);
  const rest = bytes / 16 % TEXELS_WIDE;
  const texture = device.createTexture({
    size: [TEXELS_WIDE, rows + (rest ? 1 : 0)],
    format: "rgba32uint",
    usage: GPUTextureUsage.COPY_DST | GPUTextureUsage.TEXTURE_BINDING,
    label,
  });
  const encoder = device.createCommandEncoder();
  const source = { buffer, bytesPerRow };
  if (rows) {
    encoder.copyBufferToTexture({ ...source, offset }, { texture }, [
      TEXELS_WIDE,
      rows,
    ]);
  }
  if (rest) {
    const last = offset + rows * bytesPerRow, origin = [0, rows];
    encoder.copyBufferToTexture({ ...source, offset: last }, {
      texture,
      origin,
    }, [rest]);
  }
  device.queue.submit([encoder.finish()]);
  return gpu.count(texture, bytes);
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
