import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import {
  COMMIT,
  emptyCache,
  fillCache,
  fixtureFiles,
  gitSha1,
  listedFile,
  serveHub,
} from "../support/serve_hub.ts";

const bytesOf = (text: string) => new TextEncoder().encode(text);
const COMPANIONS: Record<string, string> = {
  "generation_config.json": "{}",
  "tokenizer.json": '{"a":1}',
  "tokenizer_config.json": '{"b":2}',
  "chat_template.jinja": "{{ messages }}",
};

/** A repository with every companion. */
async function whole(): Promise<Map<string, Uint8Array>> {
  const files = await fixtureFiles("tiny-tied-bf16");
  for (const [name, text] of Object.entries(COMPANIONS)) {
    files.set(name, bytesOf(text));
  }
  return files;
}

function without(
  files: ReadonlyMap<string, Uint8Array>,
  ...names: string[]
): Map<string, Uint8Array> {
  return new Map([...files].filter(([name]) => !names.includes(name)));
}

/** Opens `Some/Model`; returns what was said. */
async function open(): Promise<string[]> {
  const notices: string[] = [];
  await using _checkpoint = await openCheckpoint("Some/Model", {
    onNotice: (notice) => notices.push(notice),
    sleep: () => Promise.resolve(),
  });
  return notices;
}

/** Writes the list of a commit's files as huggingface_hub 1.x does. */
async function writeTree(
  entry: string,
  files: ReadonlyMap<string, Uint8Array>,
) {
  await Deno.mkdir(`${entry}/trees`, { recursive: true });
  const listed = [...files].map(([name, bytes]) => {
    const { size, oid, lfs } = listedFile(name, bytes);
    return [name, {
      size,
      blob_id: oid,
      ...lfs && { lfs_sha256: lfs.oid, lfs_size: lfs.size },
    }];
  });
  await Deno.writeTextFile(
    `${entry}/trees/${COMMIT}.json`,
    JSON.stringify({ format_version: 1, files: Object.fromEntries(listed) }),
  );
}

for (const missing of Object.keys(COMPANIONS)) {
  Deno.test(`a cache entry without ${missing} is completed, once`, async () => {
    await using cache = await emptyCache();
    const files = await whole();
    await using server = await serveHub(files);
    await fillCache(cache.entry, without(files, missing));
    assertEquals(await open(), []);
    assertEquals(
      await Deno.readTextFile(`${cache.snapshot}/${missing}`),
      COMPANIONS[missing],
    );
    assertEquals(
      server.requests.map(({ url }) => new URL(url).pathname),
      [
        `/api/models/Some/Model/tree/${COMMIT}`,
        `/Some/Model/resolve/${COMMIT}/${missing}`,
      ],
    );
    await open();
    assertEquals(server.requests.length, 2);
  });

  Deno.test(`offline, a missing ${missing} is named`, async () => {
    await using cache = await emptyCache();
    const files = await whole();
    Deno.env.set("HF_HUB_OFFLINE", "1");
    await fillCache(cache.entry, without(files, missing));
    // Nobody noted what the repository has.
    assertEquals(await open(), [
      `${cache.snapshot} lacks ${missing}, which the repository may have: HF_HUB_OFFLINE forbids asking.`,
    ]);
    // The list of its files has it.
    await writeTree(cache.entry, files);
    await assertRejects(
      open,
      Error,
      `Cannot open Some/Model: it is not complete in the cache (${cache.snapshot} lacks ${missing}), and HF_HUB_OFFLINE forbids downloading it`,
    );
    // The list of its files does not have it.
    await writeTree(cache.entry, without(files, missing));
    assertEquals(await open(), []);
    // Somebody asked for the file and noted that there is none.
    await Deno.remove(`${cache.entry}/trees`, { recursive: true });
    const noted = `${cache.entry}/.no_exist/${COMMIT}`;
    await Deno.mkdir(noted, { recursive: true });
    await Deno.writeTextFile(`${noted}/${missing}`, "");
    assertEquals(await open(), []);
  });
}

Deno.test("a template in tokenizer_config.json makes chat_template.jinja unnecessary", async () => {
  await using cache = await emptyCache();
  const files = await whole();
  files.set("tokenizer_config.json", bytesOf('{"chat_template":"x"}'));
  await using server = await serveHub(files);
  await fillCache(cache.entry, without(files, "chat_template.jinja"));
  assertEquals(await open(), []);
  assertEquals(server.requests.length, 0);
});

Deno.test("a repository without a tokenizer is asked for it once", async () => {
  await using cache = await emptyCache();
  const files = await fixtureFiles("tiny-tied-bf16");
  await using server = await serveHub(files);
  await fillCache(cache.entry, files);
  assertEquals(await open(), []);
  assertEquals(server.requests.length, 1);
  assertEquals(await open(), []);
  assertEquals(server.requests.length, 1);
  Deno.env.set("HF_HUB_OFFLINE", "1");
  assertEquals(await open(), []);
});

Deno.test("when the Hub cannot be asked, what is there is used, and the reason given", async () => {
  await using cache = await emptyCache();
  await fillCache(cache.entry, await fixtureFiles("tiny-tied-bf16"));
  await using server = await serveHub(
    new Map(),
    () => new Response(null, { status: 503 }),
  );
  assertEquals(await open(), [
    `${cache.snapshot} lacks tokenizer.json, tokenizer_config.json, chat_template.jinja, which the repository may have: the server returned 503 Service Unavailable, tried 4 times.`,
  ]);
  assert(server.requests.length > 0);
});

Deno.test("damage is found with a list and without one, and named offline", async () => {
  for (const hasList of [true, false]) {
    await using cache = await emptyCache();
    const files = await whole();
    Deno.env.set("HF_HUB_OFFLINE", "1");
    for (
      const [name, size, without, withList] of [
        [
          "model.safetensors",
          200_000,
          "is damaged: tensor model.",
          "has 200000 bytes, must have 240952",
        ],
        [
          "model.safetensors",
          1000,
          "is damaged: its header should have",
          "has 1000 bytes, must have 240952",
        ],
        [
          "model.safetensors",
          3,
          "is damaged: it has 3 bytes, a safetensors file has",
          "has 3 bytes, must have 240952",
        ],
        [
          "config.json",
          0,
          "is not a whole JSON object",
          "has 0 bytes, must have",
        ],
        [
          "tokenizer.json",
          4,
          "is not a whole JSON object",
          "has 4 bytes, must have 7",
        ],
      ] as const
    ) {
      await fillCache(cache.entry, files);
      if (hasList) await writeTree(cache.entry, files);
      const path = await Deno.realPath(`${cache.snapshot}/${name}`);
      await Deno.truncate(path, size);
      await assertRejects(
        open,
        Error,
        `(${cache.snapshot}/${name} ${hasList ? withList : without}`,
      );
    }
  }
});

Deno.test("bytes of the right size that are wrong are found in small files", async () => {
  await using cache = await emptyCache();
  const files = await whole();
  await using _server = await serveHub(files);
  await fillCache(cache.entry, files);
  await writeTree(cache.entry, files);
  const path = await Deno.realPath(`${cache.snapshot}/tokenizer.json`);
  await Deno.writeFile(path, new Uint8Array(7));
  const [notice] = await open();
  assertEquals(
    notice,
    `${cache.snapshot}/tokenizer.json has the Git SHA-1 ${
      gitSha1(new Uint8Array(7))
    }, must have ${
      gitSha1(bytesOf(COMPANIONS["tokenizer.json"]))
    }: downloading it again.`,
  );
  assertEquals(
    await Deno.readTextFile(`${cache.snapshot}/tokenizer.json`),
    COMPANIONS["tokenizer.json"],
  );
});

Deno.test("a list that cannot be used is ignored, and replaced when files are missing", async () => {
  for (
    const text of [
      "",
      "{}",
      "[]",
      '{"format_version":2,"files":{}}',
      '{"format_version":1,"files":{"tokenizer.json":null}}',
    ]
  ) {
    await using cache = await emptyCache();
    const files = await whole();
    await using _server = await serveHub(files);
    await fillCache(cache.entry, without(files, "tokenizer.json"));
    await Deno.mkdir(`${cache.entry}/trees`);
    const path = `${cache.entry}/trees/${COMMIT}.json`;
    await Deno.writeTextFile(path, text);
    assertEquals(await open(), []);
    const { format_version, files: listed } = JSON.parse(
      await Deno.readTextFile(path),
    );
    assertEquals(format_version, 1);
    assertEquals(Object.keys(listed), [...files.keys()].sort());
    const weights = listedFile(
      "model.safetensors",
      files.get("model.safetensors")!,
    );
    assertEquals(listed["model.safetensors"], {
      size: weights.size,
      blob_id: weights.oid,
      lfs_sha256: weights.lfs!.oid,
      lfs_size: weights.size,
      xet_hash: weights.xetHash,
    });
  }
});

Deno.test("of two forms of the weights the one that is there is used", async () => {
  await using cache = await emptyCache();
  Deno.env.set("HF_HUB_OFFLINE", "1");
  const files = await fixtureFiles("tiny-sharded-f16");
  await fillCache(cache.entry, files);
  files.set("model.safetensors", new Uint8Array(9));
  await writeTree(cache.entry, files);
  assertEquals(await open(), []);
});

Deno.test("many missing shards are counted", async () => {
  await using cache = await emptyCache();
  Deno.env.set("HF_HUB_OFFLINE", "1");
  const files = await fixtureFiles("tiny-sharded-f16");
  const shards = [...files.keys()].filter((name) => /-of-/.test(name)).sort();
  await fillCache(cache.entry, without(files, ...shards));
  await assertRejects(
    open,
    Error,
    `lacks ${shards.slice(0, 4).join(", ")} and 11 more)`,
  );
});

Deno.test("a ref that is not a commit is named", async () => {
  await using cache = await emptyCache();
  Deno.env.set("HF_HUB_OFFLINE", "1");
  await fillCache(cache.entry, await whole());
  await Deno.writeTextFile(`${cache.entry}/refs/main`, "../../..\n");
  await assertRejects(
    open,
    Error,
    `${cache.entry}/refs/main has "../../..", not a commit`,
  );
});

Deno.test("a cache entry that cannot be read is named with the cause", async () => {
  await using cache = await emptyCache();
  await fillCache(cache.entry, without(await whole(), "config.json"));
  await Deno.mkdir(`${cache.snapshot}/config.json`);
  await assertRejects(
    open,
    Error,
    "Cannot open Some/Model: its entry in the cache cannot be read: Is a directory",
  );
});

Deno.test("what cannot be written is named with the cause", async () => {
  for (const folder of ["refs", "trees"]) {
    await using cache = await emptyCache();
    await using _server = await serveHub(await whole());
    await Deno.mkdir(cache.entry);
    await Deno.writeTextFile(`${cache.entry}/${folder}`, "");
    const { message } = await assertRejects(open, Error);
    assertMatch(
      message,
      new RegExp(`Cannot write ${cache.entry}/${folder}\\S*: `),
    );
  }
});
