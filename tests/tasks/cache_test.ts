/** `deno task cache` on copies that loading web folders left. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import { bytesText } from "../../lib/checkpoint/sources.ts";
import { CACHE_DIR } from "../../lib/host.ts";
import { reply, serveRaw } from "../support/bad_server.ts";
import { readFolder } from "../support/serve_folder.ts";
import { runTask } from "../support/run_task.ts";
import { emptyWebCache } from "../support/web_cache.ts";

const TINY = new URL("../fixtures/tiny-tied-bf16/", import.meta.url);

/** A cache with two web folders, and a Hub's cache of 7 bytes. */
async function filledCache() {
  const cache = await emptyWebCache();
  const files = await readFolder(TINY);
  const hub = `${cache.path}/hub`;
  await Deno.mkdir(`${hub}/models--a--b/blobs`, { recursive: true });
  await Deno.writeTextFile(`${hub}/models--a--b/blobs/x`, "content");
  await using server = await serveRaw((request, connection) => {
    const path = new URL(request.target, "http://server").pathname;
    const file = files.get(path.replace(/^\/\w+/, ""));
    const answer = file
      ? reply("200 OK", ['ETag: "1"'], file)
      : reply("404 Not Found");
    return answer(request, connection);
  });
  for (const path of ["one", "two?sig=secret"]) {
    await using _kept = await openCheckpoint(
      `${server.url.replace("//", "//me:secret@")}/${path}`,
    );
  }
  const env = { [CACHE_DIR]: cache.path, HF_HUB_CACHE: hub };
  return {
    hub,
    web: `${cache.path}/web`,
    urls: [`${server.url}/one/`, `${server.url}/two/`],
    async run(...args: string[]) {
      const { code, stdout, stderr } = await runTask("cache", args, env);
      assertEquals([code, stderr], [0, ""]);
      assert(!stdout.includes("secret"));
      return stdout;
    },
    [Symbol.asyncDispose]: () => cache[Symbol.asyncDispose](),
  };
}

Deno.test("deno task cache lists what is kept: sizes, dates and URLs without secrets", async () => {
  await using cache = await filledCache();
  const { web, hub, urls } = cache;
  const today = new Date().toISOString().slice(0, 10);
  const json = await cache.run("--json");
  assertEquals(json.split("\n").length, 2);
  const { folder, bytes, web: all, hub: other } = JSON.parse(json);
  assertEquals([folder, other], [web, { folder: hub, bytes: 7 }]);
  assertEquals(all.map(({ url }: { url: string }) => url).sort(), urls);
  assertEquals(
    bytes,
    all.reduce((sum: number, { bytes }: { bytes: number }) => sum + bytes, 0),
  );
  for (const { used, folder } of all) {
    assertEquals(used, today);
    assert((await Deno.stat(folder)).isDirectory);
  }
  assert(bytes > 2 * 240_952 && bytes < 2 * 245_000);
  assertEquals((await cache.run()).split("\n"), [
    ...all.map(({ url, bytes }: { url: string; bytes: number }) =>
      ` ${bytesText(bytes)}  ${today}  ${url}`
    ),
    `${bytesText(bytes)} in ${web} (2 web folders)`,
    "deno task cache --clear [URL] removes them.",
    `7 B in ${hub} (Hugging Face Hub)`,
    "",
  ]);
});

Deno.test("deno task cache --clear removes one URL's copies, or all, never the Hub's", async () => {
  await using cache = await filledCache();
  const { web, hub, urls } = cache;
  const json = JSON.parse(
    await cache.run("--clear", "--json", urls[0].replace(/\/$/, "?sig=secret")),
  );
  assertEquals(json.removed.map(({ url }: { url: string }) => url), [urls[0]]);
  assertEquals(json.bytes, json.removed[0].bytes);
  assertMatch(
    await cache.run(urls[1]),
    new RegExp(`^ 24\\d kB .*${urls[1]}\n`),
  );
  assertMatch(
    await cache.run("--clear"),
    new RegExp(`^24\\d kB freed in ${web} \\(1 web folder\\)\n$`),
  );
  assertEquals(
    await cache.run(),
    `0 B in ${web} (0 web folders)\n7 B in ${hub} (Hugging Face Hub)\n`,
  );
  assertEquals(
    await cache.run("--clear"),
    `0 B freed in ${web} (0 web folders)\n`,
  );
});

Deno.test("a kept folder with a damaged index is listed by its path, and cleared", async () => {
  await using cache = await filledCache();
  const { web } = JSON.parse(await cache.run("--json"));
  const { folder } = web[0];
  const index = JSON.parse(await Deno.readTextFile(`${folder}/index.json`));
  for (
    const damaged of [
      '{"url": "\x1b[2J',
      JSON.stringify({ ...index, used: [index.used] }),
    ]
  ) {
    await Deno.writeTextFile(`${folder}/index.json`, damaged);
    const text = await cache.run();
    assertMatch(text, new RegExp(`kB  \\?           ${folder}\n`));
  }
  await cache.run("--clear", folder);
  assert(!(await cache.run()).includes(folder));
});

Deno.test("deno task cache --clear removes nothing but its own folders", async () => {
  await using cache = await filledCache();
  const { web } = cache;
  const outside = await Deno.makeTempDir();
  const index = JSON.stringify({
    ...{ version: 1, url: cache.urls[0], used: "2026-01-01", generation: 0 },
    files: {
      "../../kept": {
        ...{ id: "0".repeat(8), size: 1, etag: '"1"', sha256: "" },
        ...{ generation: 0, asked: "" },
      },
    },
  });
  await Deno.mkdir(`${web}/my site`);
  await Deno.mkdir(`${web}/localhost-8000`);
  const keep = [
    ...[`${outside}/file`, `${web}/my site/page`, `${web}/localhost-8000/x`],
    ...[`${web}/../kept`, `${web}/a-file-0123456789abcdef`],
  ];
  for (const path of keep) await Deno.writeTextFile(path, "content");
  await Deno.symlink(outside, `${web}/link-0123456789abcdef`);
  const own = `${web}/own-0123456789abcdef`;
  await Deno.mkdir(own);
  await Deno.writeTextFile(`${own}/index.json`, index);
  await Deno.symlink(outside, `${own}/00000000-model.safetensors`);
  assertMatch(await cache.run("--clear"), / \(3 web folders\)\n$/);
  for (const path of keep) {
    assertEquals(await Deno.readTextFile(path), "content");
  }
  const left = [...Deno.readDirSync(web)].map(({ name }) => name).sort();
  assertEquals(left, [
    ...["a-file-0123456789abcdef", "link-0123456789abcdef"],
    ...["localhost-8000", "my site"],
  ]);
  await Deno.remove(outside, { recursive: true });
});
