/** What is kept of web folders, and how it is compared with the server's. */
import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { createHash } from "node:crypto";
import type { Checkpoint } from "../../lib/checkpoint/checkpoint.ts";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import { bytesText, type OpenOptions } from "../../lib/checkpoint/sources.ts";
import { listWebCache } from "../../lib/checkpoint/web_cache.ts";
import { CACHE_DIR, type Host, host, useHost } from "../../lib/host.ts";
import {
  head,
  rangeOf,
  raw,
  type RawAnswer,
  type RawRequest,
  reply,
  serveRaw,
  serveWell,
} from "../support/bad_server.ts";
import { windowsHost } from "../support/other_host.ts";
import { readFolder } from "../support/serve_folder.ts";
import { slowTest } from "../support/quick.ts";
import { emptyWebCache } from "../support/web_cache.ts";

const WEIGHTS = "model.safetensors", TOKENIZER = '{"added_tokens": []}';
const SHARDS = new URL("../fixtures/tiny-sharded-f16/", import.meta.url);
const TINY = new URL("../fixtures/tiny-tied-bf16/", import.meta.url);

async function filesOf(folder = TINY): Promise<Map<string, Uint8Array>> {
  const files = await readFolder(folder);
  files.set("/tokenizer.json", new TextEncoder().encode(TOKENIZER));
  return files;
}

/** A version's header lines: a tag made of the content. */
const tagged = (bytes: Uint8Array): string[] => [
  `ETag: "${createHash("sha1").update(bytes).digest("hex")}"`,
];
const weak = (bytes: Uint8Array) => [tagged(bytes)[0].replace('"', 'W/"')];
const dated = () => ["Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT"];

/** Serves files that a test may change, with tags; `answer` may replace an answer. */
async function serve(
  files: Map<string, Uint8Array>,
  tags: (bytes: Uint8Array) => string[] = tagged,
  answer: (request: RawRequest, path: string) => RawAnswer | undefined = () =>
    undefined,
) {
  const server = await serveRaw((request, connection) => {
    const path = new URL(request.target, "http://server").pathname;
    const file = files.get(path.replace("/models", ""));
    const how = answer(request, path) ??
      (file && request.method === "HEAD"
        ? raw([head("200 OK", `Content-Length: ${file.length}`, ...tags(file))])
        : serveWell(file, file ? tags(file) : []));
    return how(request, connection);
  });
  return {
    url: `${server.url}/models/`,
    requests: server.requests,
    /** Requests since the last call, without ranges of weights: path, condition. */
    asked(): string[] {
      return server.requests.splice(0)
        .filter((request) => (rangeOf(request)?.end ?? Infinity) === Infinity)
        .map(nameOf);
    },
    [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
  };
}

/** The file of a request, and whether only a changed one is sent. */
function nameOf({ target, headers, method }: RawRequest): string {
  assert(!headers.has("if-modified-since"));
  const name = target.replace("/models/", "");
  const isConditional = method === "HEAD" || headers.has("if-none-match");
  return isConditional ? `${name} if changed` : name;
}

/** Everything that loading a model reads, as text. */
async function everything(checkpoint: Checkpoint): Promise<string[]> {
  const all: string[] = [];
  for (const { name, byteLength } of checkpoint.tensors.values()) {
    const bytes = new Uint8Array(byteLength);
    await checkpoint.read(name, 0, bytes);
    all.push(`${name}: ${bytes.join()}`);
  }
  for (
    const file of ["tokenizer.json", "chat_template.jinja"]
  ) all.push(`${file}: ${await checkpoint.text(file)}`);
  return all.sort();
}

/** Loads a model; returns what was read and said. */
async function load(url: string, options: OpenOptions = {}) {
  const notices: string[] = [];
  await using checkpoint = await openCheckpoint(url, {
    sleep: () => Promise.resolve(),
    onNotice: (notice) => notices.push(notice),
    ...options,
  });
  return { read: await everything(checkpoint), notices };
}

async function failure(url: string, options: OpenOptions = {}) {
  const { message } = await assertRejects(() => load(url, options), Error);
  assert(!message.includes("\n"));
  return message;
}

/** What a model reads from its own folder. */
async function expectedOf(files: Map<string, Uint8Array>): Promise<string[]> {
  await using server = await serve(files, () => []);
  return (await load(server.url)).read;
}

/** The one kept folder, and the names of its files without hashes and locks. */
async function kept() {
  const [one, ...others] = await listWebCache();
  assertEquals(others, []);
  const names: string[] = [];
  for await (const { name } of Deno.readDir(one.folder)) {
    if (!name.endsWith(".lock")) names.push(name.replace(/^[0-9a-f]{8}-/, ""));
  }
  return { ...one, names: names.sort() };
}
const ALL = ["config.json", "generation_config.json", "index.json", WEIGHTS];
const COMPLETE = [...ALL, "tokenizer.json"];

for (
  const [what, tags] of [["ETags", tagged], ["weak ETags", weak], [
    "dates",
    dated,
  ]] as const
) {
  Deno.test(`a web folder is downloaded once, and each file asked for once (${what})`, async () => {
    await using _cache = await emptyWebCache();
    const files = await filesOf();
    await using server = await serve(files, tags);
    const first = await load(server.url);
    const asked = server.asked();
    assertEquals(asked.sort(), [
      ...["chat_template.jinja", "config.json", "generation_config.json"],
      ...[WEIGHTS, "modules.json", "tokenizer.json"],
    ]);
    const { folder, url, bytes, names, used } = await kept();
    assertEquals([url, names], [server.url, COMPLETE]);
    assertEquals(used, new Date().toISOString().slice(0, 10));
    const size = files.get(`/${WEIGHTS}`)!.length;
    assert(bytes > size && bytes < size + 5000);
    assertEquals(first.notices, [
      `${server.url}: kept in ${folder} for the next run (${
        bytesText(size)
      }; deno task cache clears it).`,
    ]);

    const second = await load(server.url);
    assertEquals(second, { read: first.read, notices: [] });
    assertEquals(first.read, await expectedOf(files));
    // One answer for each file, without content.
    assertEquals(server.requests.map(nameOf).sort(), [
      ...["chat_template.jinja", "config.json if changed"],
      ...["generation_config.json if changed", `${WEIGHTS} if changed`],
      ...["modules.json", "tokenizer.json if changed"],
    ]);
  });
}

Deno.test("shards are kept too, and headers alone download nothing", async () => {
  await using _cache = await emptyWebCache();
  const files = await filesOf(SHARDS);
  await using server = await serve(files);
  {
    await using checkpoint = await openCheckpoint(server.url);
    assertEquals(checkpoint.tensors.size, 46);
    const weights = (await kept()).names.filter((name) => /\.safet/.test(name));
    assertEquals(weights, ["model.safetensors.index.json"]);
  }
  server.asked();
  const seen: number[] = [];
  const { read } = await load(server.url, {
    onProgress: ({ stage, done, total }) => {
      assertEquals(stage, "download");
      assert(done <= total);
      seen.push(done);
    },
  });
  assertEquals(seen, seen.toSorted((a, b) => a - b));
  const asked = server.asked().filter((name) => name.startsWith("model-"));
  assertEquals([asked.length, new Set(asked).size], [15, 15]);
  assertEquals(read, await expectedOf(files));
  assertEquals((await load(server.url)).read, read);
  const whole = server.asked().filter((name) => !/ if changed/.test(name));
  assertEquals(whole, ["modules.json", "chat_template.jinja"]);
});

Deno.test("the modules of an embedding model are kept, one of them in a folder", async () => {
  await using _cache = await emptyWebCache();
  const files = await filesOf();
  const put = (file: string, json: unknown) =>
    files.set(file, new TextEncoder().encode(JSON.stringify(json)));
  const type = "sentence_transformers.models.Pooling";
  put("/modules.json", [{ path: "1_Pooling", type }]);
  put("/1_Pooling/config.json", { pooling_mode: "lasttoken" });
  const server = await serve(files);
  const only = async () => {
    await using checkpoint = await openCheckpoint(server.url);
    await checkpoint.read("model.norm.weight", 0, new Uint8Array(2));
    return checkpoint.only?.is;
  };
  assertEquals(await only(), "an embedding model");
  put("/1_Pooling/config.json", { pooling_mode: "mean" });
  await assertRejects(
    only,
    Error,
    `${server.url}1_Pooling/config.json: the pooling is ["mean"], must be "lasttoken"`,
  );
  put("/1_Pooling/config.json", { pooling_mode: "lasttoken" });
  assertEquals(await only(), "an embedding model");
  const { names } = await kept();
  const own = ["1_Pooling%2Fconfig.json", "modules.json"];
  assertEquals(names, [...ALL, ...own].sort());
  await server[Symbol.asyncDispose]();
  assertEquals(await only(), "an embedding model"); // of what is kept

  put("/modules.json", [{ path: "../other", type }]);
  await using other = await serve(files);
  await assertRejects(
    () => openCheckpoint(other.url),
    Error,
    'modules.json: the path of Pooling is "../other", must be such as "1_Pooling"',
  );
});

Deno.test("a file that changed is downloaded anew, its old version removed", async () => {
  await using _cache = await emptyWebCache();
  const files = await filesOf();
  await using server = await serve(files);
  const before = await load(server.url);
  const weights = Uint8Array.from(files.get(`/${WEIGHTS}`)!);
  weights[weights.length - 1] ^= 1;
  files.set(`/${WEIGHTS}`, weights);
  server.asked();
  const after = await load(server.url);
  assert(after.read.join() !== before.read.join());
  assertEquals(after.read, await expectedOf(files));
  assertEquals(
    server.asked().filter((name) => name.startsWith(WEIGHTS)),
    [WEIGHTS],
  );
  assertEquals((await kept()).names, COMPLETE);

  files.set("/tokenizer.json", new TextEncoder().encode("{}"));
  files.delete("/generation_config.json");
  const last = await load(server.url);
  assert(last.read.includes("tokenizer.json: {}"));
  await server[Symbol.asyncDispose]();
  // What was confirmed before and after the change is one version.
  assertEquals((await load(server.url)).read, last.read);
  assertEquals(
    (await kept()).names,
    COMPLETE.filter((name) => name !== "generation_config.json"),
  );
});

Deno.test("a file with an older date is another version", async () => {
  await using _cache = await emptyWebCache();
  const files = await filesOf();
  let year = 2024;
  await using server = await serve(
    files,
    () => [`Last-Modified: Fri, 01 Mar ${year} 08:49:37 GMT`],
    // As Python's http.server answers: not modified since a later date.
    ({ headers }) =>
      year < 2024 && headers.has("if-modified-since")
        ? reply("304 Not Modified")
        : undefined,
  );
  const before = await load(server.url);
  const weights = Uint8Array.from(files.get(`/${WEIGHTS}`)!);
  weights[weights.length - 1] ^= 1;
  files.set(`/${WEIGHTS}`, weights);
  files.set("/tokenizer.json", new TextEncoder().encode("{}"));
  year = 2019; // the server now serves another, older folder
  const after = await load(server.url);
  assert(after.read.join() !== before.read.join());
  assertEquals(after.read, await expectedOf(files));
});

const NEITHER = "the server sends neither ETag nor Last-Modified";
for (const status of ["405 Method Not Allowed", "501 Not Implemented"]) {
  Deno.test(`a server that answers HEAD with ${status} is asked with GET`, async () => {
    await using _cache = await emptyWebCache();
    const files = await filesOf();
    await using server = await serve(
      files,
      dated,
      ({ method }) => method === "HEAD" ? reply(status) : undefined,
    );
    const { read } = await load(server.url);
    assertEquals(await load(server.url), { read, notices: [] });
    files.set("/tokenizer.json", new TextEncoder().encode("{}"));
    assertEquals((await load(server.url)).read, await expectedOf(files));
  });
}

for (
  const [what, lines, why] of [
    ["no version", [], NEITHER],
    ["empty ones", ["ETag: ", "Last-Modified: "], NEITHER],
    [
      "no-store",
      ['ETag: "1"', "Cache-Control: private, no-store"],
      "the server sends Cache-Control: no-store",
    ],
    ["Vary: *", ['ETag: "1"', "Vary: *"], "the server sends Vary: *"],
  ] as const
) {
  Deno.test(`with ${what} nothing is kept, and what was is removed`, async () => {
    await using _cache = await emptyWebCache();
    const files = await filesOf();
    let strict = true;
    await using server = await serve(
      files,
      (bytes) => strict ? [...lines] : tagged(bytes),
    );
    for (let i = 0; i < 2; i++) {
      const { read, notices } = await load(server.url);
      assertEquals(read, await expectedOf(files));
      assertEquals(notices, [
        `${server.url}: nothing is kept for the next run: ${why}.`,
      ]);
      assertEquals(await listWebCache(), []);
    }
    strict = false;
    await load(server.url);
    assertEquals((await kept()).names, COMPLETE);
    strict = true;
    await load(server.url);
    assertEquals((await kept()).names, ["index.json"]);
  });
}

Deno.test("without the server the complete copy is used, and a notice says so", async () => {
  await using _cache = await emptyWebCache();
  const files = await filesOf();
  let url: string, read: string[];
  {
    await using server = await serve(files);
    url = server.url;
    await assertRejects(() => load(`${url}none/`), Error, "there is no");
    read = (await load(url)).read;
  }
  const { folder } = await kept();
  const offline = await load(url);
  assertEquals(offline, {
    read,
    notices: [
      `${url}: the connection was refused, tried 4 times, so the copy in ${folder} is used.`,
    ],
  });
  // What another query or user would get is not known.
  for (const other of [`${url}?v=2`, url.replace("//", "//me:secret@")]) {
    const message = await failure(other);
    assertMatch(message, /^Cannot read \S+: the connection was refused, tried/);
    assert(!message.includes("secret"));
  }
  await assertRejects(
    () => openCheckpoint(url.replace("models", "other"), { sleep }),
    Error,
    "the connection was refused",
  );
});
const sleep = () => Promise.resolve();

Deno.test("without the server a file that was never read is refused by name", async () => {
  await using _cache = await emptyWebCache();
  let url: string;
  {
    await using server = await serve(await filesOf());
    url = server.url;
    await using checkpoint = await openCheckpoint(url);
    await checkpoint.read("model.norm.weight", 0, new Uint8Array(2));
  }
  assertEquals(
    await failure(url),
    `Cannot read ${url}tokenizer.json: the connection was refused, tried 4 times, and no copy of tokenizer.json is kept`,
  );
});

Deno.test("without the server a mixture of versions is refused", async () => {
  await using _cache = await emptyWebCache();
  const files = await filesOf();
  let url: string;
  {
    let isDown = false;
    await using server = await serve(
      files,
      tagged,
      (_, path) =>
        isDown && path.endsWith(WEIGHTS) ? reply("503 Unavailable") : undefined,
    );
    url = server.url;
    await load(url);
    files.set(
      "/config.json",
      new Uint8Array([...files.get("/config.json")!, 32]),
    );
    isDown = true;
    // The new configuration, and weights that may have changed.
    assertMatch(
      await failure(url),
      /model\.safetensors: .* 503 Service Unavailable/,
    );
    isDown = false;
    await load(url); // they did not
    isDown = true;
    const { notices } = await load(url);
    assertMatch(notices.join(), /503 Service Unavailable, .* is used\.$/);
  }
});

Deno.test("without the server files of a version that went are not used", async () => {
  await using _cache = await emptyWebCache();
  const files = await filesOf();
  let down: string | undefined;
  await using server = await serve(
    files,
    tagged,
    (request, path) =>
      down && path.endsWith(down) && rangeOf(request) === undefined
        ? reply("503 Unavailable")
        : undefined,
  );
  await load(server.url);
  const weights = Uint8Array.from(files.get(`/${WEIGHTS}`)!);
  weights[weights.length - 1] ^= 1;
  files.set(`/${WEIGHTS}`, weights);
  down = WEIGHTS;
  assertMatch(await failure(server.url), /model\.safetensors: .* 503 /);
  down = "tokenizer.json"; // it may have changed
  assertMatch(await failure(server.url), /tokenizer\.json: .* 503 /);
});

Deno.test("a server that refuses is not taken for one that cannot be reached", async () => {
  await using _cache = await emptyWebCache();
  const files = await filesOf();
  let refuses = false;
  await using server = await serve(
    files,
    tagged,
    () => refuses ? reply("403 Forbidden") : undefined,
  );
  await load(server.url);
  refuses = true;
  assertEquals(
    await failure(server.url),
    `Cannot read ${server.url}config.json: the server returned 403 Forbidden`,
  );
});

Deno.test("304 without the file's version is enough", async () => {
  await using _cache = await emptyWebCache();
  const files = await filesOf();
  await using server = await serve(
    files,
    tagged,
    ({ headers }) =>
      headers.has("if-none-match") ? reply("304 Not Modified") : undefined,
  );
  const { read } = await load(server.url);
  assertEquals(await load(server.url), { read, notices: [] });
});

Deno.test("weights that change after their header was read are refused", async () => {
  await using _cache = await emptyWebCache();
  const files = await filesOf();
  await using server = await serve(files);
  await using checkpoint = await openCheckpoint(server.url);
  const weights = Uint8Array.from(files.get(`/${WEIGHTS}`)!);
  weights[weights.length - 1] ^= 1;
  files.set(`/${WEIGHTS}`, weights);
  await assertRejects(
    () => everything(checkpoint),
    Error,
    "model.safetensors: it changed while it was read: its ETag was ",
  );
  assertEquals((await load(server.url)).read, await expectedOf(files));
});

/** The host with some differences. */
const like = (changes: Partial<Host>): Host => ({ ...host, ...changes });

Deno.test("without a permission nothing is kept, and a notice has the flag", async () => {
  await using _cache = await emptyWebCache();
  const files = await filesOf();
  await using server = await serve(files);
  const expected = await expectedOf(files);
  for (const permission of ["env", "read", "write"]) {
    using _host = useHost(like({ isGranted: (name) => name !== permission }));
    assertEquals(await load(server.url), {
      read: expected,
      notices: [
        `${server.url}: nothing is kept for the next run: Deno has no ${permission} permission, run it with --allow-${permission}.`,
      ],
    });
  }
  assertEquals(await listWebCache(), []);
});

/** A host whose disk takes 10 bytes of each download. */
function fullDisk(): Disposable {
  const { files } = host;
  const append: typeof files.append = async (path) => {
    const file = await files.append(path);
    return {
      get size() {
        return file.size;
      },
      async append(bytes) {
        await file.append(bytes.subarray(0, 10));
        throw new Error("No space left on device (os error 28)");
      },
      clear: () => file.clear(),
      flush: () => file.flush(),
      [Symbol.dispose]: () => file[Symbol.dispose](),
    };
  };
  return useHost(like({ files: { ...files, append } }));
}

Deno.test("copies that cannot be changed are used", async () => {
  await using _cache = await emptyWebCache();
  const files = await filesOf();
  await using server = await serve(files);
  const { read } = await load(server.url);
  const path = `${(await kept()).folder}/index.json`;
  const index = JSON.parse(await Deno.readTextFile(path));
  index.used = "2020-02-02"; // so that today's use is to be noted
  delete index.files["chat_template.jinja"];
  await Deno.writeTextFile(path, JSON.stringify(index));
  const readOnly = () => Promise.reject(new Error("read-only"));
  using _host = useHost(like({
    files: {
      ...host.files,
      ...{ makeFolder: readOnly, writeText: readOnly, openLock: readOnly },
      ...{ append: readOnly, move: readOnly, remove: readOnly },
    },
  }));
  server.asked();
  assertEquals(await load(server.url), { read, notices: [] });
  const whole = server.asked().filter((name) => !/ if changed/.test(name));
  assertEquals(whole, ["modules.json", "chat_template.jinja"]);
});

Deno.test("a full disk leaves nothing behind, and weights are read by range", async () => {
  await using _cache = await emptyWebCache();
  const files = await filesOf();
  await using server = await serve(files);
  const expected = await expectedOf(files);
  const { folder } = await (async () => {
    await using _one = await openCheckpoint(server.url);
    return await kept();
  })();
  {
    const freeSpace = () => Promise.resolve(64_000_000);
    using _host = useHost(like({ files: { ...host.files, freeSpace } }));
    assertEquals(await load(server.url), {
      read: expected,
      notices: [
        `${server.url}: nothing is kept for the next run: ${folder} has 64.0 MB free, 64.2 MB are needed.`,
      ],
    });
  }
  {
    using _host = fullDisk();
    const { read, notices } = await load(server.url);
    assertEquals(read, expected);
    assertEquals(notices.length, 1);
    assertMatch(
      notices[0],
      /: nothing is kept for the next run: Cannot write \S+\.incomplete: No space left on device \(os error 28\), at byte 10 of 240952\.$/,
    );
  }
  assertEquals(
    (await kept()).names.filter((name) => name.startsWith(WEIGHTS)),
    [],
  );
  assertEquals((await load(server.url)).read, expected);
  assertEquals((await kept()).names, COMPLETE);
});

for (const [what, tags] of [["strong", tagged], ["weak", weak]] as const) {
  Deno.test(`an interrupted download is ${what === "strong" ? "resumed" : "begun again"} with a ${what} ETag`, async () => {
    await using _cache = await emptyWebCache();
    const files = await filesOf();
    const weights = files.get(`/${WEIGHTS}`)!;
    let broken = true;
    await using server = await serve(files, tags, (request, path) => {
      const range = rangeOf(request);
      if (!broken || !path.endsWith(WEIGHTS)) return undefined;
      if (range !== undefined && range.end !== Infinity) return undefined;
      const begin = range?.begin ?? 0;
      return raw([
        range === undefined
          ? head(
            "200 OK",
            ...tags(weights),
            `Content-Length: ${weights.length}`,
          )
          : head(
            "206 Partial Content",
            ...tags(weights),
            `Content-Range: bytes ${begin}-${
              weights.length - 1
            }/${weights.length}`,
            `Content-Length: ${weights.length - begin}`,
          ),
        weights.subarray(begin, begin + 1000),
      ]);
    });
    assertMatch(
      await failure(server.url),
      /Cannot read \S+model\.safetensors: .*, tried 4 times$/,
    );
    const { folder, names } = await kept();
    assert(names.includes(`${WEIGHTS}.incomplete`) && !names.includes(WEIGHTS));
    broken = false;
    server.requests.length = 0;
    const { read, notices } = await load(server.url);
    assertEquals(read, await expectedOf(files));
    const last = server.requests.filter(({ target }) =>
      target.endsWith(WEIGHTS)
    ).at(-1)!;
    if (what === "strong") {
      assertEquals(last.headers.get("range"), "bytes=4000-");
      assertEquals(`ETag: ${last.headers.get("if-range")}`, tags(weights)[0]);
      assertEquals(notices[0], `Resuming ${WEIGHTS} at byte 4000 of 240952.`);
    } else assertEquals(last.headers.get("range"), null);
    assertStringIncludes(notices.at(-1)!, `kept in ${folder}`);
    assertEquals((await kept()).names, COMPLETE);
  });
}

Deno.test("a server without ranges sends each file once, into the cache", async () => {
  await using _cache = await emptyWebCache();
  const files = await filesOf();
  await using server = await serve(files, tagged, ({ headers }, path) => {
    const file = files.get(path.replace("/models", ""));
    const known = file &&
      `ETag: ${headers.get("if-none-match")}` === tagged(file)[0];
    return file && !known ? reply("200 OK", tagged(file), file) : undefined;
  });
  {
    using _host = fullDisk(); // but there is room for a temporary file
    const { read, notices } = await load(server.url);
    assertEquals(read, await expectedOf(files));
    assertEquals(notices.length, 2);
    assertMatch(notices[0], /: nothing is kept for the next run: Cannot write/);
    assertMatch(notices[1], /: the server does not send byte ranges /);
  }
  server.requests.length = 0;
  const { read, notices } = await load(server.url);
  assertEquals(read, await expectedOf(files));
  assertEquals(notices.length, 1);
  assertStringIncludes(notices[0], ": kept in ");
  const targets = server.requests.map(({ target }) => target);
  assertEquals(targets.length, new Set(targets).size);
  assertEquals(await load(server.url), { read, notices: [] });
});

Deno.test("a web page in place of weights is not kept", async () => {
  await using _cache = await emptyWebCache();
  const files = await filesOf();
  const page = "<!DOCTYPE html><title>Sign in</title>";
  await using server = await serve(
    files,
    tagged,
    (_, path) =>
      path.endsWith(WEIGHTS) ? reply("200 OK", ['ETag: "1"'], page) : undefined,
  );
  assertStringIncludes(
    await failure(server.url),
    'it is an HTML page titled "Sign in", must be the file itself',
  );
  const weights = (await kept()).names.filter((name) => name === WEIGHTS);
  assertEquals(weights, []);
});

Deno.test("where files cannot be locked, a broken download leaves nothing", async () => {
  await using _cache = await emptyWebCache();
  const files = await filesOf(), weights = files.get(`/${WEIGHTS}`)!;
  let broken = true;
  await using server = await serve(files, tagged, (request, path) => {
    const range = rangeOf(request);
    if (!broken || !path.endsWith(WEIGHTS)) return undefined;
    if (range !== undefined) {
      return range.end === Infinity ? raw([]) : undefined;
    }
    return raw([
      head("200 OK", "Content-Length: 240952"),
      weights.subarray(0, 99),
    ]);
  });
  const openLock = () =>
    Promise.resolve({
      tryLock: () => Promise.reject(new Error("no locks (os error 95)")),
      [Symbol.dispose]: () => {},
    });
  using _host = useHost(like({ files: { ...host.files, openLock } }));
  assertMatch(await failure(server.url), /model\.safetensors: /);
  assertEquals(
    (await kept()).names.filter((name) => name.startsWith(WEIGHTS)),
    [],
  );
  broken = false;
  const { read, notices } = await load(server.url);
  assertEquals(read, await expectedOf(files));
  assertMatch(
    notices[0],
    /cannot be locked \(no locks \(os error 95\)\): model\.safetensors is downloaded without a lock\.$/,
  );
  assertEquals((await kept()).names, COMPLETE);
});

Deno.test("the beginning of a download that cannot be one is not resumed", async () => {
  await using _cache = await emptyWebCache();
  const files = await filesOf();
  await using server = await serve(files);
  await load(server.url);
  const { folder } = await kept();
  for await (const { name } of Deno.readDir(folder)) {
    if (!name.endsWith(`-${WEIGHTS}`)) continue;
    const path = `${folder}/${name}`;
    await Deno.writeFile(`${path}.incomplete`, new Uint8Array(300_000));
    await Deno.remove(path);
  }
  await Deno.remove(`${folder}/index.json`);
  assertEquals((await load(server.url)).read, await expectedOf(files));
});

const moment = (ms: number) =>
  new Promise<void>((done) => setTimeout(done, ms));

Deno.test("what killed programs left of other versions is removed", async () => {
  await using _cache = await emptyWebCache();
  const files = await filesOf();
  await using server = await serve(files);
  await (await openCheckpoint(server.url))[Symbol.asyncDispose]();
  const { folder } = await kept();
  const left = [
    ...[WEIGHTS, `${WEIGHTS}.incomplete`, `${WEIGHTS}.lock`],
    ...[`${WEIGHTS}.${crypto.randomUUID()}.incomplete`],
    ...[`tokenizer.json.${crypto.randomUUID()}`],
  ].map((name) => `${folder}/00000000-${name}`);
  const others = [`${WEIGHTS}.index.json`, `${WEIGHTS}.bak`]
    .map((name) => `${folder}/00000000-${name}`);
  for (const path of [...left, ...others]) await Deno.writeTextFile(path, "x");
  await load(server.url);
  const names = [...Deno.readDirSync(folder)].map(({ name }) => name)
    .filter((name) => name.startsWith("00000000")).sort();
  assertEquals(names.map((name) => `${folder}/${name}`), others.sort());
});

Deno.test("two loads at once share one download", async () => {
  await using _cache = await emptyWebCache();
  const files = await filesOf();
  await using server = await serve(files);
  const [one, other] = await Promise.all([
    load(server.url, { sleep: moment }),
    load(server.url, { sleep: moment }),
  ]);
  assertEquals(one.read, other.read);
  assertEquals(one.read, await expectedOf(files));
  assertEquals(server.asked().filter((name) => name === WEIGHTS).length, 1);
  const notices = [...one.notices, ...other.notices];
  assertEquals(
    notices.filter((notice) => /: kept in /.test(notice)).length,
    1,
  );
  assertEquals((await kept()).names, COMPLETE);
});

Deno.test("a load that saw the old version does not disturb the download of the new one", async () => {
  await using _cache = await emptyWebCache();
  const files = await filesOf();
  const begun = Promise.withResolvers<void>();
  const other = Promise.withResolvers<void>();
  let isChanged = false, asking = 0;
  await using server = await serve(files, tagged, (_, path) => {
    const file = files.get(path.replace("/models", ""));
    if (!isChanged || !path.endsWith(WEIGHTS) || !file) return undefined;
    const half = file.length / 2;
    const parts = head(
      "200 OK",
      `Content-Length: ${file.length}`,
      ...tagged(file),
    );
    const isFirst = asking++ === 0;
    return async (_, connection) => {
      if (!isFirst) await begun.promise;
      await connection.write(parts);
      await connection.write(file.subarray(0, half));
      if (isFirst) {
        await other.promise; // both have compared what is kept
        await moment(300);
        begun.resolve();
        await moment(500);
      } else await moment(1000);
      await connection.write(file.subarray(half));
    };
  });
  await load(server.url);
  const weights = Uint8Array.from(files.get(`/${WEIGHTS}`)!);
  weights[weights.length - 1] ^= 1;
  files.set(`/${WEIGHTS}`, weights);
  isChanged = true;
  const expected = await expectedOf(files);
  const loads = [1, 2].map(() => load(server.url, { sleep: moment }));
  while (asking < 2) await moment(10);
  other.resolve();
  for (const { read, notices } of await Promise.all(loads)) {
    assertEquals(read, expected);
    assert(!notices.join().includes("nothing is kept"), notices.join());
  }
  isChanged = false;
  assertEquals(await load(server.url), { read: expected, notices: [] });
  assertEquals((await kept()).names, COMPLETE);
});

Deno.test("a text that another program removed is not taken for absent", async () => {
  await using cache = await emptyWebCache();
  const files = await filesOf();
  let clears = false;
  await using server = await serve(files, tagged, ({ headers }, path) => {
    if (clears && path.endsWith("tokenizer.json")) {
      assert(headers.has("if-none-match"));
      Deno.removeSync(`${cache.path}/web`, { recursive: true });
    }
    return undefined;
  });
  const { read } = await load(server.url);
  clears = true;
  assertMatch(
    await failure(server.url),
    /^Cannot read \S+-tokenizer\.json: another program has removed it$/,
  );
  clears = false;
  assertEquals((await load(server.url)).read, read);
});

Deno.test("a copy that another program replaced on the way is not taken for whole", async () => {
  await using cache = await emptyWebCache();
  const files = await filesOf();
  await using server = await serve(files);
  const { read, notices } = await load(server.url, {
    onProgress: ({ fileDone, fileTotal }) => {
      if (fileDone !== fileTotal) return;
      const [{ name: one }] = Deno.readDirSync(`${cache.path}/web`);
      const folder = `${cache.path}/web/${one}`;
      for (const { name } of Deno.readDirSync(folder)) {
        if (!name.endsWith(".incomplete")) continue;
        Deno.removeSync(`${folder}/${name}`);
        Deno.writeFileSync(`${folder}/${name}`, new Uint8Array(1000));
      }
    },
  });
  const expected = await expectedOf(files);
  assertEquals(read, expected);
  assertMatch(notices.join(), /nothing is kept for the next run: Cannot keep /);
  assertEquals((await load(server.url)).read, expected);
});

Deno.test("what is damaged in the cache is fetched again", async () => {
  await using cache = await emptyWebCache();
  const files = await filesOf();
  await using server = await serve(files);
  const { read } = await load(server.url);
  const { folder } = await kept();
  const pathOf = async (file: string) => {
    const names = await Array.fromAsync(Deno.readDir(folder));
    const own = names.find(({ name }) => name.endsWith(`-${file}`));
    return `${folder}/${own?.name ?? file}`;
  };
  const damages: [string, (path: string) => Promise<void>, RegExp?][] = [
    [WEIGHTS, (path) => Deno.truncate(path, 9), /has 9 bytes, must have/],
    [
      "tokenizer.json",
      (path) => Deno.writeTextFile(path, TOKENIZER.replace("a", "b")),
      /has the SHA-256 .*: downloading it again\.$/,
    ],
    ["config.json", (path) => Deno.remove(path)],
    ["index.json", (path) => Deno.remove(path)],
    ["index.json", (path) => Deno.writeTextFile(path, '{"version": 1')],
    ["index.json", (path) => Deno.writeTextFile(path, "null")],
    [
      "index.json",
      async (path) => {
        const json = JSON.parse(await Deno.readTextFile(path));
        json.files[WEIGHTS].id = "../../..";
        json.files["config.json"].size = -1;
        json.files["tokenizer.json"].etag = "a\nb";
        await Deno.writeTextFile(path, JSON.stringify(json));
      },
    ],
  ];
  const { path: outside } = cache;
  damages.push(["index.json", async (path) => {
    await Deno.writeTextFile(`${outside}/web/x-tokenizer.json`, "{}");
    const json = JSON.parse(await Deno.readTextFile(path));
    const sha256 = createHash("sha256").update("{}").digest("hex");
    const other = { id: "../x", size: 2, sha256 };
    Object.assign(json.files["tokenizer.json"], other);
    await Deno.writeTextFile(path, JSON.stringify(json));
  }]);
  for (const [file, damage, notice] of damages) {
    await damage(await pathOf(file));
    const again = await load(server.url);
    assertEquals(again.read, read, file);
    if (notice) assertMatch(again.notices[0], notice);
    assertEquals((await kept()).names, COMPLETE);
    assertEquals((await load(server.url)).notices, []);
  }
});

Deno.test("signatures, users and passwords are not written to the disk", async () => {
  await using cache = await emptyWebCache();
  const files = await filesOf();
  await using server = await serve(files);
  const signed = (signature: string) =>
    `${
      server.url.replace("//", "//me:pass-word@")
    }?X-Amz-Signature=${signature}`;
  const { read, notices } = await load(signed("secret1"));
  assert(!/pass-word|secret1/.test(notices.join()));
  server.asked();
  // Another signature for the same files.
  assertEquals(await load(signed("secret2")), { read, notices: [] });
  assertEquals(
    server.requests.filter(({ headers }) => headers.has("if-none-match"))
      .length,
    4,
  );
  const { url } = await kept();
  assertEquals(url, server.url);
  const seen: string[] = [];
  const look = async (folder: string) => {
    for await (const { name, isDirectory } of Deno.readDir(folder)) {
      seen.push(name);
      if (isDirectory) await look(`${folder}/${name}`);
      else seen.push(await Deno.readTextFile(`${folder}/${name}`));
    }
  };
  await look(cache.path);
  assert(seen.length > 10);
  assert(!/pass-word|secret\d|Amz|me:/.test(seen.join()));
  // A hash short enough that a list of passwords cannot be tried on it.
  const asked = seen.join().match(/"asked": "[^"]*"/g) ?? [];
  assertEquals(asked.filter((text) => !/: "[0-9a-f]{4}"$/.test(text)), []);
  assert(asked.length >= 4);
});

Deno.test("a date does not make two queries one file", async () => {
  await using _cache = await emptyWebCache();
  const one = await filesOf(), two = await filesOf();
  two.set("/tokenizer.json", new TextEncoder().encode('{"added_tokens":{} }'));
  await using server = await serve(one, dated, ({ target }, path) => {
    const file = two.get(path.replace("/models", ""));
    return target.includes("?v=2") && file
      ? serveWell(file, dated())
      : undefined;
  });
  assert(
    (await load(server.url)).read.includes(`tokenizer.json: ${TOKENIZER}`),
  );
  const { read } = await load(`${server.url}?v=2`);
  assert(read.includes('tokenizer.json: {"added_tokens":{} }'));
});

Deno.test("a signal ends a download, which the next one resumes", async () => {
  await using _cache = await emptyWebCache();
  const files = await filesOf();
  await using server = await serve(files);
  const abort = new AbortController();
  const reason = new Error("enough");
  const { message } = await assertRejects(() =>
    load(server.url, {
      signal: abort.signal,
      onProgress: () => abort.abort(reason),
    }), Error);
  assertEquals(message, "enough");
  assert(!(await kept()).names.includes(WEIGHTS));
  assertEquals((await load(server.url)).read, await expectedOf(files));
});

Deno.test("on Windows web folders are kept below the user's folder", async () => {
  const disk = await Deno.realPath(await Deno.makeTempDir());
  try {
    const files = await filesOf();
    await using server = await serve(files);
    const expected = await expectedOf(files);
    const env = { LOCALAPPDATA: "C:\\Users\\a\\AppData\\Local" };
    using _windows = useHost(windowsHost(disk, env));
    const { read, notices } = await load(server.url);
    assertEquals(read, expected);
    assertStringIncludes(
      notices[0],
      "kept in C:\\Users\\a\\AppData\\Local/qwen3-webgpu/web/127.0.0.1-",
    );
    files.set(
      "/tokenizer.json",
      new TextEncoder().encode("{}"),
    );
    server.asked();
    assert((await load(server.url)).read.includes("tokenizer.json: {}"));
    assertEquals(
      server.asked().filter((name) => name === WEIGHTS),
      [],
    );
    const [one] = await listWebCache();
    assertEquals(one.url, server.url);
  } finally {
    await Deno.remove(disk, { recursive: true });
  }
});

slowTest("the story model next to an imported mod.ts is kept too", async () => {
  await using cache = await emptyWebCache();
  await using server = await serveRaw(async (request, connection) => {
    const { pathname } = new URL(request.target, "http://server");
    const file = await Deno.readFile(
      new URL(`../..${pathname}`, import.meta.url),
    )
      .catch(() => undefined);
    const answer = serveWell(file, file ? tagged(file) : []);
    await answer(request, connection);
  });
  const main = `${cache.path}/main.ts`;
  await Deno.writeTextFile(
    main,
    `import { loadQwen3 } from "${server.url}/mod.ts";
     const onNotice = (notice) => notices.push(notice), notices = [];
     using qwen = await loadQwen3(undefined, { device: "cpu", onNotice });
     let text = "";
     const options = { temperature: 0, maxTokens: 9 };
     for await (const piece of qwen.generate("Once upon a time", options)) {
       text += piece.text;
     }
     console.log(JSON.stringify({ text, notices }));`,
  );
  const run = async () => {
    const { stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: [
        ...["run", "-A", "--no-check", "--no-config"],
        ...[`--reload=${server.url}`, main], // an earlier run may have had this port
      ],
      env: { NO_COLOR: "1", [CACHE_DIR]: cache.path },
    }).output();
    const text = new TextDecoder();
    assert(stdout.length > 0, text.decode(stderr));
    const asked = server.requests.splice(0)
      .filter(({ target }) => target.startsWith("/models/"))
      .map(({ headers }) => headers.has("if-none-match"));
    return { asked, ...JSON.parse(text.decode(stdout)) };
  };
  const text = ", there was a little girl named Lily.";
  const first = await run();
  assertEquals(first.text, text);
  assertEquals(first.notices.length, 1);
  assertStringIncludes(first.notices[0], `/models/stories-3m/: kept in `);
  assert(!first.asked.includes(true));
  const second = await run();
  assertEquals([second.text, second.notices], [text, []]);
  // There are no chat template and no modules.
  assertEquals(second.asked.toSorted(), [false, false, ...Array(5).fill(true)]);
});
