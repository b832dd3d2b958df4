/**
 * Every format of the list: its definition, its planes and every way to read it.
 *
 * @module
 */
import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  type Format,
  hasStrips,
  storedRowBytes,
} from "../../lib/formats/format.ts";
import { formatNamed, FORMATS } from "../../lib/formats/mod.ts";
import {
  allocateMatrix,
  type Matrix,
  piecesOf,
} from "../../lib/formats/matrix.ts";
import { gpuStore } from "../../lib/gpu/store.ts";
import { type Kernel, splitGrid } from "../../lib/webgpu/kernel.ts";
import type { Tensor } from "../../lib/webgpu/tensor.ts";
import { type Random, randomTest } from "../support/random.ts";
import { decodeFloat } from "../support/decode_float.ts";
import { gpuTest, type Trial } from "../support/gpu.ts";
import { BLOCK_DEFINITIONS } from "../support/block_definitions.ts";
import { nibbles, unpackBlock } from "../support/nibbles.ts";

/** What each format's bits mean by definition. A new format adds its own here. */
const DEFINITIONS: Record<string, (block: DataView) => number[]> = {
  f32: (block) => [block.getFloat32(0, true)],
  f16: (block) => [decodeFloat(block.getUint16(0, true), 5, 10)],
  bf16: (block) => [decodeFloat(block.getUint16(0, true), 8, 7)],
  nibbles: ({ buffer, byteOffset, byteLength }) =>
    unpackBlock(new Uint8Array(buffer, byteOffset, byteLength)),
  ...BLOCK_DEFINITIONS,
};

/** The formats of the list, and a test format made of blocks. */
const ALL = [...FORMATS, nibbles];

/** Rows of random bits, as a file stores them. */
function randomRows(random: Random, format: Format, rows: number, k: number) {
  const bytes = new Uint8Array(rows * storedRowBytes(format, k));
  for (let i = 0; i < bytes.length; i++) bytes[i] = random.int(0, 255);
  return bytes;
}

/** Values of stored rows by the definition. */
function defined({ name, elements, bytes }: Format, stored: Uint8Array) {
  const values: number[] = [];
  for (let at = 0; at < stored.length; at += bytes) {
    const block = DEFINITIONS[name](
      new DataView(stored.buffer, stored.byteOffset + at, bytes),
    );
    assertEquals(block.length, elements);
    values.push(...block);
  }
  return Float32Array.from(values);
}

/** Stored rows as the planes of their format. */
function planesOf(format: Format, stored: Uint8Array, k: number) {
  if (!format.pack) return [Uint8Array.from(stored)];
  const rows = stored.length / storedRowBytes(format, k);
  const planes = format.planes(k).map(({ rowBytes }) =>
    new Uint8Array(rows * rowBytes)
  );
  format.pack(stored, k, planes);
  return planes;
}

/**
 * Row widths: the smallest of a format, odd ones where allowed, and more than one load.
 */
const widths = ({ elements, loads }: Format) =>
  (elements > 32 ? [1, 2, 5] : [1, 2, 3, 7, 8, 33, 64])
    .map((blocks) => blocks * elements)
    .filter((k) => loads.at(-1) === 1 || k % loads.at(-1)! === 0);

Deno.test("names are unique, and known", () => {
  assertEquals(new Set(FORMATS.map(({ name }) => name)).size, FORMATS.length);
  for (const format of FORMATS) assert(formatNamed(format.name) === format);
  assertThrows(
    () => formatNamed("u32"),
    Error,
    "Cannot read u32 as weights: it must be one of bf16, f16, f32",
  );
});

for (const format of ALL) {
  randomTest(
    `${format.name}: rows of any bits unpack by the definition`,
    (random) => {
      for (const k of widths(format)) {
        const rows = 9, stored = randomRows(random, format, rows, k);
        const expected = defined(format, stored);
        const planes = planesOf(format, stored, k);
        format.planes(k).forEach(({ rowBytes }, i) =>
          assertEquals(planes[i].length, rows * rowBytes)
        );
        const row = new Float32Array(k);
        for (let r = 0; r < rows; r++) {
          format.unpack(planes, r, k, row.fill(NaN));
          assertEquals(
            row,
            expected.slice(r * k, (r + 1) * k),
            `${k}, row ${r}`,
          );
        }
      }
    },
  );
}

/** Rows that llama.cpp quantised, or of random bits, and what it reads from them. */
async function goldenRows({ name }: Format, random: string) {
  const file = `${name.toUpperCase()}${random}`;
  const [stored, bytes] = await Promise.all(
    ["bin", "f32"].map((kind) =>
      Deno.readFile(new URL(`${file}.${kind}`, GOLDEN))
    ),
  );
  return { stored, values: new Float32Array(bytes.buffer) };
}

const GOLDEN = new URL("../fixtures/gguf/rows/", import.meta.url);

/** Formats of which llama.cpp read rows. */
const IN_GGUF = FORMATS.filter(({ elements }) => elements > 1);

/** The first element with other bits; -0 is not 0 here. */
const otherBits = (actual: Float32Array, expected: Float32Array) => {
  const [a, b] = [actual, expected].map((values) =>
    new Uint32Array(values.buffer, values.byteOffset, values.length)
  );
  return b.findIndex((bits, i) => bits !== a[i]);
};

for (const format of IN_GGUF) {
  Deno.test(`${format.name}: rows unpack to the bits that llama.cpp reads`, async () => {
    for (const random of ["", ".random"]) {
      const { stored, values } = await goldenRows(format, random);
      for (const blocks of random ? [1, 2] : [1024 / format.elements]) {
        const k = blocks * format.elements, rows = values.length / k;
        assertEquals(stored.length, rows * storedRowBytes(format, k));
        // Blocks that begin at an odd byte, too.
        const shifted = new Uint8Array([0, ...stored]).subarray(1);
        for (const bytes of [stored, shifted]) {
          const planes = planesOf(format, bytes, k);
          const actual = new Float32Array(values.length);
          for (let r = 0; r < rows; r++) {
            format.unpack(planes, r, k, actual.subarray(r * k, (r + 1) * k));
          }
          const at = otherBits(actual, values);
          assertEquals(
            at,
            -1,
            `${random} element ${at}: ${actual[at]}, must be ${values[at]}`,
          );
        }
        const at = otherBits(defined(format, stored), values);
        assertEquals(at, -1, `the definition of element ${at}`);
      }
    }
  });

  gpuTest(
    `${format.name}: the GPU reads the bits that llama.cpp reads`,
    async (gpu, trial) => {
      for (const random of ["", ".random"]) {
        const { stored, values } = await goldenRows(format, random);
        const k = random ? format.elements : 1024, n = values.length / k;
        const w = upload(trial, format, stored, k);
        for (const view of ["span", "unit", "strip"] as const) {
          if (view === "strip" && !hasStrips(format)) continue;
          const y = trial.filled([n * k], 0x55555555, "u32");
          trial.run(reader(view), { w, y }, { uniforms: { keep: 1 } });
          const bits = await gpu.readBuffer(y.buffer, 0, 4 * n * k);
          const at = difference(new Uint32Array(bits), values);
          assertEquals(at, -1, `${random} ${view}: element ${at}`);
        }
      }
    },
  );
}

/** Every way in which kernels read a buffer, into the bits of f32. */
const views = {
  scalar: `y[i] = bitcast<u32>(w_at(i));`,
  span: `let four = w_span(i * 4u, u.n * u.k - min(i * 4u, u.n * u.k));
  for (var e = 0u; e < 4u; e++) {
    if (i * 4u + e < u.n * u.k) { y[i * 4u + e] = bitcast<u32>(four[e]); }
  }`,
  unit: `if (i < u.n * u.k / W_UNIT) {
    let raw = w_masked(w_load(i), u.keep == 1u);
    @unroll for (var f = 0; f < W_UNIT / 4; f++) {
      let four = w_four[f](raw);
      @unroll for (var e = 0; e < 4; e++) { y[i * W_UNIT + f * 4 + e] = bitcast<u32>(four[e]); }
    }
  }`,
  strip: `if (i < u.n * u.k / W_UNIT) {
    let raw = w_masked(w_load(i), u.keep == 1u);
    @unroll for (var f = 0; f < 2; f++) {
      let four = w_four[f](raw);
      let at = i / 4u * 32u + f * 16u + i % 4u * 4u;
      @unroll for (var e = 0; e < 4; e++) { y[at + e] = bitcast<u32>(four[e]); }
    }
  }`,
};

const reader = (view: keyof typeof views, texture = false): Kernel => ({
  name: `read ${view}`,
  buffers: {
    w: `n k as ${texture ? "texels" : view}`,
    y: "inout any as raw",
  },
  uniforms: { keep: "u32" },
  constants: {},
  grid: ({ n, k }) => splitGrid(n * k / 64),
  body: `
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wg: vec3u, @builtin(local_invocation_index) tid: u32) {
  let i = wg.x * 64u + tid;
  if (i >= u.n * u.k) { return; }
  ${views[view]}
}`,
});

/** Stored rows on the device. */
function upload(
  trial: Trial,
  format: Format,
  stored: Uint8Array,
  k: number,
): Matrix<Tensor> {
  const store = gpuStore(trial.gpu);
  const rows = stored.length / storedRowBytes(format, k);
  const matrix = allocateMatrix(
    "w",
    [{ rows, format }],
    k,
    {},
    (bytes, label) => trial.own(store.allocate(bytes, label)),
  );
  const [{ part }] = piecesOf(matrix, 0, rows);
  planesOf(format, stored, k).forEach((bytes, i) =>
    store.write(part.planes[i], 0, bytes)
  );
  return matrix;
}

/** Where bits differ. NaN may change its bits, and a GPU may read subnormals as zeros. */
function difference(actual: Uint32Array, expected: Float32Array): number {
  const bits = new Uint32Array(expected.buffer, 0, expected.length);
  const values = new Float32Array(actual.buffer, 0, actual.length);
  return bits.findIndex((want, i) =>
    actual[i] !== want &&
    !(Number.isNaN(expected[i]) && Number.isNaN(values[i])) &&
    !(Math.abs(expected[i]) < 2 ** -126 && values[i] === 0)
  );
}

for (const format of ALL) {
  gpuTest(
    `${format.name}: every way to read it on the GPU equals unpack, bit for bit`,
    async (gpu, trial) => {
      for (const k of widths(format)) {
        const n = 13, stored = randomRows(trial.random, format, n, k);
        const expected = defined(format, stored);
        const w = upload(trial, format, stored, k);
        const [unit] = format.loads, whole = k % unit === 0;
        const single = format.loads.at(-1) === 1;
        const texture = whole && format.planes(k).length === 1 &&
          n * format.planes(k)[0].rowBytes % 16 === 0;
        const ways: [keyof typeof views, texture: boolean, keep: number][] = [
          ["span", false, 1],
        ];
        if (single) ways.push(["scalar", false, 1]);
        if (whole) ways.push(["unit", false, 1], ["unit", false, 0]);
        if (texture) ways.push(["unit", true, 1]);
        if (hasStrips(format)) {
          ways.push(["strip", false, 1], ["strip", false, 0]);
        }
        for (const [view, texture, keep] of ways) {
          const y = trial.filled([n * k], 0x55555555, "u32");
          trial.run(reader(view, texture), { w, y }, { uniforms: { keep } });
          const bits = await gpu.readBuffer(y.buffer, 0, 4 * n * k);
          const want = keep ? expected : new Float32Array(n * k);
          const at = difference(new Uint32Array(bits), want);
          const actual = new Float32Array(bits)[at];
          assertEquals(
            at,
            -1,
            `${view} of rows of ${k}: element ${at} is ${actual}, must be ${
              want[at]
            }`,
          );
        }
      }
    },
  );
}
