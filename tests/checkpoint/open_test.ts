import { bf16 } from "../../lib/formats/bf16.ts";
import { f16 } from "../../lib/formats/f16.ts";
import { f32 } from "../../lib/formats/f32.ts";
import { assert, assertEquals, assertRejects } from "@std/assert";
import type { Checkpoint } from "../../lib/checkpoint/checkpoint.ts";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import { readFolder, serveFiles } from "../support/serve_folder.ts";

const fixture = (name: string) =>
  new URL(`../fixtures/${name}/`, import.meta.url);
const pathOf = (name: string) => Deno.realPathSync(fixture(name));

/** A copy of a fixture to change, deleted when disposed. */
async function copyOf(name: string) {
  const path = await Deno.realPath(await Deno.makeTempDir());
  for (const [file, bytes] of await readFolder(fixture(name))) {
    await Deno.writeFile(path + file, bytes);
  }
  return {
    path,
    [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }),
  };
}

async function wholeTensor(
  checkpoint: Checkpoint,
  name: string,
): Promise<Uint8Array> {
  const bytes = new Uint8Array(checkpoint.tensors.get(name)!.byteLength);
  await checkpoint.read(name, 0, bytes);
  return bytes;
}

async function allTensors(
  checkpoint: Checkpoint,
): Promise<Map<string, string>> {
  const all = new Map<string, string>();
  for (const name of [...checkpoint.tensors.keys()].sort()) {
    all.set(name, (await wholeTensor(checkpoint, name)).join());
  }
  return all;
}

async function assertRefused(spec: string, ...parts: string[]) {
  const error = await assertRejects(
    () => openCheckpoint(spec),
    Error,
    parts[0],
  );
  assertEquals(error.message.includes("\n"), false);
  for (const part of parts) {
    assert(
      error.message.includes(part),
      `${error.message} should include ${part}`,
    );
  }
}

Deno.test("openCheckpoint opens a directory and reads any range of a tensor", async () => {
  const path = pathOf("tiny-tied-bf16");
  await using checkpoint = await openCheckpoint(path);
  assertEquals(checkpoint.name, path);
  assertEquals(checkpoint.location, path);
  assertEquals(checkpoint.config.hiddenSize, 64);
  assertEquals(checkpoint.generation, {});
  assertEquals(checkpoint.synthetic, undefined);
  assertEquals(checkpoint.tensors.size, 2 + 2 * 11);
  assertEquals(checkpoint.tensors.get("model.embed_tokens.weight"), {
    name: "model.embed_tokens.weight",
    format: bf16,
    shape: [512, 64],
    byteLength: 2 * 512 * 64,
  });

  // Where the data of this file begins, without the code under test.
  const file = await Deno.readFile(`${path}/model.safetensors`);
  const headerBytes = new DataView(file.buffer).getUint32(0, true);
  const header = JSON.parse(
    new TextDecoder().decode(file.slice(8, 8 + headerBytes)),
  );
  const [begin, end] = header["model.layers.1.mlp.up_proj.weight"].data_offsets;
  const expected = file.slice(8 + headerBytes + begin, 8 + headerBytes + end);
  assertEquals(
    (await wholeTensor(checkpoint, "model.layers.1.mlp.up_proj.weight")).join(),
    expected.join(),
  );
  const part = new Uint8Array(101);
  await checkpoint.read("model.layers.1.mlp.up_proj.weight", 33, part);
  assertEquals(part.join(), expected.slice(33, 134).join());

  const failure = await checkpoint.read(
    "model.norm.weight",
    100,
    new Uint8Array(29),
  )
    .then(() => "", (error) => error.message);
  assertEquals(
    failure,
    "Cannot read bytes 100 to 129 of tensor model.norm.weight: it has 128 bytes",
  );
});

Deno.test("openCheckpoint takes file: URLs and relative paths", async () => {
  await using byUrl = await openCheckpoint(fixture("tiny-untied-f32").href);
  assertEquals(byUrl.location, pathOf("tiny-untied-f32"));
  assertEquals(byUrl.tensors.get("lm_head.weight")?.format, f32);
  const upToRoot = "../".repeat(Deno.cwd().split("/").length - 1);
  const path = upToRoot + pathOf("tiny-tied-bf16").slice(1);
  await using relative = await openCheckpoint(path);
  assertEquals([relative.name, relative.location], [
    path,
    pathOf("tiny-tied-bf16"),
  ]);
});

Deno.test("openCheckpoint reads shards through their index", async () => {
  await using checkpoint = await openCheckpoint(pathOf("tiny-sharded-f16"));
  assertEquals(checkpoint.tensors.size, 2 + 4 * 11);
  let bytes = 0;
  for (const { format, byteLength } of checkpoint.tensors.values()) {
    assertEquals(format, f16);
    bytes += byteLength;
  }
  assertEquals(bytes, 1034944); // total_size in the index
  const norm = await wholeTensor(checkpoint, "model.norm.weight");
  assertEquals(norm.length, 2 * 96);
  // Norm weights are 1 with noise: f16 from 0.5 to 1.5.
  for (const bits of new Uint16Array(norm.buffer)) {
    assert(bits > 0x3800 && bits < 0x3e00);
  }
});

Deno.test("openCheckpoint reads text files, generation defaults and the tokenizer, if any", async () => {
  await using folder = await copyOf("tiny-tied-bf16");
  await Deno.writeTextFile(
    `${folder.path}/generation_config.json`,
    '{"do_sample": true, "top_k": 20, "eos_token_id": [3, 4], "temperature": null}',
  );
  await Deno.writeTextFile(`${folder.path}/tokenizer.json`, "{}");
  await using checkpoint = await openCheckpoint(folder.path);
  assertEquals(checkpoint.generation, {
    doSample: true,
    topK: 20,
    eosTokenIds: [3, 4],
  });
  assertEquals(await checkpoint.text("tokenizer.json"), "{}");
  assertEquals(await checkpoint.text("chat_template.jinja"), undefined);
});

Deno.test("openCheckpoint opens synthetic checkpoints", async () => {
  await using checkpoint = await openCheckpoint(
    "synthetic:qwen3-8b?layers=1&vocab=64&seed=5",
  );
  assertEquals(checkpoint.synthetic, { seed: 5 });
  assertEquals(checkpoint.tensors.size, 3 + 11);
});

Deno.test("openCheckpoint lists what it looked for", async () => {
  const dir = await Deno.realPath(await Deno.makeTempDir());
  try {
    await assertRefused(
      `${dir}/none`,
      `Cannot open "${dir}/none": there is no such directory`,
    );
    await assertRefused("", 'Cannot open ""');
    await assertRefused(
      "ftp://me:secret@host/dir?sig=secret",
      'Cannot open "ftp://host/dir?…": there is no such directory',
    );
    await assertRefused(
      "http://",
      'Cannot open "http://": it is not a valid URL',
    );
    await assertRefused(
      dir,
      `Cannot open ${dir}: there is no ${dir}/config.json`,
    );
    await Deno.copyFile(
      new URL("config.json", fixture("tiny-tied-bf16")),
      `${dir}/config.json`,
    );
    await assertRefused(
      dir,
      "there are no weights",
      `${dir}/model.safetensors and ${dir}/model.safetensors.index.json`,
    );
    await assertRefused(
      `${dir}/config.json`,
      "it is a file, must be the folder",
    );
    await assertRefused(`${dir}/config.json/x`, "there is no such directory");
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
});

Deno.test("openCheckpoint refuses broken files", async () => {
  await using folder = await copyOf("tiny-tied-bf16");
  const { path } = folder;
  const whole = await Deno.readFile(`${path}/model.safetensors`);
  await Deno.writeFile(
    `${path}/model.safetensors`,
    whole.subarray(0, whole.length - 10),
  );
  await assertRefused(
    path,
    `Cannot read ${path}/model.safetensors`,
    "it is truncated",
  );
  await Deno.writeFile(`${path}/model.safetensors`, whole);

  await Deno.writeTextFile(`${path}/generation_config.json`, "{");
  await assertRefused(
    path,
    `Cannot read ${path}/generation_config.json: it is not valid JSON`,
  );
  await Deno.remove(`${path}/generation_config.json`);
  await Deno.writeTextFile(`${path}/config.json`, '{\n"model_type": \n}');
  await assertRefused(
    path,
    `Cannot read ${path}/config.json: it is not valid JSON`,
  );
});

Deno.test("openCheckpoint refuses an index with wrong or missing shards", async () => {
  await using folder = await copyOf("tiny-sharded-f16");
  const { path } = folder;
  const index = `${path}/model.safetensors.index.json`;
  const published = JSON.parse(await Deno.readTextFile(index));
  const shard = (number: number) =>
    `model-${`${number}`.padStart(5, "0")}-of-00015.safetensors`;
  const write = (changes: Record<string, string | undefined>) =>
    Deno.writeTextFile(
      index,
      JSON.stringify({ weight_map: { ...published.weight_map, ...changes } }),
    );
  const norm = "model.norm.weight";
  const home = published.weight_map[norm];

  await write({ [norm]: `../${home}` });
  await assertRefused(path, "must be a .safetensors file in the same folder");
  await Deno.writeTextFile(index, "{}");
  await assertRefused(path, "it must have a weight_map");
  await write({});
  await Deno.remove(`${path}/${shard(3)}`);
  await Deno.remove(`${path}/${shard(7)}`);
  await assertRefused(
    path,
    `Cannot open ${path}: shards are missing: ${path}/${shard(3)}, ${path}/${
      shard(7)
    }`,
  );
});

for (const name of ["tiny-tied-with-head-bf16", "tiny-sharded-f16"]) {
  for (const ranges of [true, false]) {
    Deno.test(`openCheckpoint reads ${name} over HTTP ${ranges ? "by" : "without"} ranges`, async () => {
      await using server = serveFiles(await readFolder(fixture(name)), {
        ranges,
      });
      await using local = await openCheckpoint(pathOf(name));
      const files: (string | undefined)[] = [];
      {
        await using remote = await openCheckpoint(server.url, {
          onProgress: ({ file }) => files.push(file),
        });
        assertEquals(remote.location, `${server.url}/`);
        assertEquals(remote.config, local.config);
        assertEquals(remote.tensors.size, local.tensors.size);
        assertEquals(await allTensors(remote), await allTensors(local));
        assertEquals(await remote.text("tokenizer.json"), undefined);
      }
      const weights = server.requests.filter(({ url }) =>
        url.endsWith(".safetensors") && !url.endsWith("/model.safetensors")
      );
      if (ranges) {
        for (const { headers } of weights) assert(headers.has("range"));
        assertEquals(files, []);
      } else {
        assertEquals(new Set(files).size, name === "tiny-sharded-f16" ? 15 : 1);
      }
    });
  }
}

Deno.test("openCheckpoint lists the URLs that it looked for", async () => {
  const files = await readFolder(fixture("tiny-sharded-f16"));
  const shard = "/model-00004-of-00015.safetensors";
  files.delete(shard);
  await using server = serveFiles(files);
  await assertRefused(
    `${server.url}/`,
    `shards are missing: ${server.url}${shard}`,
  );
  files.delete("/model.safetensors.index.json");
  await assertRefused(
    `${server.url}/`,
    `${server.url}/model.safetensors and ${server.url}/model.safetensors.index.json`,
  );
  files.delete("/config.json");
  await assertRefused(
    `${server.url}/sub`,
    `there is no ${server.url}/sub/config.json; of a GGUF file pass the URL`,
  );
});

Deno.test("openCheckpoint stops at its signal", async () => {
  const controller = new AbortController();
  const { signal } = controller;
  await using server = serveFiles(await readFolder(fixture("tiny-tied-bf16")));
  for (const spec of [server.url, pathOf("tiny-tied-bf16")]) {
    await using checkpoint = await openCheckpoint(spec, { signal });
    assertEquals(checkpoint.config.vocabSize, 512);
  }
  await using checkpoint = await openCheckpoint(server.url, { signal });
  controller.abort(new Error("enough"));
  await assertRejects(
    () => wholeTensor(checkpoint, "model.norm.weight"),
    Error,
    "enough",
  );
  await assertRejects(
    () => openCheckpoint(server.url, { signal }),
    Error,
    "enough",
  );
});
