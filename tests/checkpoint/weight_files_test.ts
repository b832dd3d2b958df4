import { assert, assertEquals, assertRejects } from "@std/assert";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import { loadQwen3 } from "../../mod.ts";
import { readGolden, relativeError } from "../support/golden.ts";
import {
  changedCheckpoint,
  copyCheckpoint,
  type FileTensor,
  safetensorsOf,
  type TempCheckpoint,
  tensorsOf,
} from "../support/temp_checkpoint.ts";

type Tensors = Map<string, FileTensor>;

const TIED = "tiny-tied-bf16", HEAD = "lm_head.weight";
const EMBEDDING = "model.embed_tokens.weight", NORM = "model.norm.weight";
const Q_PROJ = "model.layers.0.self_attn.q_proj.weight";

const tied = await readGolden(TIED);
const changed = (
  tensors: (tensors: Tensors) => void,
  config?: Record<string, unknown>,
) => changedCheckpoint(tied.model, { config, tensors });

const zeros = (
  dtype: string,
  bytes: number,
  ...shape: number[]
): FileTensor => ({
  dtype,
  shape,
  bytes: new Uint8Array(bytes),
});

/** Gives tensors other names, in place. */
function rename(tensors: Tensors, name: (own: string) => string) {
  const all = [...tensors];
  tensors.clear();
  for (const [own, tensor] of all) tensors.set(name(own), tensor);
}

const withoutPrefix = (own: string) => own.replace(/^model\./, "");

/** Logits of the longest golden prompt; the notices that came with them. */
async function logitsOf({ path }: TempCheckpoint) {
  const notices: string[] = [];
  using qwen = await loadQwen3(path, {
    device: "cpu",
    onNotice: (notice) => notices.push(notice),
  });
  assertEquals(qwen.notices, notices);
  const longest = tied.cases.reduce((a, b) =>
    b.tokenIds.length > a.tokenIds.length ? b : a
  );
  return { notices, logits: await qwen.logits(longest.tokenIds), longest };
}

/** Asserts that a checkpoint computes what transformers does from the fixture. */
async function assertGolden(folder: TempCheckpoint, ...notices: string[]) {
  await using _ = folder;
  const found = await logitsOf(folder);
  assertEquals(
    found.notices.map((notice) => notice.replaceAll(folder.path, "PATH")),
    notices,
  );
  const error = relativeError(found.logits, found.longest.logits);
  assert(error <= 1e-4, `the relative error is ${error}`);
}

/** Asserts the whole message, with PATH for the folder. */
async function assertRefused(made: Promise<TempCheckpoint>, message: string) {
  await using folder = await made;
  const error = await assertRejects(() => openCheckpoint(folder.path), Error);
  assertEquals(error.message.replaceAll(folder.path, "PATH"), message);
}

Deno.test("names may lack the prefix model., all or some of them", async () => {
  await assertGolden(await changed((all) => rename(all, withoutPrefix)));
  await assertGolden(
    await changed((all) =>
      rename(all, (own) => own.includes("norm") ? withoutPrefix(own) : own)
    ),
  );
});

Deno.test("a name with the prefix wins over one without", async () => {
  const folder = await changed((all) =>
    all.set("norm.weight", zeros("BF16", 128, 64))
  );
  await assertGolden(
    folder,
    "the weights have a tensor that the model does not use: norm.weight",
  );
});

Deno.test("a tied embedding may be stored as the head only", async () => {
  await assertGolden(
    await changed((all) =>
      rename(all, (own) => own === EMBEDDING ? HEAD : own)
    ),
  );
});

Deno.test("a tied head that differs from the embedding is used, with a notice", async () => {
  const reversed = (all: Tensors) => {
    const { dtype, shape, bytes } = all.get(EMBEDDING)!;
    const half = new Uint16Array(bytes.slice().buffer).reverse();
    const head = { dtype, shape, bytes: new Uint8Array(half.buffer) };
    all.set(HEAD, head);
  };
  await using ties = await changed(reversed);
  await using unties = await changed(reversed, { tie_word_embeddings: false });
  const [own, expected] = [await logitsOf(ties), await logitsOf(unties)];
  assertEquals(own.logits, expected.logits);
  assert(relativeError(own.logits, own.longest.logits) > 0.1);
  assertEquals(expected.notices, []);
  assertEquals(own.notices, [
    `config.json has tie_word_embeddings true, but ${HEAD} differs from ${EMBEDDING}: both are used`,
  ]);
});

Deno.test("tensors that are not needed may have any type, and are listed", async () => {
  const extra: [string, FileTensor][] = [
    ["model.position_ids", zeros("I64", 64, 1, 8)],
    ["model.mask", zeros("BOOL", 3, 3)],
    ["score.weight", zeros("F64", 16, 2)],
    ["model.layers.0.self_attn.q_proj.bias", zeros("BF16", 256, 128)],
    ["model.layers.2.input_layernorm.weight", zeros("F8_E5M2", 64, 64)],
    ["constructor", zeros("C64", 8, 1)],
    ["", zeros("U16", 0, 0)],
    ["a\u001b[2J\n", zeros("I8", 1, 1)],
  ];
  const listed = [
    ...extra.slice(0, -1).map(([name]) => name || '""'),
    "a\\x1b[2J\\n",
  ].join(", ");
  await assertGolden(
    await changed((all) => {
      for (const [name, tensor] of extra) all.set(name, tensor);
      // transformers saved these and computes them.
      const inverse = "model.layers.0.self_attn.rotary_emb.inv_freq";
      all.set(inverse, zeros("F32", 64, 16));
    }),
    `the weights have 8 tensors that the model does not use: ${listed}`,
  );
});

Deno.test("of thousands of unneeded tensors a few are named and the rest counted", async () => {
  const names = Array.from({ length: 5000 }, (_, i) => `extra.${i}`);
  await using folder = await changed((all) => {
    for (const name of names) all.set(name, zeros("U8", 0, 0));
  });
  await using checkpoint = await openCheckpoint(folder.path);
  assertEquals(checkpoint.notices, [
    `the weights have 5000 tensors that the model does not use: ${
      names.slice(0, 8).join(", ")
    } and 4992 more`,
  ]);
  assertEquals(checkpoint.tensors.size, 24);
});

Deno.test("a tensor that is needed must have a readable type", async () => {
  const as = (name: string, dtype: string, size: number) =>
    changed((all) => {
      const { shape } = all.get(name)!;
      const count = shape.reduce((n, m) => n * m);
      all.set(name, zeros(dtype, count * size, ...shape));
    });
  const must = "must be one of BF16, F16, F32";
  await assertRefused(
    as(NORM, "F64", 8),
    `Cannot load PATH: ${NORM} in PATH/model.safetensors has dtype F64, ${must}`,
  );
  await assertRefused(
    as(Q_PROJ, "F8_E4M3", 1),
    `Cannot load PATH: ${Q_PROJ} in PATH/model.safetensors has dtype F8_E4M3, a quantised form, ${must}`,
  );
});

Deno.test("quantised forms are named from their tensors", async () => {
  const base = Q_PROJ.replace(".weight", "");
  const forms: [suffix: string, form: string][] = [
    [".qweight", "GPTQ or AWQ"],
    [".qzeros", "GPTQ or AWQ"],
    [".weight_packed", "compressed-tensors"],
    [".weight_scale_inv", "FP8 with a scale per block"],
    [".weight_scale", "FP8, INT8 or FP4 with scales"],
    [".weight.quant_state.bitsandbytes__nf4", "bitsandbytes"],
    [".SCB", "bitsandbytes"],
    [".scales", "MLX"],
    [".lora_A.weight", "LoRA (not merged)"],
  ];
  for (const [suffix, form] of forms) {
    for (const name of [base + suffix, withoutPrefix(base + suffix)]) {
      await assertRefused(
        changed((all) => all.set(name, zeros("F32", 4, 1))),
        `Cannot load PATH: ${name} shows weights stored as ${form}, must be plain numbers`,
      );
    }
  }
  // Only next to a weight that the model has.
  await using folder = await changed((all) =>
    all.set("vision.scales", zeros("F32", 4, 1))
  );
  await using _fine = await openCheckpoint(folder.path);
});

Deno.test("missing tensors, missing heads and wrong shapes are named before anything is read", async () => {
  await assertRefused(
    changed((all) => all.delete(NORM)),
    `Cannot load PATH: it lacks ${NORM}, it must have the 24 tensors of a Qwen3 with 2 layers`,
  );
  await assertRefused(
    changed((all) => rename(all, (own) => `module.${own}`)),
    "Cannot load PATH: it lacks model.embed_tokens.weight, model.layers.0.input_layernorm.weight, model.layers.0.self_attn.q_proj.weight, model.layers.0.self_attn.k_proj.weight, model.layers.0.self_attn.v_proj.weight, model.layers.0.self_attn.q_norm.weight, model.layers.0.self_attn.k_norm.weight, model.layers.0.self_attn.o_proj.weight and 16 more and it has unknown tensors module.model.embed_tokens.weight, module.model.layers.0.input_layernorm.weight, module.model.layers.0.mlp.down_proj.weight, module.model.layers.0.mlp.gate_proj.weight, module.model.layers.0.mlp.up_proj.weight, module.model.layers.0.post_attention_layernorm.weight, module.model.layers.0.self_attn.k_norm.weight, module.model.layers.0.self_attn.k_proj.weight and 16 more, it must have the 24 tensors of a Qwen3 with 2 layers",
  );
  await assertRefused(
    changed(() => {}, { tie_word_embeddings: false }),
    `Cannot load PATH: it lacks ${HEAD} and config.json has tie_word_embeddings false: without a head there are no logits`,
  );
  await assertRefused(
    changed(() => {}, { hidden_size: 30000 }),
    `Cannot load PATH: ${EMBEDDING} has shape [512, 64], config.json requires [512, 30000]`,
  );
  await assertRefused(
    changed(() => {}, { num_hidden_layers: 1000, layer_types: null }),
    `Cannot load PATH: it lacks ${
      [
        "input_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.q_norm",
        "self_attn.k_norm",
        "self_attn.o_proj",
        "post_attention_layernorm",
      ].map((role) => `model.layers.2.${role}.weight`).join(", ")
    } and 10970 more, it must have the 11002 tensors of a Qwen3 with 1000 layers`,
  );
  await assertRefused(
    changed((all) => all.set(HEAD, zeros("BF16", 64, 1, 32))),
    `Cannot load PATH: ${HEAD} has shape [1, 32], config.json requires [512, 64]`,
  );
});

const INDEX = "model.safetensors.index.json";

/** The tied fixture in two shards, with an index of the test's choice. */
async function sharded(
  weightMap: Record<string, string>,
  shards: Record<string, Tensors>,
): Promise<TempCheckpoint> {
  return await copyCheckpoint(tied.model, {
    "model.safetensors": undefined,
    [INDEX]: JSON.stringify({ metadata: {}, weight_map: weightMap }),
    ...Object.fromEntries(
      Object.entries(shards).map(([file, all]) => [file, safetensorsOf(all)]),
    ),
  });
}

/** The fixture's tensors in two halves, and the index of them. */
async function halves() {
  const url = new URL("model.safetensors", tied.model);
  const all = [...tensorsOf(await Deno.readFile(url))];
  const [a, b] = [all.slice(0, 12), all.slice(12)].map((part) => new Map(part));
  const shards = { "a.safetensors": a, "b.safetensors": b };
  const map: Record<string, string> = {};
  for (const [file, part] of Object.entries(shards)) {
    for (const name of part.keys()) map[name] = file;
  }
  return { map, shards, a, b };
}

Deno.test("an index may name tensors that no shard has, if they are not needed", async () => {
  const { map, shards, b } = await halves();
  await assertGolden(
    await sharded({ ...map, [HEAD]: "b.safetensors" }, shards),
  );
  await assertGolden(
    await sharded({ ...map, "model.extra": "b.safetensors" }, shards),
    `PATH/${INDEX} has a tensor that no file has: model.extra`,
  );
  b.delete(NORM);
  await assertRefused(
    sharded(map, shards),
    `Cannot load PATH: it lacks ${NORM} (not in b.safetensors), it must have the 24 tensors of a Qwen3 with 2 layers`,
  );
});

Deno.test("a tensor is read where it is, even if the index has it elsewhere or not at all", async () => {
  const { map, shards } = await halves();
  await assertGolden(
    await sharded({ ...map, [NORM]: "a.safetensors" }, shards),
    `PATH/${INDEX} is wrong about the location of a tensor: ${NORM}`,
  );
  const { [NORM]: _home, ...others } = map;
  await assertGolden(
    await sharded(others, shards),
    `PATH/${INDEX} is wrong about the location of a tensor: ${NORM}`,
  );
});

Deno.test("of a tensor in two shards the index names one, or it is refused", async () => {
  for (const [file, other] of ["ab", "ba"]) {
    const { map, shards } = await halves();
    const home = `${file}.safetensors`,
      part = shards[home as keyof typeof shards];
    const [name, tensor] = [...part][3];
    const false_ = { ...tensor, bytes: new Uint8Array(tensor.bytes.length) };
    shards[`${other}.safetensors` as keyof typeof shards].set(name, false_);
    await assertGolden(await sharded(map, shards));
    const { [name]: _home, ...rest } = map;
    await assertRefused(
      sharded(rest, shards),
      `Cannot open PATH: ${name} is in a.safetensors and in b.safetensors, PATH/${INDEX} must put it in one of them`,
    );
  }
});

Deno.test("shards may have different types", async () => {
  const { map, shards, b } = await halves();
  for (const [name, { dtype, shape, bytes }] of b) {
    assertEquals(dtype, "BF16");
    const half = new Uint16Array(bytes.slice().buffer);
    const words = Uint32Array.from(half, (bits) => bits << 16);
    const wide = new Uint8Array(words.buffer);
    b.set(name, { dtype: "F32", shape, bytes: wide });
  }
  await assertGolden(await sharded(map, shards));
});

Deno.test("one file of weights wins over an index beside it", async () => {
  const text = '{"weight_map": {"x": "missing.safetensors"}}';
  await assertGolden(await copyCheckpoint(tied.model, { [INDEX]: text }));
});

Deno.test("weights in another form are named", async () => {
  const without =
    "Cannot open PATH: there are no weights (looked for PATH/model.safetensors and PATH/model.safetensors.index.json";
  const only = (...files: string[]) =>
    copyCheckpoint(tied.model, {
      "model.safetensors": undefined,
      ...Object.fromEntries(files.map((file) => [file, "x"])),
    });
  await assertRefused(only(), `${without})`);
  await assertRefused(
    only("pytorch_model.bin"),
    `${without}; pytorch_model.bin must be converted to safetensors)`,
  );
  await assertRefused(
    only("tf_model.h5", "consolidated.safetensors"),
    `${without}; consolidated.safetensors, tf_model.h5 must be converted to safetensors)`,
  );
  await assertRefused(
    copyCheckpoint(tied.model, {
      "config.json": undefined,
      "adapter_config.json": "{}",
    }),
    "Cannot open PATH: there is no PATH/config.json but adapter_config.json: a LoRA adapter has to be merged into its model",
  );
});

const POINTER = `version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 1503300328
`;
const PAGE = "\n<!DOCTYPE html>\n<html><body>Sign in</body></html>";
const POINTER_KIND =
  "it is a Git LFS pointer to 1503300328 bytes (git lfs pull fetches the file)";

Deno.test("a Git LFS pointer or a web page in place of a text file is named", async () => {
  for (const file of ["config.json", "generation_config.json"]) {
    for (
      const [text, kind] of [
        [POINTER, POINTER_KIND],
        [PAGE, "it is an HTML page"],
        ['<?xml version="1.0"?><Error/>', "it is an XML document"],
      ]
    ) {
      await assertRefused(
        copyCheckpoint(tied.model, { [file]: text }),
        `Cannot read PATH/${file}: ${kind}, must be the file itself`,
      );
    }
  }
  await assertRefused(
    copyCheckpoint(tied.model, {
      "model.safetensors": undefined,
      [INDEX]: POINTER,
    }),
    `Cannot read PATH/${INDEX}: ${POINTER_KIND}, must be the file itself`,
  );
  for (const file of ["tokenizer.json", "chat_template.jinja"]) {
    await using folder = await copyCheckpoint(tied.model, { [file]: POINTER });
    const error = await assertRejects(
      () => loadQwen3(folder.path, { device: "cpu" }),
      Error,
    );
    assertEquals(
      error.message,
      `Cannot read ${folder.path}/${file}: ${POINTER_KIND}, must be the file itself`,
    );
  }
  await assertRefused(
    copyCheckpoint(tied.model, { "config.json": '{"error": "Not found"}' }),
    'Cannot use PATH/config.json: model_type is missing, must be "qwen3" or "qwen3_moe"; its fields are error',
  );
});

Deno.test("a different file in place of weights is named", async () => {
  const latin1 = (text: string) =>
    Uint8Array.from(text, (c) => c.charCodeAt(0));
  const zip = "a zip archive, as PyTorch saves checkpoints";
  const kinds: [content: string, kind: string][] = [
    [POINTER, POINTER_KIND.slice(6)],
    [PAGE, "an HTML page"],
    ["PK\x03\x04\x00\x00\x08\x08\x00\x00archive/data.pkl", zip],
    [
      "\x80\x02\x8a\x0al\xfc\x9c",
      "a Python pickle, as PyTorch saves checkpoints",
    ],
    ["GGUF\x03\x00\x00\x00\x36\x01", "a GGUF file"],
    ["\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras saves checkpoints"],
    ["\x93NUMPY\x01\x00v\x00", "a NumPy array"],
    ["\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "gzip data"],
    ["Entry not found", 'text that begins "Entry not found"'],
    ["no", 'text that begins "no"'],
    [
      "\x00".repeat(5000),
      "a file that begins with zeros, as an unfinished download leaves",
    ],
  ];
  for (const [content, kind] of kinds) {
    await assertRefused(
      copyCheckpoint(tied.model, { "model.safetensors": latin1(content) }),
      `Cannot read PATH/model.safetensors: it is ${kind}, must be a safetensors file`,
    );
  }
  const { map, shards } = await halves();
  const folder = await sharded(map, shards);
  await Deno.writeTextFile(`${folder.path}/b.safetensors`, POINTER);
  await assertRefused(
    Promise.resolve(folder),
    `Cannot read PATH/b.safetensors: ${POINTER_KIND}, must be a safetensors file`,
  );
});

Deno.test("text files are bounded and must be UTF-8", async () => {
  await assertRefused(
    copyCheckpoint(tied.model, { "config.json": " ".repeat(2 ** 20 + 1) }),
    "Cannot read PATH/config.json: it has 1048577 bytes, at most 1048576 are allowed",
  );
  await assertRefused(
    copyCheckpoint(tied.model, { "config.json": Uint8Array.of(0x22, 0xff) }),
    "Cannot read PATH/config.json: it is not valid UTF-8",
  );
});
