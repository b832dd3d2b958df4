/**
 * A tensor on a GPU: shape, element type and buffer.
 *
 * @module
 */
import type { Gpu } from "./device.ts";
import type { Dtype } from "../dtype.ts";
import { described, DeviceError } from "../errors.ts";
import { TEXELS_WIDE } from "./wgsl.ts";
import { BYTES, elements } from "../dtype.ts";
import { formatNamed } from "../formats/mod.ts";

/** Shape, element type and GPU memory. */
export class Tensor implements Disposable {
  #texels?: GPUTexture;

  /** @ignore Made by {@linkcode Tensor.create}. */
  constructor(
    readonly gpu: Gpu,
    readonly dtype: Dtype,
    readonly shape: readonly number[],
    readonly buffer: GPUBuffer,
    /** Its name in listings and errors. */
    readonly label: string = "tensor",
  ) {}

  /**
   * Creates a tensor that holds `data` if given, otherwise zeros.
   *
   * @throws {DeviceError} if it is larger than the adapter can bind.
   * @throws {TypeError | RangeError} if the type is unknown, the shape is not a list of
   * whole numbers, or `data` has another size.
   */
  static create(
    gpu: Gpu,
    dtype: Dtype,
    shape: readonly number[],
    data?: ArrayBufferView,
    label = "tensor",
  ): Tensor {
    checkTensor(label, gpu, dtype, shape);
    const bytes = elements(shape) * BYTES[dtype];
    if (data !== undefined) checkData(label, data, shape, bytes);
    const limit = gpu.limits.maxStorageBufferBindingSize;
    if (bytes > limit) {
      throw new DeviceError(
        `Cannot allocate ${label} of shape [${
          shape.join(", ")
        }]: it takes ${bytes} bytes, ${gpu.name} binds at most ${limit}`,
      );
    }
    const tensor = new Tensor(
      gpu,
      dtype,
      shape,
      gpu.buffer(bytes, label),
      label,
    );
    if (data) tensor.write(0, data);
    return tensor;
  }

  /** Size in bytes. */
  get bytes(): number {
    return elements(this.shape) * BYTES[this.dtype];
  }

  /** Shares this tensor's memory under another shape with the same number of elements. */
  view(...shape: number[]): Tensor {
    if (elements(shape) !== elements(this.shape)) {
      throw new Error(
        `Cannot view [${this.shape.join(", ")}] as [${
          shape.join(", ")
        }]: it has ${elements(this.shape)} elements, must have ${
          elements(shape)
        }`,
      );
    }
    return new Tensor(this.gpu, this.dtype, shape, this.buffer, this.label);
  }

  /** A view of the first `rows` rows. */
  rows(rows: number): Tensor {
    if (rows > this.shape[0]) {
      throw new Error(
        `Cannot take ${rows} rows of a tensor of shape [${
          this.shape.join(", ")
        }]: it has ${this.shape[0]}`,
      );
    }
    const shape = [rows, ...this.shape.slice(1)];
    return new Tensor(this.gpu, this.dtype, shape, this.buffer, this.label);
  }

  /** A copy in a texture, made on first use; only for tensors that no longer change. */
  texels(): GPUTexture {
    return this.#texels ??= copyToTexture(this);
  }

  /**
   * Copies `data` into the tensor, starting at byte `begin`.
   *
   * @throws {DeviceError} if `begin` is not a multiple of 4.
   * @throws {Error} if the tensor or its device was disposed.
   * @throws {TypeError | RangeError} if `data` is no typed array or does not fit.
   */
  write(begin: number, data: ArrayBufferView): void {
    const { queue } = this.gpu.device;
    this.gpu.requireLive(`write ${this.label}`, this);
    requireView(this.label, data);
    // The buffer is padded to whole words.
    const room = Math.ceil(this.bytes / 4) * 4;
    if (!(begin >= 0 && begin + data.byteLength <= room)) {
      throw new RangeError(
        `Cannot write ${this.label}: ${data.byteLength} bytes from byte ${
          described(begin)
        }, must be within its ${this.bytes} bytes`,
      );
    }
    const bytes = ownBytes(data);
    if (begin % 4) {
      throw new DeviceError(
        `Cannot write ${this.label}: the offset is ${begin} bytes, must be a multiple of 4`,
      );
    }
    // writeBuffer takes multiples of 4 bytes, so the last few are padded.
    const whole = bytes.length & ~3;
    if (whole) queue.writeBuffer(this.buffer, begin, bytes, 0, whole);
    if (whole < bytes.length) {
      const rest = new Uint8Array(4);
      rest.set(bytes.subarray(whole));
      queue.writeBuffer(this.buffer, begin + whole, rest);
    }
  }

  /** Reads the elements as f32. Waits for the GPU, in Deno for at least 10 ms. */
  async read(): Promise<Float32Array> {
    this.gpu.requireLive(`read ${this.label}`, this);
    const size = elements(this.shape);
    const bytes = await this.gpu.readBuffer(this.buffer, 0, this.bytes);
    if (this.dtype === "u32") {
      return Float32Array.from(new Uint32Array(bytes, 0, size));
    }
    const out = new Float32Array(size);
    formatNamed(this.dtype).unpack([new Uint8Array(bytes)], 0, size, out);
    return out;
  }

  /** Frees the memory. */
  [Symbol.dispose](): void {
    this.buffer.destroy();
    this.#texels?.destroy();
  }
}

/** Copies a tensor to a texture: 16 bytes per texel, {@linkcode TEXELS_WIDE} per row. */
function copyToTexture({ gpu, buffer, bytes, label }: Tensor): GPUTexture {
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
    encoder.copyBufferToTexture(source, { texture }, [TEXELS_WIDE, rows]);
  }
  if (rest) {
    const last = { ...source, offset: rows * bytesPerRow };
    const to = { texture, origin: [0, rows] };
    encoder.copyBufferToTexture(last, to, [rest]);
  }
  device.queue.submit([encoder.finish()]);
  return gpu.count(texture, bytes);
}

/** Checks the arguments for a tensor, which JavaScript callers may get wrong. */
function checkTensor(
  label: string,
  gpu: Gpu,
  dtype: Dtype,
  shape: readonly number[],
): void {
  const refuse = (what: string, value: unknown, must: string) => {
    throw new TypeError(
      `Cannot create ${label}: ${what} is ${described(value)}, must be ${must}`,
    );
  };
  if (gpu?.limits === undefined) refuse("its device", gpu, "an open Gpu");
  if (!Object.hasOwn(BYTES, dtype)) {
    refuse("its type", dtype, `one of ${Object.keys(BYTES).join(", ")}`);
  }
  if (!Array.isArray(shape)) refuse("its shape", shape, "a list of sizes");
  const wrong = shape.findIndex((n) => !Number.isSafeInteger(n) || n < 0);
  if (wrong >= 0) {
    refuse(`size ${wrong} of its shape`, shape[wrong], "a whole number");
  }
}

function checkData(
  label: string,
  data: ArrayBufferView,
  shape: readonly number[],
  bytes: number,
): void {
  requireView(label, data);
  if (data.byteLength === bytes) return;
  throw new RangeError(
    `Cannot create ${label}: its data has ${data.byteLength} bytes, shape [${
      shape.join(", ")
    }] needs ${bytes}`,
  );
}

/** The bytes of `data`, in a copy if other threads share them, which Dawn cannot read. */
function ownBytes(data: ArrayBufferView): Uint8Array<ArrayBuffer> {
  const { buffer, byteOffset, byteLength } = data;
  return buffer instanceof ArrayBuffer
    ? new Uint8Array(buffer, byteOffset, byteLength)
    : Uint8Array.from(new Uint8Array(buffer, byteOffset, byteLength));
}

function requireView(label: string, data: unknown): void {
  if (ArrayBuffer.isView(data)) return;
  throw new TypeError(
    `Cannot write ${label}: the data is ${
      described(data)
    }, must be a typed array`,
  );
}
