/** What a misbehaving Hub, disk or earlier download leaves in the cache. */
import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import { type Host, host, useHost } from "../../lib/host.ts";
import { brokenResponse, rangeResponse } from "../support/serve_folder.ts";
import {
  blobName,
  COMMIT,
  emptyCache,
  fillCache,
  fixtureFiles,
  gitSha1,
  type Intercept,
  listedFile,
  namesIn,
  serveHub,
  sha256,
} from "../support/serve_hub.ts";

const WEIGHTS = "model.safetensors";
const { config, weights, other } = await (async () => {
  const files = await fixtureFiles("tiny-tied-bf16");
  const weights = files.get(WEIGHTS)!;
  const other = weights.map((byte, at) => at < 50_000 ? byte : byte ^ 1);
  return { config: files.get("config.json")!, weights, other };
})();
const half = 100_000;
const bytesOf = (text: string) => new TextEncoder().encode(text);
const TOKENIZER = bytesOf('{"a":1}');
const FILES: ReadonlyMap<string, Uint8Array> = new Map([
  ["config.json", config],
  ["tokenizer.json", TOKENIZER],
  [WEIGHTS, weights],
]);
const BLOB = blobName(WEIGHTS, weights);

type Cache = Awaited<ReturnType<typeof emptyCache>>;

/** Every blob has the content that its name says; nothing in the snapshot dangles. */
async function assertTrueToNames(cache: Cache, files = FILES) {
  for (const name of await namesIn(`${cache.entry}/blobs`).catch(() => [])) {
    if (name.endsWith(".incomplete")) continue;
    const bytes = await Deno.readFile(`${cache.entry}/blobs/${name}`);
    assertEquals(name.length === 64 ? sha256(bytes) : gitSha1(bytes), name);
  }
  for (const name of await namesIn(cache.snapshot).catch(() => [])) {
    const bytes = await Deno.readFile(`${cache.snapshot}/${name}`);
    assertEquals(bytes.join(), files.get(name)?.join(), name);
  }
}

/** A mode of a server, a disk or a cache, and the expected outcome. */
interface Mode {
  what: string;
  /** The Hub's answers, if they are not right. `count` counts requests for the weights. */
  hub?: (
    request: Request,
    at: { path: string; file?: string; count: number; url: string },
  ) => Response | undefined | Promise<Response | undefined>;
  files?: ReadonlyMap<string, Uint8Array>;
  /** What is in the cache before. */
  before?: (cache: Cache) => Promise<unknown>;
  /** The error; without one the checkpoint must open. */
  error?: RegExp;
  /** A notice that must be given. */
  notice?: RegExp;
  /** Ranges asked for, for the weights. */
  ranges?: (string | null)[];
  /** Bytes of the weights that are kept as a piece; by default none. */
  piece?: number;
}

/** Weights come whole, but from other bytes. */
const always = (bytes: Uint8Array): Mode["hub"] => (request, { file }) =>
  file === WEIGHTS ? rangeResponse(request, bytes) : undefined;
/** The first request for weights gets this answer, later ones the right one. */
const once = (
  answer: (request: Request) => Response | Promise<Response>,
): Mode["hub"] =>
(request, { file, count }) =>
  file === WEIGHTS && count === 1 ? answer(request) : undefined;
const part = (bytes: Uint8Array, range?: string, status = 206) =>
  new Response(bytes.slice(), {
    status,
    headers: range === undefined ? {} : { "content-range": range },
  });
/** An earlier download left the beginning of the weights. */
const piece = (bytes: Uint8Array) => async (cache: Cache) => {
  await Deno.mkdir(`${cache.entry}/blobs`, { recursive: true });
  await Deno.writeFile(`${cache.entry}/blobs/${BLOB}.incomplete`, bytes);
};
/** Answers requests for the repository's commit. */
const info = (answer: () => Response): Mode["hub"] => (_, { path }) =>
  path.includes("/revision/") ? answer() : undefined;
/** Answers requests for the list of files. */
const list =
  (answer: (url: string) => Response): Mode["hub"] => (_, { path, url }) =>
    path.includes("/tree/") ? answer(url) : undefined;
/** Changes what the Hub says about the weights. */
const listed = (change: Record<string, unknown>): Mode["hub"] =>
  list(() =>
    Response.json(
      [...FILES].map(([name, bytes]) => ({
        ...listedFile(name, bytes),
        ...name === WEIGHTS && change,
      })),
    )
  );
const refused = (
  status: number,
  headers: Record<string, string> = {},
  body: unknown = {},
) =>
() => Response.json(body, { status, headers });

let brokenLists = 0;
const rest = [`bytes=${half}-${weights.length - 1}`];
const SHA = `must have ${sha256(weights)}`;

const MODES: Mode[] = [
  {
    what: "wrong bytes of the right size",
    hub: always(other),
    error: new RegExp(
      `model.safetensors has the SHA-256 ${
        sha256(other)
      }, ${SHA}; that was the second attempt, nothing is kept`,
    ),
    notice: new RegExp(`${SHA}: downloading it again from the start`),
    ranges: [null, null],
  },
  {
    what: "wrong bytes once",
    hub: once((request) => rangeResponse(request, other)),
    notice: new RegExp(SHA),
    ranges: [null, null],
  },
  {
    what: "a hole of zeros once",
    hub: once((request) =>
      rangeResponse(request, weights.map((byte, at) => at < half ? byte : 0))
    ),
    notice: new RegExp(SHA),
  },
  {
    what: "a config.json with other bytes",
    hub: (_, { file }) =>
      file === "config.json" ? new Response(config.map(() => 32)) : undefined,
    error: new RegExp(
      `config.json has the Git SHA-1 [0-9a-f]{40}, must have ${
        gitSha1(config)
      }`,
    ),
    ranges: [],
  },
  {
    what: "a piece whose bytes are wrong",
    before: piece(other.slice(0, half)),
    notice: new RegExp(SHA),
    ranges: [...rest, null],
  },
  {
    what: "a piece with a hole",
    before: piece(weights.slice(0, half).fill(0, 20_000, 30_000)),
    notice: new RegExp(SHA),
    ranges: [...rest, null],
  },
  {
    what: "a piece that a full disk shifted",
    before: piece(
      new Uint8Array([
        ...weights.slice(0, 900),
        0,
        ...weights.slice(900, half - 1),
      ]),
    ),
    notice: new RegExp(SHA),
    ranges: [...rest, null],
  },
  {
    what: "a right piece",
    before: piece(weights.slice(0, half)),
    notice: /^Resuming model.safetensors at byte 100000 of 240952\.$/m,
    ranges: rest,
  },
  {
    what: "a piece that is whole",
    before: piece(weights),
    ranges: [],
  },
  {
    what: "a piece that has all bytes, wrong ones",
    before: piece(other),
    notice: new RegExp(SHA),
    ranges: [null],
  },
  {
    what: "a piece longer than the file",
    before: piece(new Uint8Array(weights.length + 1)),
    ranges: [null],
  },
  {
    what: "the whole file in answer to a range",
    before: piece(weights.slice(0, half)),
    hub: once(() => new Response(weights.slice())),
    notice: /The server cannot resume model.safetensors: it starts over/,
    ranges: rest,
  },
  {
    what: "the beginning in answer to a range",
    before: piece(weights.slice(0, half)),
    hub: once(() =>
      part(
        weights.slice(0, weights.length - half),
        `bytes 0-${weights.length - half - 1}/${weights.length}`,
      )
    ),
    notice:
      /from byte 100000 of 240952, but the server sent "bytes 0-140951\/240952"/,
    ranges: [...rest, null],
  },
  {
    what: "a range off by one",
    before: piece(weights.slice(0, half)),
    hub: once(() =>
      part(
        weights.slice(half - 1, -1),
        `bytes ${half - 1}-${weights.length - 2}/${weights.length}`,
      )
    ),
    notice: /the server sent "bytes 99999-240950\/240952"/,
    ranges: [...rest, null],
  },
  {
    what: "the right label on the wrong range",
    before: piece(weights.slice(0, half)),
    hub: once(() =>
      part(
        weights.slice(0, weights.length - half),
        `bytes ${half}-${weights.length - 1}/${weights.length}`,
      )
    ),
    notice: new RegExp(SHA),
    ranges: [...rest, null],
  },
  {
    what: "a range of a file with another size",
    before: piece(weights.slice(0, half)),
    hub: once(() =>
      part(weights.slice(half), `bytes ${half}-${weights.length - 1}/999999`)
    ),
    notice: /the server sent "bytes 100000-240951\/999999"/,
    ranges: [...rest, null],
  },
  {
    what: "206 without Content-Range",
    before: piece(weights.slice(0, half)),
    hub: once(() => part(weights.slice(half))),
    notice: /the server sent ""/,
    ranges: [...rest, null],
  },
  {
    what: "multipart ranges",
    before: piece(weights.slice(0, half)),
    hub: once(() =>
      new Response("--x", {
        status: 206,
        headers: { "content-type": "multipart/byteranges; boundary=x" },
      })
    ),
    notice: /the server sent ""/,
    ranges: [...rest, null],
  },
  {
    what: "ranges shorter than asked for",
    before: piece(weights.slice(0, half)),
    hub: once(() =>
      part(
        weights.slice(half, half + 10),
        `bytes ${half}-${half + 9}/${weights.length}`,
      )
    ),
    ranges: [...rest, `bytes=${half + 10}-${weights.length - 1}`],
  },
  {
    what: "416 in answer to a range",
    before: piece(weights.slice(0, half)),
    hub: once(() => part(bytesOf(""), "bytes */5000", 416)),
    notice: /from byte 100000 of 240952, but the server answered 416/,
    ranges: [...rest, null],
  },
  {
    what: "206 though no range was asked for",
    hub: once(() =>
      part(weights.slice(5), `bytes 5-${weights.length - 1}/${weights.length}`)
    ),
    notice: /from byte 0 of 240952, but the server sent "bytes 5-/,
    ranges: [null, null],
  },
  {
    what: "204",
    hub: once(() => new Response(null, { status: 204 })),
    notice: /the server answered 204/,
    ranges: [null, null],
  },
  {
    what: "a page of HTML with status 200",
    hub: always(bytesOf("<html>log in</html>")),
    error:
      /has 19 bytes on the server, must have 240952 as listed; that was the second/,
    ranges: [null, null],
  },
  {
    what: "a pointer of Git LFS instead of the file",
    hub: always(
      bytesOf("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    ),
    error: /has 56 bytes on the server, must have 240952/,
  },
  {
    what: "more bytes than listed, without a length",
    hub: (_, { file }) =>
      file === WEIGHTS
        ? new Response(new Blob([weights.slice(), new Uint8Array(9)]).stream())
        : undefined,
    error: /is longer than the 240952 bytes that are listed/,
  },
  {
    what: "a connection that breaks once",
    hub: once((request) => brokenResponse(request, weights, half)),
    ranges: [null, ...rest],
  },
  {
    what: "a connection that always breaks at the same place",
    hub: (request, { file }) =>
      file === WEIGHTS ? brokenResponse(request, weights, 1000) : undefined,
    error:
      /model.safetensors stopped at 4000 of 240952 bytes: .*, tried 4 times$/,
    ranges: [null, 1000, 2000, 3000].map((at) =>
      at && `bytes=${at}-240951`
    ) as (string | null)[],
    piece: 4000,
  },
  {
    what: "another file after a break",
    hub: (request, { file, count }) =>
      file !== WEIGHTS || count > 2
        ? undefined
        : count === 1
        ? brokenResponse(request, other, half)
        : rangeResponse(request, weights, { etag: '"other"' }),
    notice: new RegExp(SHA),
    ranges: [null, ...rest, null],
  },
  {
    what: "a compressed answer",
    hub: (_, { file }) =>
      file === WEIGHTS
        ? new Response(
          new Blob([weights.slice()]).stream()
            .pipeThrough(new CompressionStream("gzip")),
          { headers: { "content-encoding": "gzip" } },
        )
        : undefined,
    error:
      /model.safetensors was sent in the encoding gzip, must be sent as it is/,
    piece: 0,
  },
  {
    what: "503 once",
    hub: once(() => new Response("", { status: 503 })),
    ranges: [null, null],
  },
  {
    what: "503 for good",
    hub: (_, { file }) =>
      file === WEIGHTS ? new Response("", { status: 503 }) : undefined,
    error:
      /model.safetensors stopped at 0 of 240952 bytes: the server returned 503 Service Unavailable, tried 4 times/,
    piece: 0,
  },
  {
    what: "404 for a file that is listed",
    hub: (_, { file }) =>
      file === WEIGHTS
        ? refused(404, { "x-error-code": "EntryNotFound" })()
        : undefined,
    error:
      /no such file: it answered 404 for \/Some\/Model\/resolve\/[0-9a-f]+\/model.safetensors/,
    piece: 0,
  },
  {
    what: "a redirect to a file of this machine",
    hub: (_, { file }) =>
      file === WEIGHTS
        ? new Response(null, {
          status: 302,
          headers: { location: "file:///etc/passwd" },
        })
        : undefined,
    error:
      /model.safetensors stopped at 0 of 240952 bytes: .*non HTTP\(s\) url/,
    piece: 0,
  },
  {
    what: "a redirect without a target",
    hub: (_, { file }) =>
      file === WEIGHTS ? new Response(null, { status: 307 }) : undefined,
    error: /it answered 307 for \/Some\/Model\/resolve/,
    piece: 0,
  },
  {
    what: "redirects in a circle",
    hub: (_, { file, url }) =>
      file === WEIGHTS
        ? new Response(null, { status: 302, headers: { location: url } })
        : undefined,
    error: /Maximum number of redirects/,
    piece: 0,
  },
  {
    what: "a relative redirect, as of a repository that was renamed",
    hub: (_, { path }) =>
      path.startsWith("/moved/")
        ? undefined
        : path.includes("/revision/")
        ? new Response(null, {
          status: 307,
          headers: { location: `/moved${path}` },
        })
        : undefined,
    error: /there is no such repository \(404; /, // the test server does not know the new name
  },
  {
    what: "401 without a code",
    hub: info(refused(401)),
    error:
      /there is no such repository \(401; check the spelling\), or a token is needed: set HF_TOKEN or run hf auth login$/,
  },
  {
    what: "403",
    hub: info(refused(403, {}, { error: "no" })),
    error:
      /there is no such repository \(403; check the spelling\), or a token is needed/,
  },
  {
    what: "a gated repository",
    hub: info(refused(403, { "x-error-code": "GatedRepo" })),
    error:
      /the repository is gated: its conditions must be accepted at http:\S+\/Some\/Model, and a token is needed: set HF_TOKEN/,
  },
  {
    what: "a revision that does not exist",
    hub: info(
      refused(404, { "x-error-code": "RevisionNotFound" }, {
        error: "Invalid rev id: main",
      }),
    ),
    error:
      /the repository has no such revision: it answered 404 \(Invalid rev id: main\)/,
  },
  {
    what: "a page of HTML for the repository",
    hub: info(() => new Response("<html>")),
    error: /the answer about its files is not what the Hub sends/,
  },
  {
    what: "no commit",
    hub: info(() => Response.json({ id: "x" })),
    error: /its commit is undefined, must be 40 hex digits/,
  },
  {
    what: "a commit that leaves the cache",
    hub: info(() => Response.json({ sha: "../../../x" })),
    error: /its commit is "\.\.\/\.\.\/\.\.\/x", must be 40/,
  },
  {
    what: "an object for the list",
    hub: list(() => Response.json({})),
    error: /the answer about its files is not what the Hub sends/,
  },
  {
    what: "half a list",
    hub: list(() => new Response('[{"type":"file"')),
    error: /the answer about its files is not what the Hub sends/,
  },
  {
    what: "an empty list",
    hub: list(() => Response.json([])),
    error: /there is no config.json, .* \(it has no files\)/,
  },
  {
    what: "a list of nulls",
    hub: list(() => Response.json([null])),
    error: /the answer about its files is not what the Hub sends/,
  },
  {
    what: "a list that never ends",
    hub: list((url) =>
      Response.json([], { headers: { link: `<${url}>; rel="next"` } })
    ),
    error: /its list of files has over 1000 pages/,
  },
  {
    what: "a list that breaks off",
    hub: (request, { path, count }) => {
      if (!path.includes("/tree/") || count > 0 || brokenLists++ > 0) return;
      return brokenResponse(request, new Uint8Array(1000), 10);
    },
    ranges: [null],
  },
  {
    what: "a list without an end",
    hub: list(() => {
      const chunk = new Uint8Array(1 << 20).fill(32);
      return new Response(
        new ReadableStream({
          pull: (controller) => controller.enqueue(chunk.slice()),
        }),
      );
    }),
    error: /its list of files has over 67108864 bytes/,
  },
  {
    what: "a listed size below zero",
    hub: listed({ size: -1, lfs: undefined }),
    error: /its list of files has .*"size":-1.*, must have a path, a size/,
  },
  {
    what: "a listed size that is text",
    hub: listed({ size: "9", lfs: undefined }),
    error: /"size":"9"/,
  },
  {
    what: "no hash in the list",
    hub: listed({ oid: undefined }),
    error: /must have a path, a size, a SHA-1 and, for large files, a SHA-256/,
  },
  {
    what: "a hash that leaves the cache",
    hub: listed({ lfs: { oid: "../x", size: 9 } }),
    error: /"oid":"\.\.\/x"/,
  },
  {
    what: "a listed size that is too small",
    hub: listed({ size: 9, lfs: { oid: BLOB, size: 9 } }),
    error: /has 240952 bytes on the server, must have 9 as listed/,
  },
  {
    what: "another listed SHA-256",
    hub: listed({ lfs: { oid: sha256(other), size: weights.length } }),
    error: new RegExp(`has the SHA-256 ${BLOB}, must have ${sha256(other)}`),
  },
  {
    what: "PyTorch files only",
    files: new Map([["config.json", config], ["pytorch_model.bin", weights]]),
    error:
      /there is no model.safetensors or model.safetensors.index.json, .*\(it has pytorch_model.bin, config.json\)|\(it has config.json, pytorch_model.bin\)/,
  },
  {
    what: "an index with a shard that is not listed",
    files: new Map([
      ["config.json", config],
      [
        "model.safetensors.index.json",
        bytesOf('{"weight_map":{"a":"x.safetensors"}}'),
      ],
    ]),
    error: /there is no x.safetensors/,
  },
  {
    what: "an index with a shard outside the snapshot",
    files: new Map([
      ["config.json", config],
      [
        "model.safetensors.index.json",
        bytesOf('{"weight_map":{"a":"../x.safetensors"}}'),
      ],
    ]),
    error: /"\.\.\/x.safetensors", must be/,
  },
  {
    what: "a truncated blob that another program left",
    before: async (cache) => {
      await fillCache(cache.entry, FILES);
      await Deno.truncate(`${cache.entry}/blobs/${BLOB}`, half);
    },
    notice:
      /model.safetensors has 100000 bytes, must have 240952: downloading it again/,
    ranges: [null],
  },
  {
    what: "a blob without its link, with wrong bytes",
    before: async (cache) => {
      await fillCache(cache.entry, FILES);
      await Deno.writeFile(`${cache.entry}/blobs/${BLOB}`, other);
      await Deno.remove(`${cache.snapshot}/${WEIGHTS}`);
    },
    notice: new RegExp(
      `blobs/${BLOB} has the SHA-256 ${
        sha256(other)
      }, ${SHA}: downloading it again`,
    ),
    ranges: [null],
  },
  {
    what: "a blob without its link, whole",
    before: async (cache) => {
      await fillCache(cache.entry, FILES);
      await Deno.remove(`${cache.snapshot}/${WEIGHTS}`);
    },
    ranges: [],
  },
  {
    what: "a link without its blob",
    before: async (cache) => {
      await fillCache(cache.entry, FILES);
      await Deno.remove(`${cache.entry}/blobs/${BLOB}`);
    },
    ranges: [null],
  },
  {
    what: "half a tokenizer.json",
    before: async (cache) => {
      await fillCache(cache.entry, FILES);
      await Deno.truncate(`${cache.entry}/blobs/${gitSha1(TOKENIZER)}`, 4);
    },
    notice: /tokenizer.json has 4 bytes, must have 7: downloading it again/,
    ranges: [],
  },
  {
    what: "weights whose header is cut off",
    before: async (cache) => {
      await fillCache(cache.entry, FILES);
      await Deno.truncate(`${cache.entry}/blobs/${BLOB}`, 5);
    },
    notice: /has 5 bytes, must have 240952/,
    ranges: [null],
  },
];

for (const mode of MODES) {
  Deno.test(`the Hub's cache survives: ${mode.what}`, async () => {
    await using cache = await emptyCache();
    let count = 0;
    const intercept: Intercept = (request, path, file) => {
      if (file === WEIGHTS) count++;
      return mode.hub?.(request, { path, file, count, url: request.url });
    };
    await using server = await serveHub(mode.files ?? FILES, intercept);
    await mode.before?.(cache);
    const notices: string[] = [];
    const open = () =>
      openCheckpoint("Some/Model", {
        onNotice: (notice) => notices.push(notice),
        sleep: () => Promise.resolve(),
      });
    if (mode.error === undefined) {
      await using checkpoint = await open();
      assertEquals(checkpoint.config.hiddenSize, 64);
      assertEquals(await namesIn(cache.snapshot), [...FILES.keys()].sort());
    } else {
      const { message } = await assertRejects(open, Error);
      assertMatch(message, mode.error);
      assertMatch(message, /^Cannot open Some\/Model: it /);
      assertStringIncludes(
        message,
        `cannot be downloaded from ${server.url}: `,
      );
      assert(message.length < 2000 && !message.includes("\n"), message);
    }
    if (mode.notice !== undefined) {
      assertMatch(notices.join("\n"), mode.notice);
    }
    await assertTrueToNames(cache, mode.files);
    if (mode.ranges !== undefined) {
      const asked = server.requests.filter(({ url }) => url.endsWith(WEIGHTS));
      assertEquals(
        asked.map(({ headers }) => headers.get("range")),
        mode.ranges,
      );
    }
    const left = await namesIn(`${cache.entry}/blobs`).catch(() => []);
    const pieces = left.filter((name) => name.endsWith(".incomplete"));
    if (mode.piece === undefined) assertEquals(pieces, []);
    else {
      assertEquals(pieces, [`${BLOB}.incomplete`]);
      const kept = await Deno.readFile(`${cache.entry}/blobs/${pieces[0]}`);
      assertEquals(kept.join(), weights.slice(0, mode.piece).join());
    }
    if (mode.error !== undefined) return;

    // It is repaired for good: there are no more requests.
    const before = server.requests.length;
    await using _again = await open();
    assertEquals(server.requests.length, before);
  });
}

/** The host of this machine with other files. */
function hostWith(files: Partial<Host["files"]>): Host {
  return { ...host, files: { ...host.files, ...files } };
}

Deno.test("a full disk leaves a piece that is resumed", async () => {
  await using cache = await emptyCache();
  await using server = await serveHub(FILES);
  const { append } = host.files;
  {
    // Takes some bytes of a chunk, then no more, as write(2) does.
    using _full = useHost(hostWith({
      async append(path) {
        const file = await append(path);
        const room = half;
        return {
          get size() {
            return file.size;
          },
          async append(bytes) {
            await file.append(bytes.subarray(0, room - file.size));
            if (file.size === room) {
              throw new Error("No space left on device (os error 28)");
            }
          },
          clear: () => file.clear(),
          flush: () => file.flush(),
          [Symbol.dispose]: () => file[Symbol.dispose](),
        };
      },
    }));
    const { message } = await assertRejects(
      () => openCheckpoint("Some/Model"),
      Error,
    );
    assertStringIncludes(
      message,
      `Cannot write ${cache.entry}/blobs/${BLOB}.incomplete: No space left on device (os error 28), at byte 100000 of 240952`,
    );
  }
  const asked = () =>
    server.requests.filter(({ url }) => url.endsWith(WEIGHTS))
      .map(({ headers }) => headers.get("range"));
  assertEquals(asked(), [null]);
  const piece = `${cache.entry}/blobs/${BLOB}.incomplete`;
  assertEquals((await Deno.stat(piece)).size, half);
  await using _checkpoint = await openCheckpoint("Some/Model");
  assertEquals(asked(), [null, ...rest]);
  await assertTrueToNames(cache);
});

Deno.test("a partial file that another program changes is not trusted", async () => {
  await using cache = await emptyCache();
  await using _server = await serveHub(FILES, (request, _, file) => {
    if (file !== WEIGHTS || request.headers.has("range")) return;
    return brokenResponse(request, weights, half);
  });
  const { append } = host.files;
  let spoilt = false;
  using _other = useHost(hostWith({
    async append(path) {
      const file = await append(path);
      return {
        get size() {
          return file.size;
        },
        async append(bytes) {
          await file.append(bytes);
          if (!spoilt && path.includes(BLOB)) {
            spoilt = true;
            await Deno.truncate(path, 10); // the rest becomes a hole
          }
        },
        clear: () => file.clear(),
        flush: () => file.flush(),
        [Symbol.dispose]: () => file[Symbol.dispose](),
      };
    },
  }));
  const notices: string[] = [];
  await using _checkpoint = await openCheckpoint("Some/Model", {
    onNotice: (notice) => notices.push(notice),
    sleep: () => Promise.resolve(),
  });
  assertMatch(notices.join("\n"), new RegExp(SHA));
  await assertTrueToNames(cache);
});

Deno.test("waiting for a lock is announced, and ends with the lock or the signal", async () => {
  await using cache = await emptyCache();
  await using _server = await serveHub(FILES);
  const folder = `${cache.path}/.locks/models--Some--Model`;
  await Deno.mkdir(folder, { recursive: true });
  const path = `${folder}/${BLOB}.lock`;
  const file = await Deno.open(path, { write: true, create: true });
  await file.lock(true);
  const open = (signal?: AbortSignal) => {
    const { promise, resolve } = Promise.withResolvers<string>();
    const opened = openCheckpoint("Some/Model", { signal, onNotice: resolve });
    opened.catch(() => {});
    return { opened, notice: promise };
  };
  const controller = new AbortController();
  const first = open(controller.signal);
  const expected =
    `Waiting for another download of model.safetensors, which holds ${path}.`;
  assertEquals(await first.notice, expected);
  controller.abort(new Error("enough"));
  await assertRejects(() => first.opened, Error, "enough");

  const second = open();
  assertEquals(await second.notice, expected);
  file.close();
  await using _checkpoint = await second.opened;
  await assertTrueToNames(cache);
});

Deno.test("a file system without locks is used without, and says so", async () => {
  await using cache = await emptyCache();
  await using _server = await serveHub(FILES);
  using _other = useHost(hostWith({
    openLock: () =>
      Promise.resolve({
        tryLock: () => Promise.reject(new Error("Function not implemented")),
        [Symbol.dispose]: () => {},
      }),
  }));
  const notices: string[] = [];
  await using _checkpoint = await openCheckpoint("Some/Model", {
    onNotice: (notice) => notices.push(notice),
  });
  assertMatch(
    notices[0],
    /\.lock cannot be locked \(Function not implemented\): config.json is downloaded without a lock\.$/,
  );
  await assertTrueToNames(cache);
});

Deno.test("without links, the files of a snapshot are still complete", async () => {
  await using cache = await emptyCache();
  await using server = await serveHub(FILES);
  using _other = useHost(hostWith({
    link: () => Promise.reject(new Error("A required privilege is not held")),
  }));
  {
    await using _first = await openCheckpoint("Some/Model");
    assertEquals(await namesIn(`${cache.entry}/blobs`), []);
  }
  const before = server.requests.length;
  await using _again = await openCheckpoint("Some/Model");
  assertEquals(server.requests.length, before);
  await assertTrueToNames(cache);
  // A blob that was there before may have other links, so it stays.
  await Deno.remove(`${cache.snapshot}/${WEIGHTS}`);
  await Deno.writeFile(`${cache.entry}/blobs/${BLOB}`, weights);
  await using _third = await openCheckpoint("Some/Model");
  assertEquals(await namesIn(`${cache.entry}/blobs`), [BLOB]);
  assertEquals((await Deno.lstat(`${cache.snapshot}/${WEIGHTS}`)).isFile, true);
  await assertTrueToNames(cache);
});

Deno.test("a commit that is in the cache is completed, not the branch's newest", async () => {
  await using cache = await emptyCache();
  await using server = await serveHub(FILES);
  const files = new Map(FILES);
  files.delete("tokenizer.json");
  await fillCache(cache.entry, files);
  await using checkpoint = await openCheckpoint("Some/Model");
  assertEquals(await checkpoint.text("tokenizer.json"), '{"a":1}');
  const paths = server.requests.map(({ url }) => new URL(url).pathname);
  assertEquals(paths, [
    `/api/models/Some/Model/tree/${COMMIT}`,
    `/Some/Model/resolve/${COMMIT}/tokenizer.json`,
  ]);
});
