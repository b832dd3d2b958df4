/** GGUF files of Hub repositories: picked by type, downloaded alone, found in the cache. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import type { LoadProgress } from "../../lib/checkpoint/sources.ts";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import { brokenResponse } from "../support/serve_folder.ts";
import {
  blobName,
  COMMIT,
  emptyCache,
  fillCache,
  fixtureFiles,
  namesIn,
  serveHub,
} from "../support/serve_hub.ts";
import { tempFolder } from "../support/temp_checkpoint.ts";

const FILES = new URL("../fixtures/gguf/files/", import.meta.url);
const bytesOf = (name: string) => Deno.readFileSync(new URL(name, FILES));
const Q8_0 = bytesOf("base-Q8_0.gguf"),
  Q4_K_M = bytesOf("tiny-outlier-bf16-Q4_K_M.gguf");
const PARTS = [1, 2, 3].map((part) => `split-Q8_0-0000${part}-of-00003.gguf`);
const TEXT = new TextEncoder().encode("text");

/** As a publisher's repository: types, a split file in a folder, and files that are no models. */
const REPOSITORY = new Map<string, Uint8Array>([
  ["README.md", TEXT],
  ["config.json", TEXT],
  ["imatrix.gguf", TEXT],
  ["m-Q4_K_M.gguf", Q4_K_M],
  ["m-Q8_0.gguf", Q8_0],
  ["mmproj-F16.gguf", TEXT],
  ...PARTS.map((name) =>
    [`BF16/${name.replace("Q8_0", "BF16")}`, bytesOf(name)] as const
  ),
]);
const LIST = "it has 3 GGUF files, add :Q4_K_M or another: Q8_0, BF16";

/** Opens a checkpoint and closes it; returns where it was, and the notices. */
async function open(spec: string) {
  const notices: string[] = [];
  await using checkpoint = await openCheckpoint(spec, {
    onNotice: (notice) => notices.push(notice),
    sleep: () => Promise.resolve(),
  });
  const norm = new Uint8Array(8);
  await checkpoint.read("model.norm.weight", 0, norm);
  return { location: checkpoint.location, notices, name: checkpoint.name };
}

async function refused(spec: string): Promise<string> {
  const { message } = await assertRejects(() => open(spec), Error);
  assert(!message.includes("\n"), message);
  return message;
}

for (
  const [spec, ...paths] of [
    ["Some/Model:Q4_K_M", "m-Q4_K_M.gguf"],
    ["Some/Model:q8_0", "m-Q8_0.gguf"],
    ["hf.co/Some/Model:Q8_0", "m-Q8_0.gguf"],
    ["huggingface.co/Some/Model@v1:m-Q8_0.gguf", "m-Q8_0.gguf"],
    [
      "Some/Model:BF16",
      ...PARTS.map((name) => `BF16/${name.replace("Q8_0", "BF16")}`),
    ],
  ]
) {
  Deno.test(`${spec} downloads that GGUF file into the cache, once`, async () => {
    await using cache = await emptyCache();
    await using server = await serveHub(REPOSITORY);
    const { location, name } = await open(spec);
    assertEquals([name, location], [spec, `${cache.snapshot}/${paths[0]}`]);
    const asked = server.requests.map(({ url }) => new URL(url).pathname)
      .filter((path) => path.includes("/resolve/"));
    assertEquals(
      asked,
      paths.map((path) => `/Some/Model/resolve/${COMMIT}/${path}`),
    );
    const blobs = paths.map((path) => blobName(path, REPOSITORY.get(path)!));
    assertEquals(await namesIn(`${cache.entry}/blobs`), blobs.toSorted());
    for (const [i, path] of paths.entries()) {
      // The layout that huggingface_hub and llama.cpp share.
      const up = "../".repeat(path.split("/").length + 1);
      assertEquals(
        await Deno.readLink(`${cache.snapshot}/${path}`),
        `${up}blobs/${blobs[i]}`,
      );
    }
    const before = server.requests.length;
    Deno.env.set("HF_HUB_OFFLINE", "1");
    await open(spec);
    assertEquals(server.requests.length, before);
  });
}

Deno.test("several GGUF files and none named are listed, and nothing is downloaded", async () => {
  await using cache = await emptyCache();
  await using server = await serveHub(REPOSITORY);
  assertEquals(await refused("Some/Model"), `Cannot open Some/Model: ${LIST}`);
  assertEquals(
    await refused("Some/Model:latest"),
    `Cannot open Some/Model: ${LIST}`,
  );
  assertEquals(
    await refused("hf.co/Some/Model:Q5_K_M"),
    "Cannot open Some/Model: it has no GGUF file Q5_K_M, it has Q4_K_M, Q8_0, BF16",
  );
  assertEquals(await namesIn(`${cache.entry}/blobs`), []);
  assert(server.requests.every(({ url }) => !url.includes("/resolve/")));
});

Deno.test("a repository's only GGUF file needs no name", async () => {
  await using cache = await emptyCache();
  const files = new Map([["m-Q8_0.gguf", Q8_0], ["mmproj.gguf", TEXT]]);
  await using server = await serveHub(files);
  for (
    const spec of ["Some/Model", "hf.co/Some/Model:latest", "Some/Model@v1"]
  ) {
    assertEquals((await open(spec)).location, `${cache.snapshot}/m-Q8_0.gguf`);
  }
  assertEquals(
    server.requests.filter(({ url }) => url.includes("/resolve/")).length,
    1,
  );
});

Deno.test("safetensors are taken unless a GGUF file is named", async () => {
  await using cache = await emptyCache();
  const files = new Map([
    ...await fixtureFiles("tiny-tied-bf16"),
    ["m-Q8_0.gguf", Q8_0],
  ]);
  await using _server = await serveHub(files);
  assertEquals(
    (await open("Some/Model:Q8_0")).location,
    `${cache.snapshot}/m-Q8_0.gguf`,
  );
  assertEquals((await open("Some/Model")).location, cache.snapshot);
});

Deno.test("a GGUF file that another program cached is used", async () => {
  await using cache = await emptyCache();
  await using server = await serveHub(REPOSITORY);
  await fillCache(cache.entry, new Map([["m-Q8_0.gguf", Q8_0]]));
  const location = `${cache.snapshot}/m-Q8_0.gguf`;
  assertEquals(await open("Some/Model:Q8_0"), {
    name: "Some/Model:Q8_0",
    location,
    notices: [],
  });
  assertEquals(server.requests.length, 0);
  // Without a name the repository has to be asked whether there are others.
  assertEquals(await refused("Some/Model"), `Cannot open Some/Model: ${LIST}`);
  await Deno.remove(`${cache.entry}/trees`, { recursive: true });
  Deno.env.set("HF_HUB_OFFLINE", "1");
  assertEquals((await open("Some/Model")).notices, [
    `${cache.snapshot} has m-Q8_0.gguf, the repository may have others: HF_HUB_OFFLINE forbids asking.`,
  ]);
  assertEquals(
    await refused("Some/Model:Q4_K_M"),
    "Cannot open Some/Model: it is not complete in the cache (it has no GGUF file Q4_K_M, it has Q8_0), and HF_HUB_OFFLINE forbids downloading it",
  );
});

Deno.test("offline, a missing part of a GGUF file is named", async () => {
  await using cache = await emptyCache();
  await using server = await serveHub(REPOSITORY);
  await open("Some/Model:BF16");
  const part = `BF16/${PARTS[1].replace("Q8_0", "BF16")}`;
  await Deno.remove(`${cache.snapshot}/${part}`);
  Deno.env.set("HF_HUB_OFFLINE", "1");
  const before = server.requests.length;
  assertEquals(
    await refused("Some/Model:BF16"),
    `Cannot open Some/Model: it is not complete in the cache (${cache.snapshot} lacks ${part}), and HF_HUB_OFFLINE forbids downloading it`,
  );
  assertEquals(server.requests.length, before);
  Deno.env.delete("HF_HUB_OFFLINE");
  await open("Some/Model:BF16"); // its blob is still there
  assertEquals(
    server.requests.slice(before).filter(({ url }) =>
      url.includes("/resolve/")
    ),
    [],
  );
});

Deno.test("a part that the repository lacks is named before the others download", async () => {
  await using _cache = await emptyCache();
  const files = new Map([[PARTS[0], TEXT], [PARTS[2], TEXT]]);
  await using server = await serveHub(files);
  assertEquals(
    await refused("Some/Model"),
    `Cannot open Some/Model: 1 of 3 parts are not in the repository: ${
      PARTS[1]
    }`,
  );
  assert(server.requests.every(({ url }) => !url.includes("/resolve/")));
});

Deno.test("a download of a GGUF file resumes, and its progress has all parts", async () => {
  await using cache = await emptyCache();
  let isBroken = true;
  await using server = await serveHub(REPOSITORY, (request, path) => {
    if (isBroken && path.endsWith("/m-Q8_0.gguf")) {
      return brokenResponse(request, Q8_0, 1000);
    }
  });
  assert(
    /m-Q8_0.gguf stopped at \d+ of 130144 bytes/.test(
      await refused("Some/Model:Q8_0"),
    ),
  );
  isBroken = false;
  const before = server.requests.length;
  await open("Some/Model:Q8_0");
  const [{ headers }] = server.requests.slice(before)
    .filter(({ url }) => url.includes("/resolve/"));
  assert(/^bytes=[1-9]\d*-130143$/.test(headers.get("range")!));
  assertEquals(await Deno.readFile(`${cache.snapshot}/m-Q8_0.gguf`), Q8_0);

  const seen: LoadProgress[] = [];
  await using _split = await openCheckpoint("Some/Model:BF16", {
    onProgress: (progress) => seen.push(progress),
  });
  const total = PARTS.reduce((sum, name) => sum + bytesOf(name).length, 0);
  const { done, total: promised } = seen.at(-1)!;
  assertEquals([done, promised], [total, total]);
  assertEquals(seen[0].total, total);
});

Deno.test("a newer commit is asked where the cached one lacks a GGUF file", async () => {
  await using cache = await emptyCache();
  const files = new Map(REPOSITORY);
  files.delete("m-Q4_K_M.gguf");
  await using server = await serveHub(files);
  await open("Some/Model:Q8_0");
  files.set("m-Q4_K_M.gguf", Q4_K_M);
  const before = server.requests.length;
  await open("Some/Model:Q4_K_M");
  const [first] = server.requests.slice(before);
  assertEquals(
    new URL(first.url).pathname,
    "/api/models/Some/Model/revision/main",
  );
  assertEquals(await namesIn(cache.snapshot), ["m-Q4_K_M.gguf", "m-Q8_0.gguf"]);
});

Deno.test("a type picks a GGUF file of a folder", async () => {
  await using folder = await tempFolder({
    "a-Q8_0.gguf": Q8_0,
    "a-Q4_K_M.gguf": Q4_K_M,
    "mmproj-F16.gguf": TEXT,
  });
  const { path } = folder;
  for (const spec of [`${path}:q4_k_m`, `file://${path}:a-Q4_K_M.gguf`]) {
    assertEquals((await open(spec)).location, `${path}/a-Q4_K_M.gguf`);
  }
  assertEquals(
    await refused(`${path}:Q6_K`),
    `Cannot open "${path}:Q6_K": it has no GGUF file Q6_K, it has Q4_K_M, Q8_0`,
  );
  assertEquals(
    await refused(`${path}/a-Q8_0.gguf:Q8_0`),
    `Cannot open "${path}/a-Q8_0.gguf:Q8_0": it is a file, leave :Q8_0 out`,
  );
  // A path that exists wins.
  await Deno.rename(`${path}/a-Q8_0.gguf`, `${path}:Q4_K_M.gguf`);
  try {
    await Deno.mkdir(`${path}:Q4_K_M`);
    assertEquals(
      await refused(`${path}:Q4_K_M`),
      `Cannot open ${path}:Q4_K_M: there is no ${path}:Q4_K_M/config.json`,
    );
    assertEquals(
      (await open(`${path}:Q4_K_M.gguf`)).location,
      `${path}:Q4_K_M.gguf`,
    );
  } finally {
    await Deno.remove(`${path}:Q4_K_M`);
    await Deno.remove(`${path}:Q4_K_M.gguf`);
  }
});
