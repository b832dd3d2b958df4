/**
 * Quantisers: the bytes of ggml's for blocks of 32, errors of at most ggml's for k-quants,
 * and extreme blocks.
 */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { type Format, storedRowBytes } from "../../lib/formats/format.ts";
import { formatNamed, FORMATS } from "../../lib/formats/mod.ts";
import { quantizerOf } from "../../lib/formats/quantize.ts";
import { BLOCK_DEFINITIONS } from "../support/block_definitions.ts";
import { randomTest } from "../support/random.ts";

const ROWS = new URL("../fixtures/gguf/rows/", import.meta.url);
const K = 1024;
const SAME_BYTES = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"];
const K_QUANTS = ["q6_k", "q5_k", "q4_k", "q3_k", "q2_k"];

const floats = async (name: string) =>
  new Float32Array((await Deno.readFile(new URL(name, ROWS))).buffer);

function quantized(format: Format, values: Float32Array): Uint8Array {
  const bytes = storedRowBytes(format, values.length);
  // Bytes that are not written would show.
  const into = new Uint8Array(bytes).fill(0xaa);
  quantizerOf(format)(values, into);
  return into;
}

/** Values of blocks by the format's definition. */
function decoded({ name, bytes }: Format, stored: Uint8Array): Float32Array {
  const values: number[] = [];
  for (let at = 0; at < stored.length; at += bytes) {
    values.push(
      ...BLOCK_DEFINITIONS[name](new DataView(stored.buffer, at, bytes)),
    );
  }
  return Float32Array.from(values);
}

/** ‖a - b‖ / ‖b‖ */
function relativeError(a: Float32Array, b: Float32Array): number {
  let error = 0, size = 0;
  for (let i = 0; i < b.length; i++) {
    error += (a[i] - b[i]) ** 2;
    size += b[i] ** 2;
  }
  return Math.sqrt(error / size);
}

for (const name of SAME_BYTES) {
  Deno.test(`${name} has the bytes of ggml's quantiser`, async () => {
    const file = new URL(`${name.toUpperCase()}.bin`, ROWS);
    const values = await floats("source.f32");
    assertEquals(
      quantized(formatNamed(name), values),
      await Deno.readFile(file),
    );
  });
}

for (const name of K_QUANTS) {
  Deno.test(`${name} has at most the error of ggml's quantiser`, async () => {
    const format = formatNamed(name);
    const values = await floats("source.f32");
    const theirs = await floats(`${name.toUpperCase()}.f32`);
    const ours = decoded(format, quantized(format, values));
    for (let row = 0; row < values.length; row += K) {
      const of = (all: Float32Array) => all.subarray(row, row + K);
      const [own, other] = [ours, theirs].map((all) =>
        relativeError(of(all), of(values))
      );
      assert(
        own <= other,
        `row ${row / K}: the error is ${own}, ggml's is ${other}`,
      );
    }
  });
}

/** The largest error of a value near 1, by the number of bits. */
const STEP: Record<string, number> = {
  q8_0: 1 / 127,
  q6_k: 1 / 31,
  q5_0: 1 / 15,
  q5_1: 1 / 15,
  q5_k: 1 / 15,
  q4_0: 1 / 7,
  q4_1: 1 / 7,
  q4_k: 1 / 7,
  q3_k: 1 / 3,
  q2_k: 1,
};

for (const name of [...SAME_BYTES, ...K_QUANTS]) {
  const format = formatNamed(name);

  randomTest(`${name}: values come back within a step`, (random) => {
    for (const scale of [1, 1e-3, 100]) {
      const values = Float32Array.from(
        { length: 4 * 256 },
        () => scale * random.next(),
      );
      const back = decoded(format, quantized(format, values));
      values.forEach((value, i) => {
        const error = Math.abs(back[i] - value) / scale;
        assert(
          error <= 1.1 * STEP[name],
          `value ${i} is ${back[i]}, was ${value}`,
        );
      });
    }
  });

  Deno.test(`${name}: blocks of zeros, of one value, and with one value`, () => {
    const of = (value: (i: number) => number) => {
      const values = Float32Array.from({ length: 256 }, (_, i) => value(i));
      return decoded(format, quantized(format, values));
    };
    const zeros = of(() => 0);
    assert(zeros.every((value) => value === 0), `zeros become ${zeros}`);
    const tolerance = (value: number) => Math.abs(value) * 0.02 + 1e-7;
    for (const value of [1, -1, 0.1, -300]) {
      for (const back of of(() => value)) {
        // 3 or fewer positive bits around zero: 1 becomes 1 by the scale's sign.
        assert(Math.abs(back - value) <= tolerance(value), `${value}: ${back}`);
      }
      const one = of((i) => i === 37 ? value : 0);
      assert(Math.abs(one[37] - value) <= tolerance(value), `${one[37]}`);
      assert(
        one.every((back, i) => i === 37 || Math.abs(back) <= tolerance(value)),
        `zeros beside ${value} become ${one}`,
      );
    }
    // Scales below the smallest f16 become zeros.
    assert(of((i) => i % 2 ? 1e-12 : -1e-12).every(Number.isFinite));
  });
}

Deno.test("plain numbers are rounded to nearest even", () => {
  const values = Float32Array.of(1, -2.5, 1 + 2 ** -9, 1 + 3 * 2 ** -9, 65536);
  const words = (name: string) =>
    new Uint16Array(quantized(formatNamed(name), values).buffer);
  assertEquals(
    [...words("bf16")],
    [0x3f80, 0xc020, 0x3f80, 0x3f81, 0x4780],
  );
  assertEquals(
    [...words("f16")],
    [0x3c00, 0xc100, 0x3c02, 0x3c06, 0x7c00],
  );
  assertEquals(
    new Float32Array(quantized(formatNamed("f32"), values).buffer),
    values,
  );
});

Deno.test("formats without a quantiser are refused by name", () => {
  const without = FORMATS.filter(({ name }) => !/^(b?f\d+|q\d_.)$/.test(name));
  assert(without.length > 0);
  for (const format of without) {
    assertThrows(
      () => quantizerOf(format),
      Error,
      `Cannot encode weights as ${format.name}: it must be one of f32, `,
    );
  }
});
