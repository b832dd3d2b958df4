/** Checkpoints that are quantised as they are read. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import type { Checkpoint } from "../../lib/checkpoint/checkpoint.ts";
import { encode, Encoder } from "../../lib/checkpoint/encode.ts";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import {
  quantizationNamed,
  QUANTIZATIONS,
  quantizedFormats,
} from "../../lib/checkpoint/quantization.ts";
import { quantized } from "../../lib/checkpoint/quantized.ts";
import { formatNamed } from "../../lib/formats/mod.ts";
import { randomTest } from "../support/random.ts";

const FIXTURES = new URL("../fixtures/", import.meta.url);
const path = (name: string) => new URL(name, FIXTURES).pathname;
const STORY = new URL("../../models/stories-3m/", import.meta.url).pathname;
const OUTLIER = path("tiny-outlier-bf16");

async function bytesOf(checkpoint: Checkpoint, name: string) {
  const { byteLength } = checkpoint.tensors.get(name)!;
  const bytes = new Uint8Array(byteLength);
  await checkpoint.read(name, 0, bytes);
  return bytes;
}

/** A checkpoint of one matrix of random numbers. */
function matrixOf(values: Float32Array<ArrayBuffer>, k: number): Checkpoint {
  const stored = new Uint8Array(values.buffer);
  const name = "matrix";
  const shape = [values.length / k, k];
  return {
    name: "made",
    tensors: new Map([[name, {
      name,
      shape,
      format: formatNamed("f32"),
      byteLength: stored.length,
    }]]),
    read(_name, begin, into) {
      into.set(stored.subarray(begin, begin + into.length));
      return Promise.resolve();
    },
    [Symbol.asyncDispose]: () => Promise.resolve(),
  } as Partial<Checkpoint> as Checkpoint;
}

Deno.test("llama.cpp's Q4_K_M of a small model, byte by byte", async () => {
  await using ours = await openCheckpoint(OUTLIER, { quantize: "Q4_K_M" });
  const file = path("gguf/files/tiny-outlier-bf16-Q4_K_M.gguf");
  await using theirs = await openCheckpoint(file);
  assertEquals(
    [...ours.tensors.keys()].sort(),
    [...theirs.tensors.keys()].sort(),
  );
  const types = new Set<string>();
  for (const { name, shape, format } of theirs.tensors.values()) {
    if (shape.length === 1) continue; // f32 in files, here as stored
    types.add(format.name);
    assertEquals(ours.tensors.get(name)!.format, format, name);
    assertEquals(await bytesOf(ours, name), await bytesOf(theirs, name), name);
  }
  assertEquals(types, new Set(["q8_0", "q5_0"]));
});

Deno.test("mixtures give more bits to the layers that matter", async () => {
  const spec = "synthetic:qwen3-0.6b";
  await using checkpoint = await openCheckpoint(spec, { quantize: "q4_k_m" });
  const more = [...checkpoint.tensors.values()].filter(({ format }) =>
    format.name === "q6_k"
  ).map(({ name }) => name);
  const layers = [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27];
  assertEquals(
    more.sort(),
    [
      "model.embed_tokens.weight",
      ...layers.flatMap((layer) => [
        `model.layers.${layer}.mlp.down_proj.weight`,
        `model.layers.${layer}.self_attn.v_proj.weight`,
      ]),
    ].sort(),
  );
  const counts = Map.groupBy(
    checkpoint.tensors.values(),
    ({ format }) => format.name,
  );
  assertEquals(counts.get("q4_k")!.length, 168);
  assertEquals(counts.get("bf16")!.length, 113); // norms stay
});

Deno.test("an untied head is the one that gets more bits", async () => {
  const spec = "synthetic:qwen3-8b";
  await using checkpoint = await openCheckpoint(spec, { quantize: "q4_0" });
  const name = (tensor: string) => checkpoint.tensors.get(tensor)!.format.name;
  assertEquals(name("lm_head.weight"), "q6_k");
  assertEquals(name("model.embed_tokens.weight"), "q4_0");
  assertEquals(checkpoint.synthetic, undefined);
});

Deno.test("rows that are not whole blocks get formats that fit", async () => {
  await using story = await openCheckpoint(STORY);
  const formats = (name: string) =>
    [
      "model.layers.0.self_attn.q_proj.weight", // 192
      "model.layers.0.mlp.down_proj.weight", // 512
      "model.embed_tokens.weight",
    ].map((tensor) =>
      quantizedFormats(story, quantizationNamed(name)!).get(tensor)!.name
    );
  assertEquals(formats("q6_k"), ["q8_0", "q6_k", "q8_0"]);
  assertEquals(formats("q5_k"), ["q5_1", "q5_k", "q8_0"]);
  assertEquals(formats("q4_k"), ["q5_0", "q4_k", "q8_0"]);
  assertEquals(formats("q3_k"), ["q4_0", "q3_k", "q8_0"]);
  assertEquals(formats("q2_k"), ["q4_0", "q2_k", "q8_0"]);
  await using narrow = await openCheckpoint(path("tiny-untied-f32"));
  const [found] = quantizedFormats(narrow, quantizationNamed("q8_0")!);
  assert(narrow.config.hiddenSize % 32 !== 0);
  assertEquals(found[1].name, "f16");
});

randomTest("any range of a tensor can be read", async (random) => {
  const k = 512, rows = 5;
  const values = Float32Array.from({ length: rows * k }, () => random.next());
  for (const to of ["q8_0", "q4_k"].map(formatNamed)) {
    const whole = encode(
      formatNamed("f32"),
      to,
      new Uint8Array(values.buffer),
    );
    await using checkpoint = quantized(
      matrixOf(values, k),
      new Map([["matrix", to]]),
    );
    assertEquals(
      checkpoint.tensors.get("matrix")!.byteLength,
      rows * k / to.elements * to.bytes,
    );
    for (let n = 0; n < 30; n++) {
      const begin = random.int(0, whole.length - 1);
      const length = random.int(0, whole.length - begin);
      const into = new Uint8Array(length).fill(0xaa);
      await checkpoint.read("matrix", begin, into);
      assertEquals(into, whole.slice(begin, begin + length), `from ${begin}`);
    }
    await assertRejects(
      () => checkpoint.read("matrix", 1, new Uint8Array(whole.length)),
      RangeError,
    );
  }
});

randomTest("several threads give the bytes of one", async (random) => {
  const values = Float32Array.from({ length: 1 << 20 }, () => random.next());
  const stored = new Uint8Array(values.buffer);
  const from = formatNamed("f32");
  using encoder = new Encoder(3);
  for (const to of ["q4_0", "q5_k"].map(formatNamed)) {
    const expected = encode(from, to, stored);
    const into = new Uint8Array(expected.length).fill(0xaa);
    await encoder.encode(from, to, stored, into);
    assertEquals(encoder.workers, 3);
    assertEquals(into, expected);
  }
  values[777_777] = NaN;
  await assertRejects(
    () =>
      encoder.encode(
        from,
        formatNamed("q8_0"),
        stored,
        new Uint8Array((1 << 20) / 32 * 34),
      ),
    Error,
    "it has the value NaN, must have finite ones",
  );
});

Deno.test("a value that is not finite is refused by the tensor's name", async () => {
  const values = new Float32Array(512);
  values[300] = -Infinity;
  await using checkpoint = quantized(
    matrixOf(values, 256),
    new Map([["matrix", formatNamed("q4_0")]]),
  );
  await assertRejects(
    () => bytesOf(checkpoint, "matrix"),
    Error,
    "Cannot quantise matrix of made: it has the value -Infinity, must have finite ones",
  );
});

Deno.test("what is quantised already is refused", async () => {
  const file = path("gguf/files/base-Q8_0.gguf");
  const error = await assertRejects(
    () => openCheckpoint(file, { quantize: "q4_0" }),
    Error,
  );
  assertEquals(
    error.message,
    `Cannot quantise ${file} as q4_0: blk.0.attn_q.weight is stored as q8_0 already, must be bf16, f16 or f32`,
  );
  // Nothing has to be done.
  await using same = await openCheckpoint(file, { quantize: "q8_0" });
  assertEquals(
    same.tensors.get("model.embed_tokens.weight")!.format.name,
    "q8_0",
  );
  await assertRejects(
    () => openCheckpoint(STORY, { quantize: "q9" }),
    Error,
    `quantize is "q9", must be such as q8_0, q4_k_m`,
  );
});

Deno.test("every quantisation's formats have quantisers", async () => {
  for (const { name } of QUANTIZATIONS) {
    await using checkpoint = await openCheckpoint(STORY, { quantize: name });
    for (const tensor of checkpoint.tensors.keys()) {
      await bytesOf(checkpoint, tensor);
    }
  }
});
