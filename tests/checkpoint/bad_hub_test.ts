/**
 * A Hub whose connections misbehave, and the cache afterwards. hub_download_test.ts has
 * answers that are wrong but arrive.
 *
 * @module
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import {
  bytesOf,
  chunked,
  head,
  rangeOf,
  raw,
  type RawAnswer,
  type RawServer,
  reply,
  serveRaw,
  serveWell,
} from "../support/bad_server.ts";
import {
  blobName,
  COMMIT,
  emptyCache,
  fixtureFiles,
  listedFile,
  namesIn,
} from "../support/serve_hub.ts";
import { slowTest } from "../support/quick.ts";

const FILES: ReadonlyMap<string, Uint8Array> = new Map([
  ...await fixtureFiles("tiny-tied-bf16"),
  ["tokenizer.json", bytesOf('{"a":1}')],
].filter(([name]) => !`${name}`.startsWith("golden")) as [
  string,
  Uint8Array,
][]);
const WEIGHTS = "model.safetensors";
const weights = FILES.get(WEIGHTS)!, SIZE = weights.length;
const config = FILES.get("config.json")!;
const BLOB = blobName(WEIGHTS, weights);

const INFO = JSON.stringify({ _id: "1", id: "Some/Model", sha: COMMIT });
const LIST = JSON.stringify(
  [...FILES].map(([name, bytes]) => listedFile(name, bytes)),
);

/** Seconds of silence until a request is given up. */
const SILENCE = 1;
const DEADLINE_MS = 30_000;

/** How the connections of one file or question misbehave. */
interface Mode {
  /** A file, or `info` or `list`. */
  of: string;
  /** Answers to its first requests, or to all. */
  answers?: RawAnswer[];
  always?: RawAnswer;
  /** What follows "cannot be downloaded from URL: "; undefined if the model opens. */
  error?: string;
  pauses?: number[];
  notices?: string[];
  /** Ranges of the requests for the file. */
  ranges?: (string | null)[];
  /** Bytes of the weights that are kept to be resumed. */
  piece?: number;
}

const THRICE = [200, 600, 1800];
const length = (bytes: Uint8Array | string) =>
  head("200 OK", `Content-Length: ${bytesOf(bytes).length}`);
/** The weights from what the request asks for, `count` bytes of them, and an end. */
const broken =
  (count: number, end: "close" | "hang" | "reset"): RawAnswer =>
  (request, connection) => {
    const { begin } = rangeOf(request) ?? { begin: 0 };
    const range = begin === 0
      ? []
      : [`Content-Range: bytes ${begin}-${SIZE - 1}/${SIZE}`];
    return raw([
      head(
        begin === 0 ? "200 OK" : "206 Partial Content",
        `Content-Length: ${SIZE - begin}`,
        ...range,
      ),
      weights.subarray(begin, begin + count),
    ], end)(request, connection);
  };
const silent = (what: string, kind: string) =>
  `${what}: no ${kind} for 1 s; trying again in 0.2 s.`;

const MODES: Record<string, Mode> = {
  "nothing wrong": { of: WEIGHTS, ranges: [null] },
  "no answer about the commit": {
    of: "info",
    answers: [raw([]), raw([], "reset")],
    pauses: [200, 600],
  },
  "silence about the commit": {
    of: "info",
    answers: [raw([], "hang")],
    pauses: [200],
    notices: [silent("URL/api/models/Some/Model/revision/main?…", "response")],
  },
  "half an answer about the commit": {
    of: "info",
    answers: [raw([length(INFO), INFO.slice(0, 20)])],
    pauses: [200],
  },
  "429 for the commit": {
    of: "info",
    answers: [reply("429 Too Many Requests", ["Retry-After: 60"])],
    pauses: [60_000],
    notices: [
      "URL/api/models/Some/Model/revision/main?…: the server returned 429 Too Many Requests; trying again in 60 s.",
    ],
  },
  "429 with a day of Retry-After": {
    of: "info",
    always: reply("429 Too Many Requests", ["Retry-After: 86400"]),
    error:
      "the server returned 429 Too Many Requests, asking to wait 86,400 s, which must be at most 300 s",
  },
  "half a list": {
    of: "list",
    answers: [
      raw([
        head("200 OK", "Transfer-Encoding: chunked"),
        ...chunked(LIST, { size: 100, broken: true }),
      ]),
    ],
    pauses: [200],
  },
  "silence in the list": {
    of: "list",
    answers: [raw([length(LIST), LIST.slice(0, 50)], "hang")],
    pauses: [200],
    notices: [silent("URL", "data")],
  },
  "half a list for good": {
    of: "list",
    always: raw([length(LIST), LIST.slice(0, 50)], "reset"),
    error: "the connection broke, tried 4 times",
    pauses: THRICE,
  },
  "half of config.json": {
    of: "config.json",
    answers: [raw([length(config), config.subarray(0, 99)])],
    pauses: [200],
    ranges: [null, `bytes=99-${config.length - 1}`],
  },
  "resets in the weights": {
    of: WEIGHTS,
    answers: [broken(1000, "reset"), broken(500, "close")],
    pauses: [200, 600],
    ranges: [
      null,
      `bytes=1000-${SIZE - 1}`,
      `bytes=1500-${SIZE - 1}`,
    ],
  },
  "resets while bytes arrive": {
    of: WEIGHTS,
    always: broken(70_000, "reset"),
    pauses: [200, 200, 200],
    ranges: [
      null,
      `bytes=70000-${SIZE - 1}`,
      `bytes=140000-${SIZE - 1}`,
      `bytes=210000-${SIZE - 1}`,
    ],
  },
  "no answer for the weights, for good": {
    of: WEIGHTS,
    always: raw([]),
    error:
      `${WEIGHTS} stopped at 0 of ${SIZE} bytes: connection closed before message completed, tried 4 times`,
    pauses: THRICE,
  },
  "resets without progress": {
    of: WEIGHTS,
    always: broken(10, "reset"),
    error:
      `${WEIGHTS} stopped at 40 of ${SIZE} bytes: the connection broke, tried 4 times`,
    pauses: THRICE,
    piece: 40,
  },
  "silence in the weights": {
    of: WEIGHTS,
    answers: [broken(1000, "hang")],
    pauses: [200],
    notices: [silent(WEIGHTS, "data")],
    ranges: [null, `bytes=1000-${SIZE - 1}`],
  },
  "silence before the weights, for good": {
    of: WEIGHTS,
    always: raw([], "hang"),
    error:
      `${WEIGHTS} stopped at 0 of ${SIZE} bytes: no response for 1 s, tried 4 times`,
    pauses: THRICE,
    notices: [0.2, 0.6, 1.8].map((s) =>
      `URL/Some/Model/resolve/${COMMIT}/${WEIGHTS}: no response for 1 s; trying again in ${s} s.`
    ),
  },
  "weights in chunks that end early": {
    of: WEIGHTS,
    answers: [
      raw([
        head("200 OK", "Transfer-Encoding: chunked"),
        ...chunked(weights.subarray(0, 5000), { broken: true }),
      ]),
    ],
    pauses: [200],
    ranges: [null, `bytes=5000-${SIZE - 1}`],
  },
  "weights without a length, closed early": {
    of: WEIGHTS,
    answers: [raw([head("200 OK"), weights.subarray(0, 5000)])],
    pauses: [200],
    ranges: [null, `bytes=5000-${SIZE - 1}`],
  },
  "trailing garbage": {
    of: WEIGHTS,
    always: raw([length(weights), weights, "garbage"]),
  },
  "503 for the weights": {
    of: WEIGHTS,
    answers: [reply("503 Service Unavailable", ["Retry-After: 10"])],
    pauses: [10_000],
    notices: [
      `URL/Some/Model/resolve/${COMMIT}/${WEIGHTS}: the server returned 503 Service Unavailable; trying again in 10 s.`,
    ],
  },
  "no HTTP": {
    of: WEIGHTS,
    answers: [raw(["+OK POP3 ready\r\n"])],
    pauses: [200],
  },
};

/** Serves the repository the way a mode says, or well without one. */
async function serveRepository(mode?: Mode): Promise<RawServer> {
  const first = [...mode?.answers ?? []];
  const server = await serveRaw((request, connection) => {
    const { pathname } = new URL(request.target, "http://server");
    const file = pathname.replace(`/Some/Model/resolve/${COMMIT}/`, "");
    const what = pathname.endsWith("/revision/main")
      ? "info"
      : pathname.endsWith(`/tree/${COMMIT}`)
      ? "list"
      : file;
    const json = ["Content-Type: application/json"];
    const good = what === "info"
      ? reply("200 OK", json, INFO)
      : what === "list"
      ? reply("200 OK", json, LIST)
      : serveWell(FILES.get(file), ['ETag: "one"']);
    const bad = what === mode?.of ? first.shift() ?? mode.always : undefined;
    return (bad ?? good)(request, connection);
  });
  Deno.env.set("HF_ENDPOINT", server.url);
  return server;
}

/** The snapshot has every file, byte for byte, and the cache nothing else. */
async function assertComplete(cache: Awaited<ReturnType<typeof emptyCache>>) {
  assertEquals(await namesIn(cache.snapshot), [...FILES.keys()].sort());
  for (const [name, bytes] of FILES) {
    const kept = await Deno.readFile(`${cache.snapshot}/${name}`);
    assertEquals(kept.join(), bytes.join(), name);
  }
  assertEquals(
    await namesIn(`${cache.entry}/blobs`),
    [...FILES].map(([name, bytes]) => blobName(name, bytes)).sort(),
  );
}

async function assertMode(mode: Mode) {
  await using cache = await emptyCache();
  const pauses: number[] = [], notices: string[] = [];
  const deadline = new AbortController();
  const timer = setTimeout(() => deadline.abort(), DEADLINE_MS);
  const isSilent = mode.notices?.some((notice) =>
    /no (response|data) for/.test(notice)
  );
  const open = async () => {
    await using checkpoint = await openCheckpoint("Some/Model", {
      signal: deadline.signal,
      readTimeout: isSilent ? SILENCE : undefined,
      sleep: (ms) => Promise.resolve(void pauses.push(ms)),
      onNotice: (notice) => notices.push(notice),
    });
    assertEquals(checkpoint.config.hiddenSize, 64);
  };
  try {
    await using server = await serveRepository(mode);
    const shown = (text: string) => text.replaceAll(server.url, "URL");
    if (mode.error === undefined) await open();
    else {
      const { message } = await assertRejects(open, Error);
      const [before, why] = shown(message).split("downloaded from URL: ");
      assert(before.startsWith("Cannot open Some/Model: "), message);
      assertEquals(why, mode.error);
    }
    assertEquals(pauses, mode.pauses ?? []);
    assertEquals(notices.map(shown), mode.notices ?? []);
    if (mode.ranges !== undefined) {
      const asked = server.requests.filter(({ target }) =>
        target.endsWith(`/${mode.of}`)
      );
      assertEquals(
        asked.map(({ headers }) => headers.get("range")),
        mode.ranges,
      );
    }
    for (let waited = 0; server.open > 0; waited += 10) {
      assert(waited < DEADLINE_MS, `${server.open} connections are open`);
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  } finally {
    clearTimeout(timer);
  }
  if (mode.error === undefined) return await assertComplete(cache);

  // Nothing looks complete, and the next download continues from what is there.
  const blobs = await namesIn(`${cache.entry}/blobs`).catch((): string[] => []);
  assert(!blobs.includes(BLOB));
  const pieces = blobs.filter((name) => name.endsWith(".incomplete"));
  for (const piece of pieces) {
    const kept = await Deno.readFile(`${cache.entry}/blobs/${piece}`);
    assertEquals(kept.join(), weights.subarray(0, mode.piece ?? 0).join());
  }
  await using server = await serveRepository();
  await open();
  await assertComplete(cache);
  const asked = server.requests.find(({ target }) => target.endsWith(WEIGHTS));
  assertEquals(
    asked?.headers.get("range"),
    mode.piece ? `bytes=${mode.piece}-${SIZE - 1}` : null,
  );
}

for (const [name, mode] of Object.entries(MODES)) {
  slowTest(`the Hub, ${name}`, () => assertMode(mode));
}
