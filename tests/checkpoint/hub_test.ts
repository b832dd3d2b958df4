import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import type { LoadProgress } from "../../lib/checkpoint/sources.ts";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import { parseRepositoryId } from "../../lib/checkpoint/hub.ts";
import { brokenResponse } from "../support/serve_folder.ts";
import {
  COMMIT,
  emptyCache,
  fillCache,
  fixtureFiles,
  namesIn,
  serveHub,
} from "../support/serve_hub.ts";
import { slowTest } from "../support/quick.ts";

/** Breaks downloads of weights after 1000 bytes while `broken()` is true. */
function breakWeights(broken: () => boolean, weights: Uint8Array) {
  return (request: Request, path: string) => {
    const range = request.headers.get("range");
    if (!path.endsWith("/model.safetensors") || range === "bytes=0-0") return;
    if (broken()) return brokenResponse(request, weights, 1000);
  };
}

Deno.test("a repository's modules say that it is an embedding model", async () => {
  await using cache = await emptyCache();
  const files = await fixtureFiles("tiny-tied-bf16");
  const put = (file: string, json: unknown) =>
    files.set(file, new TextEncoder().encode(JSON.stringify(json)));
  const type = "sentence_transformers.models.Pooling";
  put("modules.json", [{ path: "1_Pooling", type }]);
  put("1_Pooling/config.json", { pooling_mode: "lasttoken" });
  put("onnx/config.json", {});
  await using server = await serveHub(files);
  const only = async () => {
    await using checkpoint = await openCheckpoint("Some/Model");
    return checkpoint.only?.is;
  };
  assertEquals(await only(), "an embedding model");
  const there = await namesIn(cache.snapshot);
  assert(there.includes("1_Pooling") && !there.includes("onnx"), `${there}`);
  const before = server.requests.length;
  assertEquals(await only(), "an embedding model");
  assertEquals(server.requests.length, before);
  // What an earlier version left out is added.
  await Deno.remove(`${cache.snapshot}/modules.json`);
  await Deno.remove(`${cache.snapshot}/1_Pooling`, { recursive: true });
  assertEquals(await only(), "an embedding model");
});

Deno.test("parseRepositoryId takes owner/name with an optional revision", () => {
  assertEquals(parseRepositoryId("Qwen/Qwen3-0.6B"), {
    name: "Qwen/Qwen3-0.6B",
    revision: "main",
  });
  assertEquals(parseRepositoryId("a/b@refs/pr/1"), {
    name: "a/b",
    revision: "refs/pr/1",
  });
  for (const host of ["", "hf.co/", "huggingface.co/", "HF.co/"]) {
    assertEquals(parseRepositoryId(`${host}a/b-GGUF:UD-Q4_K_XL`), {
      name: "a/b-GGUF",
      revision: "main",
      pick: "UD-Q4_K_XL",
    });
    assertEquals(parseRepositoryId(`${host}a/b@v1:c/d-00001-of-00002.gguf`), {
      name: "a/b",
      revision: "v1",
      pick: "c/d-00001-of-00002.gguf",
    });
    assertEquals(parseRepositoryId(`${host}a/b:latest`), {
      name: "a/b",
      revision: "main",
    });
  }
  for (
    const spec of [
      "",
      "a",
      "a/b/c",
      "./a/b",
      "/a/b",
      "../b",
      "a/..",
      "a/b@",
      "a/b@../../c",
      "a b/c",
      "C:\\a",
      "a/b:",
      "a/b:Q4@v1",
      "a/b:c:d",
      "hf.co/a/b/c",
    ]
  ) {
    assertEquals(parseRepositoryId(spec), undefined);
  }
});

Deno.test("a cached repository is used without a request to the Hub", async () => {
  await using cache = await emptyCache();
  Deno.env.set("HF_HUB_OFFLINE", "1");
  await fillCache(cache.entry, await fixtureFiles("tiny-tied-bf16"));
  const snapshot = `${cache.entry}/snapshots/${COMMIT}`;
  for (const spec of ["Some/Model", `Some/Model@${COMMIT}`]) {
    await using checkpoint = await openCheckpoint(spec);
    assertEquals([checkpoint.name, checkpoint.location], [spec, snapshot]);
    assertEquals(checkpoint.config.hiddenSize, 64);
  }
});

Deno.test("offline, a missing file is named and nothing is requested", async () => {
  await using cache = await emptyCache();
  await using server = await serveHub("tiny-tied-bf16");
  Deno.env.set("HF_HUB_OFFLINE", "1");
  const failure = async (spec: string) =>
    (await assertRejects(() => openCheckpoint(spec), Error)).message;
  assertEquals(
    await failure("Some/Model@v1"),
    `Cannot open Some/Model: it is not in the cache (there is no ${cache.entry}/refs/v1), and HF_HUB_OFFLINE forbids downloading it`,
  );
  await fillCache(cache.entry, await fixtureFiles("tiny-sharded-f16"));
  const snapshot = `${cache.entry}/snapshots/${COMMIT}`;
  await Deno.remove(`${snapshot}/model-00002-of-00015.safetensors`);
  assertStringIncludes(
    await failure("Some/Model"),
    `${snapshot} lacks model-00002-of-00015.safetensors`,
  );
  await Deno.remove(`${snapshot}/model.safetensors.index.json`);
  assertStringIncludes(
    await failure("Some/Model"),
    "lacks model.safetensors or model.safetensors.index.json",
  );
  await Deno.remove(`${snapshot}/config.json`);
  assertStringIncludes(await failure("Some/Model"), "lacks config.json");
  assertEquals(server.requests.length, 0);
});

for (const fixture of ["tiny-tied-bf16", "tiny-sharded-f16"]) {
  Deno.test(`${fixture} is downloaded into the cache once, only the files needed`, async () => {
    await using cache = await emptyCache();
    await using server = await serveHub(fixture);
    Deno.env.set("HF_TOKEN", "hf_secret");
    const seen: LoadProgress[] = [];
    const snapshot = `${cache.entry}/snapshots/${COMMIT}`;
    {
      await using checkpoint = await openCheckpoint("Some/Model@v1", {
        onProgress: (progress) => seen.push(progress),
      });
      assertEquals(checkpoint.location, snapshot);
      assertEquals(await checkpoint.text("tokenizer.json"), '{"a":1}');
      await checkpoint.read("model.norm.weight", 0, new Uint8Array(128));
    }
    const files = await fixtureFiles(fixture);
    const names = [...files.keys()]
      .filter((name) => !name.startsWith("golden")).concat("tokenizer.json");
    assertEquals(await namesIn(snapshot), names.sort());
    for (const name of names) {
      assert((await Deno.lstat(`${snapshot}/${name}`)).isSymlink);
      assertStringIncludes(
        await Deno.readLink(`${snapshot}/${name}`),
        "../../blobs/",
      );
      const expected = files.get(name);
      if (expected !== undefined) {
        assertEquals(
          (await Deno.readFile(`${snapshot}/${name}`)).join(),
          expected.join(),
        );
      }
    }
    assertEquals((await namesIn(`${cache.entry}/blobs`)).length, names.length);
    assertEquals(await Deno.readTextFile(`${cache.entry}/refs/v1`), COMMIT);
    for (const { headers } of server.requests) {
      assertEquals(headers.get("authorization"), "Bearer hf_secret");
    }

    const last = seen.at(-1)!;
    assertEquals(last.done, last.total);
    let done = 0;
    for (const progress of seen) {
      assertEquals(progress.stage, "download");
      assert(progress.done >= done && progress.done <= progress.total);
      done = progress.done;
    }

    const before = server.requests.length;
    await using _again = await openCheckpoint("Some/Model@v1");
    assertEquals(server.requests.length, before);
  });
}

slowTest(
  "a failed download leaves no file that looks complete, and is resumed",
  async () => {
    await using cache = await emptyCache();
    const weights = (await fixtureFiles("tiny-tied-bf16")).get(
      "model.safetensors",
    )!;
    let broken = true;
    await using server = await serveHub(
      "tiny-tied-bf16",
      breakWeights(() => broken, weights),
    );
    const error = await assertRejects(
      () => openCheckpoint("Some/Model"),
      Error,
    );
    assertStringIncludes(
      error.message,
      `model.safetensors stopped at 4000 of ${weights.length} bytes`,
    );
    assertStringIncludes(error.message, server.url);
    assertEquals(error.message.includes("\n"), false);
    const snapshot = `${cache.entry}/snapshots/${COMMIT}`;
    assertEquals(
      (await namesIn(snapshot)).includes("model.safetensors"),
      false,
    );
    const blobs = await namesIn(`${cache.entry}/blobs`);
    assertEquals(
      blobs.filter((name) => name.endsWith(".incomplete")).length,
      1,
    );
    assertEquals((await namesIn(cache.entry)).includes("refs"), false);

    broken = false;
    const before = server.requests.length;
    await using _checkpoint = await openCheckpoint("Some/Model");
    assertEquals(
      (await Deno.readFile(`${snapshot}/model.safetensors`)).join(),
      weights.join(),
    );
    const ranges = server.requests.slice(before).map(({ headers }) =>
      headers.get("range")
    );
    assert(ranges.includes(`bytes=4000-${weights.length - 1}`));
  },
);

Deno.test("a signal ends a download", async () => {
  await using cache = await emptyCache();
  await using _server = await serveHub("tiny-tied-bf16");
  const controller = new AbortController();
  await assertRejects(
    () =>
      openCheckpoint("Some/Model", {
        signal: controller.signal,
        onProgress: ({ file }) => {
          if (file === "model.safetensors") {
            controller.abort(new Error("enough"));
          }
        },
      }),
    Error,
    "enough",
  );
  assertEquals(
    (await namesIn(`${cache.entry}/snapshots/${COMMIT}`)).includes(
      "model.safetensors",
    ),
    false,
  );
});

Deno.test("two downloads of one repository share the work", async () => {
  await using _cache = await emptyCache();
  await using server = await serveHub("tiny-tied-bf16");
  const both = await Promise.all([
    openCheckpoint("Some/Model"),
    openCheckpoint("Some/Model"),
  ]);
  for (const checkpoint of both) await checkpoint[Symbol.asyncDispose]();
  const downloads = server.requests.filter(({ url, headers }) =>
    url.endsWith("/model.safetensors") && headers.get("range") !== "bytes=0-0"
  );
  assertEquals(downloads.length, 1);
});

for (
  const [what, fields] of [
    ["FP8", { quantization_config: { quant_method: "fp8" } }],
    ["AWQ", { quantization_config: { quant_method: "awq", bits: 4 } }],
    ["GPTQ", { quantization_config: { quant_method: "gptq", bits: 4 } }],
    ["MLX", { quantization: { group_size: 64, bits: 4 } }],
  ] as [string, Record<string, unknown>][]
) {
  Deno.test(`a repository quantised as ${what} is refused before its weights download`, async () => {
    await using cache = await emptyCache();
    const files = await fixtureFiles("tiny-tied-bf16");
    const config = JSON.parse(
      new TextDecoder().decode(files.get("config.json")),
    );
    files.set(
      "config.json",
      new TextEncoder().encode(JSON.stringify({ ...config, ...fields })),
    );
    await using server = await serveHub(files);
    const { message } = await assertRejects(
      () => openCheckpoint("Some/Model"),
      Error,
    );
    assertMatch(message, new RegExp(what, "i"));
    assertMatch(message, /quanti[sz]/);
    const { pathname } = new URL(server.requests.at(-1)!.url);
    assertEquals(pathname, `/Some/Model/resolve/${COMMIT}/config.json`);
    assertEquals(await namesIn(cache.snapshot), ["config.json"]);
  });
}

for (const file of ["hf_quant_config.json", "quantize_config.json"]) {
  Deno.test(`a repository with ${file} is refused before its weights download`, async () => {
    await using _cache = await emptyCache();
    const files = await fixtureFiles("tiny-tied-bf16");
    files.set(file, new TextEncoder().encode("{}"));
    await using server = await serveHub(files);
    await assertRejects(
      () => openCheckpoint("Some/Model"),
      Error,
      `it has ${file}: its weights are quantised, must be plain bf16, f16, f32`,
    );
    assertEquals(server.requests.length, 3); // commit, list, config.json
  });
}

for (
  const [suffix, form] of [
    [".qweight", "GPTQ or AWQ"],
    [".weight_scale_inv", "FP8"],
    [".weight_packed", "compressed-tensors"],
    [".scales", "MLX"],
  ]
) {
  Deno.test(`an index with ${suffix} shows a quantised form before any shard downloads`, async () => {
    await using _cache = await emptyCache();
    const files = await fixtureFiles("tiny-sharded-f16");
    const file = "model.safetensors.index.json";
    const index = JSON.parse(new TextDecoder().decode(files.get(file)));
    const weight = "model.layers.0.mlp.up_proj.weight";
    index.weight_map[weight.replace(".weight", suffix)] =
      index.weight_map[weight];
    files.set(file, new TextEncoder().encode(JSON.stringify(index)));
    await using server = await serveHub(files);
    await assertRejects(
      () => openCheckpoint("Some/Model"),
      Error,
      `model.layers.0.mlp.up_proj${suffix} shows weights stored as ${form}`,
    );
    const asked = server.requests.map(({ url }) => url);
    assertEquals(asked.filter((url) => url.endsWith(".safetensors")), []);
  });
}

Deno.test("a missing repository, or one without safetensors, is reported with the URLs tried", async () => {
  await using _cache = await emptyCache();
  await using server = await serveHub("demo"); // no config.json there
  const failure = async (spec: string) =>
    (await assertRejects(() => openCheckpoint(spec), Error)).message;
  const missing = await failure("No/Such");
  assertEquals(
    missing,
    `Cannot open No/Such: it cannot be downloaded from ${server.url}: there is no such repository (404; check the spelling), or a token is needed: set HF_TOKEN or run hf auth login`,
  );
  assertStringIncludes(
    await failure("Some/Model"),
    "there is no config.json, must be a repository with config.json and safetensors, or with GGUF files (it has golden",
  );
});
