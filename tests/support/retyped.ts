/** Checkpoints in memory whose tensors are stored in formats of a test's choice. */
import type {
  Checkpoint,
  TensorInfo,
} from "../../lib/checkpoint/checkpoint.ts";
import { f32ToBf16Bits, f32ToF16Bits } from "../../lib/dtype.ts";
import { f32 } from "../../lib/formats/f32.ts";
import { type Format, storedRowBytes } from "../../lib/formats/format.ts";
import { randomBlocks } from "../../lib/check/random_blocks.ts";
import { packed } from "../../lib/formats/matrix.ts";
import { nibbles, packBlock } from "./nibbles.ts";
import { Random } from "./random.ts";

const bits = (encode: (value: number) => number) => (values: Float32Array) =>
  new Uint8Array(Uint16Array.from(values, encode).buffer);

/** Values as stored bytes, by the name of a format. */
const ENCODE: Record<string, (values: Float32Array) => Uint8Array> = {
  f32: (values) => new Uint8Array(Float32Array.from(values).buffer),
  f16: bits(f32ToF16Bits),
  bf16: bits(f32ToBf16Bits),
  nibbles: (values) => {
    const { elements, bytes } = nibbles;
    const out = new Uint8Array(values.length / elements * bytes);
    for (let b = 0; b < values.length / elements; b++) {
      const block = values.subarray(b * elements, (b + 1) * elements);
      out.set(packBlock(block), b * bytes);
    }
    return out;
  },
};

/** Values as stored bytes; where there is no encoder, random blocks in their place. */
function encode(format: Format, values: Float32Array): Uint8Array {
  const known = ENCODE[format.name];
  if (known) return known(values);
  const random = new Random(values.length);
  return randomBlocks(random, format, 1, values.length, 0.1);
}

/** Stored rows of `k` elements as f32. */
function decode(format: Format, stored: Uint8Array, k: number): Float32Array {
  const rows = stored.length / storedRowBytes(format, k);
  const planes = packed(format, Uint8Array.from(stored), k, rows);
  const values = new Float32Array(rows * k);
  for (let r = 0; r < rows; r++) {
    format.unpack(planes, r, k, values.subarray(r * k, (r + 1) * k));
  }
  return values;
}

/**
 * Two checkpoints that hold the same values: `stored` has each tensor in the format
 * that `formatOf` gives it, `wide` has them all in f32.
 */
export async function retyped(
  checkpoint: Checkpoint,
  formatOf: (name: string) => Format,
): Promise<{ stored: Checkpoint; wide: Checkpoint }> {
  const made = [new Map(), new Map()].map((
    tensors: Map<string, TensorInfo>,
  ) => ({
    tensors,
    bytes: new Map<string, Uint8Array>(),
  }));
  for (const [name, { format, shape, byteLength }] of checkpoint.tensors) {
    const given = new Uint8Array(byteLength), k = shape.at(-1)!;
    await checkpoint.read(name, 0, given);
    const own = formatOf(name);
    const stored = encode(own, decode(format, given, k));
    const values = decode(own, stored, k);
    [[own, stored], [f32, ENCODE.f32(values)]].forEach((one, i) => {
      const [format, bytes] = one as [Format, Uint8Array];
      const info = { name, format, shape, byteLength: bytes.length };
      made[i].tensors.set(name, info);
      made[i].bytes.set(name, bytes);
    });
  }
  const [stored, wide] = made.map(({ tensors, bytes }): Checkpoint => ({
    ...checkpoint,
    tensors,
    synthetic: undefined,
    read(name, begin, into) {
      into.set(bytes.get(name)!.subarray(begin, begin + into.length));
      return Promise.resolve();
    },
  }));
  return { stored, wide };
}
