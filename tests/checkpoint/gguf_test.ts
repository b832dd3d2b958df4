import { assert, assertEquals, assertRejects } from "@std/assert";
import { readGgufHeader } from "../../lib/checkpoint/gguf.ts";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import type { ByteSource } from "../../lib/checkpoint/safetensors.ts";
import {
  type Entry,
  ones,
  SMALL,
  smallTensors,
  writeGguf,
  type WrittenTensor,
  zeros,
} from "../support/gguf.ts";
import { rangeResponse, serveFiles } from "../support/serve_folder.ts";
import { emptyWebCache } from "../support/web_cache.ts";
import { copyCheckpoint, tempFolder } from "../support/temp_checkpoint.ts";

const FILES = new URL("../fixtures/gguf/files/", import.meta.url).pathname;
const TINY = new URL("../fixtures/tiny-tied-bf16/", import.meta.url);
const fileOf = (name: string) => Deno.readFile(FILES + name);

/** A file in memory, which counts how it is read. */
function sourceOf(bytes: Uint8Array): ByteSource & { reads: number } {
  return {
    name: "x.gguf",
    size: bytes.length,
    reads: 0,
    // deno-lint-ignore require-await
    async read(begin, into) {
      this.reads++;
      if (begin + into.length > bytes.length) throw new RangeError("beyond");
      into.set(bytes.subarray(begin, begin + into.length));
    },
  };
}

async function refusal(bytes: Uint8Array): Promise<string> {
  const { message } = await assertRejects(
    () => readGgufHeader(sourceOf(bytes)),
    Error,
  );
  assert(message.startsWith("Cannot read x.gguf: "), message);
  assert(!message.includes("\n"), message);
  return message.slice("Cannot read x.gguf: ".length);
}

/** Opens a small model with some of it changed; the error without its beginning. */
async function openSmall(
  entries: readonly Entry[],
  tensors: readonly WrittenTensor[] = smallTensors(8),
  name = "x.gguf",
) {
  const folder = await tempFolder({ [name]: writeGguf(entries, tensors) });
  try {
    return { checkpoint: await openCheckpoint(`${folder.path}/${name}`) };
  } catch (error) {
    const text = (error as Error).message;
    assert(/^Cannot [^\n]*$/.test(text), text);
    return { error: text.replaceAll(`${folder.path}/`, "") };
  } finally {
    await folder[Symbol.asyncDispose](); // an open file stays readable
  }
}

const withKeys = (...changed: Entry[]): Entry[] => [
  ...SMALL.filter(([key]) => changed.every(([other]) => other !== key)),
  ...changed,
];

Deno.test("readGgufHeader reads every kind of value in any order", async () => {
  const { metadata, tensors } = await readGgufHeader(
    sourceOf(await fileOf("align64-v2.gguf")),
  );
  assertEquals(
    Object.fromEntries([...metadata].filter(([key]) => key.startsWith("x."))),
    {
      "x.bools": [true, false, true],
      "x.f64": 0.1,
      "x.floats": [0.5, -2],
      "x.i16": -3,
      "x.i64": -4611686018427387904,
      "x.i8": -7,
      "x.none": [],
      "x.text": "ü\0 😀",
      "x.u16": 65535,
      "x.u64": 9223372036854775809,
      "x.u8": 7,
    },
  );
  assertEquals(tensors.size, 24);
  const { dtype, shape, begin, end } = tensors.get("token_embd.weight")!;
  assertEquals({ dtype, shape }, { dtype: "Q8_0", shape: [512, 64] });
  assertEquals([begin % 64, end - begin], [0, 512 * 68]);
});

Deno.test("readGgufHeader reads strings across the borders of its reads", async () => {
  const tokens = Array.from(
    { length: 60_000 },
    (_, i) => "aé€😀Ġ".slice(i % 4, 2 + i % 7) + i + "x".repeat(i % 300),
  );
  const source = sourceOf(writeGguf([
    ["t", "list", ["string", tokens]],
    ["n", "list", ["i16", tokens.map((_, i) => i % 1000 - 500)]],
    ["end", "string", "ok"],
  ], []));
  const { metadata } = await readGgufHeader(source);
  const well = tokens.map((token) => token.toWellFormed());
  assertEquals(metadata.get("t"), well);
  assertEquals(metadata.get("n"), tokens.map((_, i) => i % 1000 - 500));
  assertEquals(metadata.get("end"), "ok");
  assert(source.size > 8e6 && source.reads < 10, `${source.reads} reads`);
});

/** Bytes of base-Q8_0.gguf changed as in broken files that llama.cpp refuses too. */
const BROKEN: [what: string, Record<number, number>, says: RegExp][] = [
  ["magic", { 2: 77, 3: 76 }, /it begins with the bytes 47 47 4d 4c, must/],
  ["version 1", { 4: 1 }, /it is GGUF version 1, must be 2 or 3/],
  ["version 4", { 4: 4 }, /it is GGUF version 4, must be 2 or 3/],
  ["big-endian", { 4: 0, 7: 3 }, /it is big-endian, must be little-endian/],
  ["huge count", { 8: 0, 15: 16 }, /announces 115\d+ tensors, too many/],
  ["keys", { 22: 1 }, /announces 28147\d+ keys, too many for 130144 bytes/],
  ["huge string", { 24: 0, 29: 1 }, /key 1 of 18 has 1099511627776 bytes/],
  ["removed type", { 1133: 31 }, /attn_q.weight has type 31, Q4_0_4_4, which/],
  ["unknown type", { 1133: 99 }, /attn_q.weight has type 99, which is not/],
  ["blocks", { 1117: 65 }, /rows of 65, must be whole blocks of 32 .* Q8_0/],
  [
    "offset",
    { 1137: 32, 1138: 0 },
    /blk.0.attn_q.weight begins at byte 2176, must begin at 2400, after outp/,
  ],
];

Deno.test("readGgufHeader refuses broken files in one line", async () => {
  const base = await fileOf("base-Q8_0.gguf");
  for (const [what, changes, says] of BROKEN) {
    const bytes = base.slice();
    for (const [at, byte] of Object.entries(changes)) bytes[Number(at)] = byte;
    const said = await refusal(bytes);
    assert(says.test(said), `${what}: ${said}`);
  }
  assertEquals(
    await refusal(base.slice(0, 126048)),
    "tensor blk.1.ffn_up.weight ends at byte 130144, but the file has 126048 bytes: it is truncated",
  );
  assertEquals(
    await refusal(base.slice(0, 700)),
    "key 17 of 18 needs 28 bytes from byte 677 on, but the file has 700: it is truncated or damaged",
  );
  assertEquals(
    await refusal(base.slice(0, 0)),
    "it is empty, must be a GGUF file",
  );
  assertEquals(
    await refusal(new TextEncoder().encode("<html><title>Not here</title>")),
    'it is an HTML page titled "Not here", must be a GGUF file',
  );
  // Whatever is cut off is noticed.
  for (let size = 1; size < 2200; size += 7) await refusal(base.slice(0, size));
});

Deno.test("readGgufHeader refuses wrong keys and tensors", async () => {
  const small = smallTensors(8);
  const file = (entries: Entry[], tensors: WrittenTensor[] = []) =>
    refusal(writeGguf(entries, tensors));
  assertEquals(
    await file([["a", "u8", 1], ["a", "u8", 2]]),
    "it has the key a twice",
  );
  assertEquals(
    await file([["a", "list", ["list", [["u8", [1]]]]]]),
    "a is a list of lists, which are not allowed",
  );
  assertEquals(
    await file([["general.alignment", "u32", 24]]),
    "general.alignment is 24, must be a power of two up to 1048576",
  );
  assertEquals(
    await file([], [small[0], small[0]]),
    "it has tensor token_embd.weight twice",
  );
  assertEquals(
    await file([], [{ ...small[0], dimensions: [32, 0] }]),
    "tensor token_embd.weight has the impossible shape [0, 32]",
  );
  assertEquals(
    await file([], [{ ...small[0], dimensions: [32, 1, 1, 1, 1] }]),
    "tensor token_embd.weight has 5 dimensions, must have 1 to 4",
  );
  const kind = writeGguf([["a", "u8", 1]], []);
  kind[24 + 8 + 1] = 13;
  assertEquals(
    await refusal(kind),
    "a has a value of the unknown kind 13",
  );
});

Deno.test("a GGUF file gives configuration, defaults and tensors", async () => {
  const { checkpoint } = await openSmall(
    withKeys(
      ["qwen3.rope.scaling.type", "string", "yarn"],
      ["qwen3.rope.scaling.factor", "f32", 4],
      ["qwen3.rope.scaling.original_context_length", "u32", 16],
      ["general.sampling.temp", "f32", 0.5],
      ["general.sampling.top_k", "i32", 20],
      ["tokenizer.ggml.eos_token_id", "u32", 3],
      ["tokenizer.ggml.eot_token_id", "u32", 4],
      ["tokenizer.ggml.bos_token_id", "u32", 2],
    ),
    [...smallTensors(8).reverse(), zeros("spare.weight", 32, 2)],
  );
  await using opened = checkpoint!;
  assertEquals({ ...opened.config, rmsNormEps: 0 }, {
    modelType: "qwen3",
    vocabSize: 8,
    hiddenSize: 32,
    intermediateSize: 32,
    numHiddenLayers: 1,
    numAttentionHeads: 1,
    numKeyValueHeads: 1,
    headDim: 32,
    maxPositionEmbeddings: 64,
    rmsNormEps: 0,
    ropeTheta: 1e6,
    ropeScaling: {
      factor: 4,
      originalMaxPositionEmbeddings: 16,
      attentionFactor: 0.1 * Math.log(4) + 1,
      betaFast: 32,
      betaSlow: 1,
      truncate: true,
    },
    tieWordEmbeddings: true,
    bosTokenId: 2,
    eosTokenIds: [3, 4],
  });
  assertEquals(opened.generation, {
    doSample: true,
    temperature: 0.5,
    topK: 20,
    eosTokenIds: [3, 4],
  });
  assertEquals(opened.tensors.size, 13);
  assertEquals(opened.tokenizer, undefined);
  assertEquals(opened.notices, [
    "the weights have a tensor that the model does not use: spare.weight",
  ]);
  const norm = new Uint8Array(128);
  await opened.read("model.norm.weight", 0, norm);
  assertEquals(new Float32Array(norm.buffer), new Float32Array(32).fill(1));
});

Deno.test("a chat model's GGUF file without sampling settings gets Qwen's", async () => {
  const chat = (end: string, template: string): Entry[] => [
    ["tokenizer.ggml.tokens", "list", ["string", ["a", end]]],
    ["tokenizer.ggml.eos_token_id", "u32", 1],
    ["tokenizer.chat_template", "string", template],
  ];
  const temp: Entry = ["general.sampling.temp", "f32", 0];
  const cases: [Entry[], Record<string, unknown>, string?][] = [
    [
      chat("<|im_end|>", "<think>"),
      { doSample: true, temperature: 0.6, topK: 20, topP: 0.95 },
      "temperature 0.6, top-k 20, top-p 0.95",
    ],
    [
      chat("<|im_end|>", "{{ messages }}"),
      { doSample: true, temperature: 0.7, topK: 20, topP: 0.8 },
      "temperature 0.7, top-k 20, top-p 0.8",
    ],
    // The file's own settings, a base model, and a file without a template.
    [[...chat("<|im_end|>", "a"), temp], { doSample: false, temperature: 0 }],
    [chat("<|endoftext|>", "a"), {}],
    [chat("<|im_end|>", "a").slice(0, 2), {}],
  ];
  for (const [entries, expected, said] of cases) {
    const { checkpoint } = await openSmall([...SMALL, ...entries]);
    await using opened = checkpoint!;
    assertEquals(opened.generation, { ...expected, eosTokenIds: [1] });
    assertEquals(
      opened.notices,
      said === undefined ? [] : [
        `the file has no sampling settings, using Qwen's published ones: ${said}`,
      ],
    );
  }
});

Deno.test("an LM head in the file makes a GGUF model untied", async () => {
  const head = zeros("output.weight", 32, 8);
  const { checkpoint } = await openSmall(SMALL, [head, ...smallTensors(8)]);
  await using opened = checkpoint!;
  assertEquals(opened.config.tieWordEmbeddings, false);
  assertEquals(opened.tensors.get("lm_head.weight")?.shape, [8, 32]);
});

Deno.test("openCheckpoint refuses GGUF files of other models by names", async () => {
  const tensors = smallTensors(8);
  const changed = (name: string, change: Partial<WrittenTensor>) =>
    tensors.map((one) => one.name === name ? { ...one, ...change } : one);
  const cases: [Entry[], WrittenTensor[], string][] = [
    [
      withKeys(["general.architecture", "string", "llama"]),
      tensors,
      'Cannot use x.gguf: general.architecture is "llama", must be "qwen3"',
    ],
    [
      withKeys(["general.architecture", "string", "qwen2moe"]),
      tensors,
      'Cannot use x.gguf: general.architecture is "qwen2moe", must be "qwen3" or "qwen3moe"',
    ],
    [[], tensors, "Cannot use x.gguf: it has no general.architecture"],
    [
      withKeys(["qwen3.block_count", "string", "1"]),
      tensors,
      'Cannot use x.gguf: qwen3.block_count is "1", must be a positive whole number up to 1000',
    ],
    [
      withKeys(["qwen3.block_count", "u32", 2]),
      tensors,
      "blk.1.ffn_norm.weight",
    ],
    [
      withKeys(["qwen3.rope.scaling.type", "string", "linear"]),
      tensors,
      'Cannot use x.gguf: qwen3.rope.scaling.type is "linear", must be "none" or "yarn"',
    ],
    [
      withKeys(["qwen3.attention.value_length", "u32", 16]),
      tensors,
      "qwen3.attention.value_length is 16, must be attention.key_length, 32",
    ],
    [
      withKeys(["qwen3.feed_forward_length", "u32", 64]),
      tensors,
      "blk.0.ffn_gate.weight has shape [32, 32], must be [64, 32] by the file's metadata",
    ],
    [
      withKeys(["general.sampling.top_p", "f32", 2]),
      tensors,
      "general.sampling of x.gguf: top_p is 2, must be above 0 and at most 1",
    ],
    [[...SMALL], tensors.slice(1), "it lacks token_embd.weight"],
    [
      [...SMALL],
      tensors.slice(0, -1),
      "Cannot load x.gguf: it lacks blk.0.ffn_norm.weight, it must have the tensors of a Qwen3 with 1 layers",
    ],
    [
      [...SMALL],
      [...tensors, ones("blk.0.attn_q.bias", 32)],
      "Cannot load x.gguf: it has blk.0.attn_q.bias, which is not supported",
    ],
    [
      [...SMALL],
      changed("blk.0.attn_q.weight", { type: 28, bytes: new Uint8Array(8192) }),
      "Cannot load x.gguf: blk.0.attn_q.weight has type F64, must be such as Q4_K or IQ4_XS",
    ],
  ];
  for (const [entries, tensors, says] of cases) {
    const { error } = await openSmall(entries, tensors);
    assert(error?.includes(says), `${error}\nmust include ${says}`);
  }
});

Deno.test("openCheckpoint finds the GGUF file of a folder", async () => {
  const file = writeGguf(SMALL, smallTensors(8));
  await using one = await tempFolder({ "a.gguf": file, "README.md": "a" });
  for (const config of [undefined, "{}"]) {
    // The Hub's GGUF repositories may have a config.json.
    if (config) await Deno.writeTextFile(`${one.path}/config.json`, config);
    await using checkpoint = await openCheckpoint(one.path);
    assertEquals(checkpoint.location, `${one.path}/a.gguf`);
  }
  await Deno.writeFile(`${one.path}/b.gguf`, file);
  await assertRejects(
    () => openCheckpoint(one.path),
    Error,
    "it has 2 GGUF files, add :a.gguf or another: b.gguf",
  );
  await using byUrl = await openCheckpoint(`file://${one.path}/b.gguf`);
  assertEquals(byUrl.config.vocabSize, 8);
  // A link keeps its name.
  await Deno.rename(`${one.path}/a.gguf`, `${one.path}/blob`);
  await Deno.symlink(`${one.path}/blob`, `${one.path}/c.gguf`);
  await using linked = await openCheckpoint(`${one.path}/c.gguf`);
  assertEquals(linked.location, `${one.path}/c.gguf`);
  // Safetensors win over a GGUF file beside them.
  await using both = await copyCheckpoint(TINY, { "a.gguf": file });
  await using checkpoint = await openCheckpoint(both.path);
  assertEquals(checkpoint.location, both.path);
});

Deno.test("openCheckpoint takes split GGUF files and says what is missing", async () => {
  const name = (part: number) => `split-Q8_0-0000${part}-of-00003.gguf`;
  const parts = await Promise.all([1, 2, 3].map((i) => fileOf(name(i))));
  await using folder = await tempFolder(
    Object.fromEntries(parts.map((bytes, i) => [name(i + 1), bytes])),
  );
  const { path } = folder;
  {
    await using checkpoint = await openCheckpoint(path);
    assertEquals(checkpoint.tensors.size, 24);
  }
  const refused = async (says: string) => {
    await assertRejects(
      () => openCheckpoint(`${path}/${name(1)}`),
      Error,
      says,
    );
  };
  await Deno.remove(`${path}/${name(3)}`);
  await refused(`1 of 3 parts are missing: ${path}/${name(3)}`);
  await Deno.writeFile(`${path}/${name(3)}`, parts[1]);
  await refused(
    `Cannot read ${path}/${
      name(3)
    }: it says that it is part 2 of 3, must be part 3 of 3`,
  );
  const whole = await fileOf("base-Q8_0.gguf");
  await Deno.writeFile(`${path}/${name(3)}`, whole);
  await refused("it says that it is a whole file, must be part 3 of 3");
  await Deno.writeFile(`${path}/x.gguf`, parts[2]);
  await assertRejects(
    () => openCheckpoint(`${path}/x.gguf`),
    Error,
    "it says that it is part 3 of 3, must be a whole file, by its name",
  );
});

Deno.test("a GGUF file on the web is kept for the next time", async () => {
  await using _cache = await emptyWebCache();
  const bytes = await fileOf("base-Q8_0.gguf");
  let sent = 0;
  const server = serveFiles(new Map([["/x.gguf", bytes]]), {
    intercept(request) {
      if (new URL(request.url).pathname !== "/x.gguf") return;
      if (request.headers.get("if-none-match") === '"1"') {
        return new Response(null, { status: 304, headers: { etag: '"1"' } });
      }
      sent++;
      return rangeResponse(request, bytes, { etag: '"1"' });
    },
  });
  const norm = async () => {
    await using checkpoint = await openCheckpoint(`${server.url}/x.gguf`);
    const bytes = new Uint8Array(256);
    await checkpoint.read("model.norm.weight", 0, bytes);
    return bytes;
  };
  const first = await norm(), asked = server.requests.length, before = sent;
  assertEquals(await norm(), first);
  assertEquals([server.requests.length - asked, sent - before], [1, 0]);
  await server[Symbol.asyncDispose]();
  assertEquals(await norm(), first); // offline
});

for (const ranges of [true, false]) {
  Deno.test(`openCheckpoint reads a GGUF file over HTTP ${ranges ? "by" : "without"} ranges`, async () => {
    const files = new Map<string, Uint8Array>();
    const parts = [1, 2, 3].map((i) => `split-Q8_0-0000${i}-of-00003.gguf`);
    for (const name of ["base-Q8_0.gguf", ...parts]) {
      files.set(`/a b/${name}`, await fileOf(name));
    }
    await using server = serveFiles(files, { ranges });
    await using local = await openCheckpoint(`${FILES}base-Q8_0.gguf`);
    for (const name of ["base-Q8_0.gguf", parts[0]]) {
      await using remote = await openCheckpoint(`${server.url}/a b/${name}`);
      assertEquals(remote.config, local.config);
      for (const { name, byteLength } of local.tensors.values()) {
        const [a, b] = [new Uint8Array(byteLength), new Uint8Array(byteLength)];
        await local.read(name, 0, a);
        await remote.read(name, 0, b);
        assertEquals(a, b);
      }
    }
    await assertRejects(
      () => openCheckpoint(`${server.url}/nope.gguf`),
      Error,
      `Cannot open ${server.url}/nope.gguf: there is no such file`,
    );
  });
}
