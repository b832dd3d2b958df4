/**
 * Web folders on misbehaving servers. Each mode says how a server departs from a good
 * one, and the expected outcome: the checkpoint with the right bytes, or one line of
 * error; the pauses and notices; and no file left behind. No pause takes time, so a test
 * takes long only when something hangs.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import type { Checkpoint } from "../../lib/checkpoint/checkpoint.ts";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import {
  bytesOf,
  chunked,
  head,
  rangeOf,
  raw,
  type RawAnswer,
  type RawRequest,
  reply,
  serveRaw,
  serveWell,
} from "../support/bad_server.ts";
import { readFolder } from "../support/serve_folder.ts";
import { slowTest } from "../support/quick.ts";
import { emptyWebCache } from "../support/web_cache.ts";

const TINY = new URL("../fixtures/tiny-tied-bf16/", import.meta.url);
const SHARDED = new URL("../fixtures/tiny-sharded-f16/", import.meta.url);
const WEIGHTS = "model.safetensors";
const TOKENIZER = '{"added_tokens": []}';

const tiny = await readFolder(TINY), sharded = await readFolder(SHARDED);
for (const files of [tiny, sharded]) {
  files.set("/tokenizer.json", bytesOf(TOKENIZER));
}
const weights = tiny.get(`/${WEIGHTS}`)!;
const config = tiny.get("/config.json")!;
const half = weights.subarray(0, weights.length / 2);

/** Seconds of silence until a request is given up. Good answers take milliseconds. */
const SILENCE = 1;
/** Only a hang takes as long. */
const DEADLINE_MS = 30_000;

/** What every model says when it is loaded; web_folder_test.ts checks it. */
const KEPT =
  /^URL\/(\?…)?: (kept in \S+ for the next run |nothing is kept for the next run: )/;

/** One way to misbehave, and the expected outcome. */
interface Mode {
  /** The file that it concerns; the others are served well. */
  file: string;
  /** Which of its requests: the first byte, later ranges, whole files, or any. */
  of?: "probe" | "read" | "whole";
  /** Answers to the first of these requests, or with `always` to each; then a good one. */
  answers?: Answer[];
  always?: Answer;
  /** How good answers name the file's version. */
  tags?: string[];
  files?: Map<string, Uint8Array>;
  /** Added to the folder's URL. */
  query?: string;
  user?: string;
  /** The whole error, with `URL` for the folder's; undefined if the model opens. */
  error?: string;
  /** Pauses in milliseconds; none by default. */
  pauses?: number[];
  /** Notices, with `URL` for the folder's. */
  notices?: string[];
  /** How often the file is asked for, if that matters. */
  requests?: number;
  /** Checks the requests for the file. */
  check?: (requests: RawRequest[]) => void;
}

/** An answer that may depend on what a good one would be. */
type Answer = (
  good: RawAnswer,
  range: { begin: number; end: number },
) => RawAnswer;

const plain = (answer: RawAnswer): Answer => () => answer;
const THRICE = [200, 600, 1800];
const whole = (...lines: string[]) =>
  head("200 OK", `Content-Length: ${config.length}`, ...lines);
const page =
  "<!DOCTYPE html>\n<html><head><title>Please sign in</title></head>";
const gzip = async (bytes: Uint8Array) =>
  new Uint8Array(
    await new Response(
      new Blob([Uint8Array.from(bytes)]).stream()
        .pipeThrough(new CompressionStream("gzip")),
    ).arrayBuffer(),
  );
const packedConfig = await gzip(config), packedWeights = await gzip(weights);
const slowly =
  (text: string, letters: number): RawAnswer => async (_, conn) => {
    for (let at = 0; at < text.length && !conn.gone; at += letters) {
      await conn.write(text.slice(at, at + letters));
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  };
const configText = new TextDecoder().decode(config);
const cannot = (why: string, file = "config.json") =>
  `Cannot read URL/${file}: ${why}`;
const copied = (why: string) => [
  `URL/: the server does not send byte ranges (${why}), so weights are copied to temporary files.`,
];
const WHOLE = copied("it answered with the whole file");

/** A good answer with other header lines; null removes one. */
function edited(change: (head: string) => string): Answer {
  return (good) => async (request, connection) => {
    await good(request, {
      ...connection,
      get gone() {
        return connection.gone;
      },
      write: (data) =>
        connection.write(
          typeof data === "string" && data.startsWith("HTTP/")
            ? change(data)
            : data,
        ),
    });
  };
}

/** An answer 206 with these header lines and bytes. */
const partial = (lines: string[], body: Uint8Array | string): RawAnswer =>
  reply("206 Partial Content", lines, body);
const contentRange = (begin: number, end: number, size: number | string) =>
  `Content-Range: bytes ${begin}-${end}/${size}`;
const SIZE = weights.length;

/** Text files: config.json for all of them. */
const TEXT_MODES: Record<string, Omit<Mode, "file">> = {
  "nothing wrong": { requests: 1 },
  "no length, closed at the end": {
    always: plain(raw([head("200 OK"), config])),
  },
  "HTTP/1.0": {
    always: plain(raw(["HTTP/1.0 200 OK\r\n\r\n", config])),
  },
  "chunks": {
    always: plain(
      raw([head("200 OK", "Transfer-Encoding: chunked"), ...chunked(config)]),
    ),
  },
  "a byte order mark": {
    always: plain(reply("200 OK", [], `\ufeff${configText}`)),
  },
  "early hints first": {
    always: plain(raw(["HTTP/1.1 103 Early Hints\r\n\r\n", whole(), config])),
  },
  "503 twice": {
    answers: [
      plain(reply("503 Service Unavailable")),
      plain(reply("503 Service Unavailable")),
    ],
    pauses: [200, 600],
    requests: 3,
  },
  "503 for good": {
    always: plain(reply("503 Service Unavailable", [], page)),
    error: cannot(
      "the server returned 503 Service Unavailable, tried 4 times",
    ),
    pauses: THRICE,
    requests: 4,
  },
  "429 with Retry-After": {
    answers: [plain(reply("429 Too Many Requests", ["Retry-After: 7"]))],
    pauses: [7000],
    notices: [
      "URL/config.json: the server returned 429 Too Many Requests; trying again in 7 s.",
    ],
  },
  "429 with an hour of Retry-After": {
    always: plain(reply("429 Too Many Requests", ["Retry-After: 3600"])),
    error: cannot(
      "the server returned 429 Too Many Requests, asking to wait 3,600 s, which must be at most 300 s",
    ),
    requests: 1,
  },
  "401": {
    always: plain(reply("401 Unauthorized")),
    error: cannot("the server returned 401 Unauthorized"),
    requests: 1,
  },
  "403": {
    always: plain(reply("403 Forbidden")),
    error: cannot("the server returned 403 Forbidden"),
    requests: 1,
  },
  "410": {
    always: plain(reply("410 Gone")),
    error:
      "Cannot open URL: there is no URL/config.json; of a GGUF file pass the URL",
    requests: 1,
  },
  "304 to no condition": {
    always: plain(reply("304 Not Modified")),
    error: cannot("the server returned 304 Not Modified"),
    requests: 1,
  },
  "302 to nowhere": {
    always: plain(reply("302 Found")),
    error: cannot("the server returned 302 Found"),
    requests: 1,
  },
  "302 in circles": {
    always: plain(reply("302 Found", ["Location: config.json"])),
    error: cannot("Fetch failed: Maximum number of redirects (20) reached"),
    requests: 21,
  },
  "302 to another file": {
    answers: [plain(reply("302 Found", ["Location: /config.json?again"]))],
    requests: 2,
  },
  "204": {
    always: plain(reply("204 No Content")),
    error: cannot("the server returned 204 No Content"),
  },
  "a part that was not asked for": {
    always: plain(partial(["Content-Range: bytes 0-9/10"], "{}")),
    error: cannot("the server returned 206 Partial Content"),
  },
  "nothing": {
    always: plain(reply("200 OK")),
    error: cannot("it is not valid JSON (Unexpected end of JSON input)"),
  },
  "closed without an answer": {
    answers: [plain(raw([])), plain(raw([]))],
    pauses: [200, 600],
  },
  "reset without an answer": {
    answers: [plain(raw([], "reset"))],
    pauses: [200],
  },
  "reset in the head": {
    answers: [plain(raw(["HTTP/1.1 200 OK\r\nContent-Le"], "reset"))],
    pauses: [200],
  },
  "reset in the body": {
    answers: [
      plain(raw([whole(), config.subarray(0, 1)], "reset")),
      plain(raw([whole(), config.subarray(0, 300)], "reset")),
    ],
    pauses: [200, 600],
    requests: 3,
  },
  "reset in every body": {
    always: plain(raw([whole(), config.subarray(0, 300)], "reset")),
    error: cannot("the connection broke, tried 4 times"),
    pauses: THRICE,
    requests: 4,
  },
  "a body shorter than its length": {
    answers: [plain(raw([whole(), config.subarray(0, -1)]))],
    pauses: [200],
  },
  "a body longer than its length": {
    always: plain(raw([whole(), config, "trailing garbage"])),
  },
  "chunks that end early": {
    answers: [
      plain(
        raw([
          head("200 OK", "Transfer-Encoding: chunked"),
          ...chunked(config, { broken: true }),
        ]),
      ),
    ],
    pauses: [200],
  },
  "chunks with a wrong size": {
    answers: [
      plain(
        raw([head("200 OK", "Transfer-Encoding: chunked"), "zz\r\n", config]),
      ),
    ],
    pauses: [200],
  },
  "silence before the answer": {
    answers: [plain(raw([], "hang"))],
    pauses: [200],
    notices: [
      "URL/config.json: no response for 1 s; trying again in 0.2 s.",
    ],
  },
  "silence in the head": {
    answers: [plain(raw(["HTTP/1.1 200 OK\r\n"], "hang"))],
    pauses: [200],
    notices: [
      "URL/config.json: no response for 1 s; trying again in 0.2 s.",
    ],
  },
  "silence in the body": {
    answers: [plain(raw([whole(), config.subarray(0, 99)], "hang"))],
    pauses: [200],
    notices: ["URL/config.json: no data for 1 s; trying again in 0.2 s."],
  },
  "silence for good": {
    always: plain(raw([whole(), config.subarray(0, 99)], "hang")),
    error: cannot("no data for 1 s, tried 4 times"),
    pauses: THRICE,
    notices: [0.2, 0.6, 1.8].map((s) =>
      `URL/config.json: no data for 1 s; trying again in ${s} s.`
    ),
  },
  "a head that never ends": {
    answers: [
      plain(slowly(`HTTP/1.1 200 OK\r\n${"X: y\r\n".repeat(500)}`, 6)),
    ],
    pauses: [200],
    notices: [
      "URL/config.json: no response for 1 s; trying again in 0.2 s.",
    ],
  },
  "a body that takes longer than the timeout, steadily": {
    always: plain(slowly(whole() + configText, 8)),
    requests: 1,
  },
  "a web page": {
    always: plain(reply("200 OK", ["Content-Type: text/html"], page)),
    error: cannot(
      'it is an HTML page titled "Please sign in", must be the file itself',
    ),
  },
  "text that is no JSON": {
    always: plain(reply("200 OK", [], "Please\nsign in")),
    error: cannot(
      `it is not valid JSON (Unexpected token 'P', "Please sign in" is not valid JSON)`,
    ),
  },
  "gzip that was not asked for": {
    always: plain(reply("200 OK", ["Content-Encoding: gzip"], packedConfig)),
  },
  "gzip that is cut off": {
    always: plain(
      reply(
        "200 OK",
        ["Content-Encoding: gzip"],
        packedConfig.subarray(0, -12),
      ),
    ),
    error: cannot("corrupt gzip stream does not have a matching checksum"),
  },
  "gzip whose connection breaks": {
    answers: [
      plain(
        raw([
          whole("Content-Encoding: gzip"),
          packedConfig.subarray(0, -12),
        ], "reset"),
      ),
    ],
    pauses: [200],
  },
  "gzip in name only": {
    always: plain(reply("200 OK", ["Content-Encoding: gzip"], config)),
  },
  "an encoding that was not asked for": {
    always: plain(
      reply("200 OK", ["Content-Encoding: br"], Uint8Array.of(0x1b, 0xff)),
    ),
    error: cannot(
      "the server sent it with Content-Encoding br, must send it unencoded",
    ),
  },
  "no HTTP": {
    always: plain(raw(["SSH-2.0-OpenSSH_9.2\r\n"])),
    error: cannot("invalid HTTP version parsed, tried 4 times"),
    pauses: THRICE,
  },
  "a head without bounds": {
    always: plain(raw([head("200 OK", `X: ${"x".repeat(1 << 20)}`), config])),
    error: cannot("message head is too large, tried 4 times"),
    pauses: THRICE,
  },
  "two lengths": {
    always: plain(raw([whole("Content-Length: 3"), config])),
    error: cannot("invalid content-length parsed, tried 4 times"),
    pauses: THRICE,
  },
  "a length below zero": {
    always: plain(raw([head("200 OK", "Content-Length: -5"), config])),
    error: cannot("invalid content-length parsed, tried 4 times"),
    pauses: THRICE,
  },
  "a body without end": {
    always: plain(async (_, connection) => {
      await connection.write(head("200 OK"));
      const spaces = new Uint8Array(1 << 20).fill(32);
      while (!connection.gone) await connection.write(spaces);
    }),
    error: cannot(
      "it has over 268435456 bytes, at most 268435456 are allowed",
    ),
    requests: 1,
  },
  "files only with the folder's signature": {
    query: "?X-Amz-Signature=secret&expires=1",
    always: (good) => (request, connection) =>
      (request.target.endsWith("?X-Amz-Signature=secret&expires=1")
        ? good
        : reply("403 Forbidden"))(request, connection),
  },
  "a signature that has expired": {
    query: "?X-Amz-Signature=secret",
    always: plain(reply("403 Forbidden", [], "secret")),
    error: "Cannot read URL/config.json?…: the server returned 403 Forbidden",
  },
  "files only with the folder's password": {
    user: "me:secret@",
    always: (good) => (request, connection) =>
      (request.headers.get("authorization") === `Basic ${btoa("me:secret")}`
        ? good
        : reply("401 Unauthorized"))(request, connection),
  },
  "a wrong password": {
    user: "me:secret@",
    always: plain(reply("401 Unauthorized")),
    error: cannot("the server returned 401 Unauthorized"),
  },
  "a password and a broken connection": {
    user: "me:secret@",
    query: "?token=secret",
    always: plain(raw([])),
    error:
      "Cannot read URL/config.json?…: connection closed before message completed, tried 4 times",
    pauses: THRICE,
  },
};

/** Those before a copy is fetched. */
const rangesOf = (requests: RawRequest[]) =>
  requests.filter(({ headers }) => headers.has("range"));

/** Weights, which are read by range. */
const RANGE_MODES: Record<string, Omit<Mode, "file">> = {
  "a strong ETag": {
    tags: ['ETag: "one"', "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT"],
    check: (requests) => {
      for (const { headers } of rangesOf(requests).slice(1)) {
        assertEquals(headers.get("if-range"), '"one"');
      }
    },
  },
  "a weak ETag": {
    tags: ['ETag: W/"one"', "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT"],
    check: (requests) => {
      for (const { headers } of rangesOf(requests).slice(1)) {
        assertEquals(
          headers.get("if-range"),
          "Sun, 06 Nov 1994 08:49:37 GMT",
        );
      }
    },
  },
  "only a weak ETag": {
    tags: ['ETag: W/"one"'],
    check: (requests) => {
      for (const { headers } of requests) assert(!headers.has("if-range"));
    },
  },
  "only Last-Modified": {
    tags: ["Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT"],
    check: (requests) => {
      assertEquals(
        rangesOf(requests).at(-1)!.headers.get("if-range"),
        "Sun, 06 Nov 1994 08:49:37 GMT",
      );
    },
  },
  "an ETag that becomes weak": {
    tags: ['ETag: W/"one"'],
    of: "read",
    always: edited((head) => head.replace("W/", "")),
  },
  "another file, ranges with another ETag": {
    tags: ['ETag: "one"'],
    of: "read",
    always: edited((head) => head.replace('"one"', '"two"')),
    error: cannot(
      'it changed while it was read: its ETag was "one" and is "two"',
      WEIGHTS,
    ),
    requests: 2,
  },
  "another file, sent whole because of If-Range": {
    tags: ['ETag: "one"'],
    of: "read",
    always: plain(reply("200 OK", ['ETag: "two"'], half)),
    error: cannot(
      `it changed while it was read: its size was ${SIZE} bytes and is ${half.length}, its ETag was "one" and is "two"`,
      WEIGHTS,
    ),
    requests: 2,
  },
  "another file, a weak ETag": {
    tags: ['ETag: W/"one"'],
    of: "read",
    always: edited((head) => head.replace('"one"', '"two"')),
    error: cannot(
      'it changed while it was read: its ETag was W/"one" and is W/"two"',
      WEIGHTS,
    ),
  },
  "another file, Last-Modified": {
    tags: ["Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT"],
    of: "read",
    always: edited((head) => head.replace("08:49", "08:50")),
    error: cannot(
      "it changed while it was read: its Last-Modified was Sun, 06 Nov 1994 08:49:37 GMT and is Sun, 06 Nov 1994 08:50:37 GMT",
      WEIGHTS,
    ),
  },
  "another file, another size": {
    of: "read",
    always: edited((head) => head.replace(`/${SIZE}`, `/${SIZE + 1}`)),
    error: cannot(
      `it changed while it was read: its size was ${SIZE} bytes and is ${
        SIZE + 1
      }`,
      WEIGHTS,
    ),
  },
  "a file that shrank below the range": {
    of: "read",
    always: plain(
      reply("416 Range Not Satisfiable", ["Content-Range: bytes */7"]),
    ),
    error: cannot(
      `it changed while it was read: its size was ${SIZE} bytes and is 7`,
      WEIGHTS,
    ),
  },
  "copies of one file with times of their own": {
    tags: ['ETag: "one"', "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT"],
    of: "read",
    always: edited((head) => head.replace("08:49", "08:50")),
  },
  "If-Range with a date that is never met": {
    tags: ["Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT"],
    of: "read",
    always: (good) => (request, connection) =>
      (request.headers.has("if-range") ? reply("200 OK", [], weights) : good)(
        request,
        connection,
      ),
    pauses: [200],
  },
  "the whole file for a range, once": {
    of: "read",
    answers: [plain(reply("200 OK", [], weights))],
    pauses: [200],
  },
  "the whole file for every range but the first": {
    of: "read",
    always: plain(reply("200 OK", [], weights)),
    error: cannot(
      "asked for bytes 0-7, the server sent the whole file, tried 4 times",
      WEIGHTS,
    ),
    pauses: THRICE,
  },
  "ranges of another place": {
    of: "read",
    always: plain(partial([contentRange(1, 7, SIZE)], half.subarray(1, 8))),
    error: cannot(
      `asked for bytes 0-7, the server sent bytes 1-7/${SIZE}`,
      WEIGHTS,
    ),
  },
  "ranges that are longer": {
    of: "read",
    always: plain(partial([contentRange(0, 8, SIZE)], half.subarray(0, 9))),
    error: cannot(
      `asked for bytes 0-7, the server sent bytes 0-8/${SIZE}`,
      WEIGHTS,
    ),
  },
  "ranges without a name": {
    of: "read",
    always: plain(partial([], half.subarray(0, 8))),
    error: cannot(
      "asked for bytes 0-7, the server sent 206 without Content-Range",
      WEIGHTS,
    ),
  },
  "several ranges": {
    of: "read",
    always: plain(
      partial(["Content-Type: multipart/byteranges; boundary=x"], "--x"),
    ),
    error: cannot(
      "asked for bytes 0-7, the server sent multipart/byteranges; boundary=x",
      WEIGHTS,
    ),
  },
  "ranges of something compressed": {
    of: "read",
    always: edited((head) =>
      head.replace("Connection", "Content-Encoding: gzip\r\nConnection")
    ),
    error: cannot(
      `asked for bytes 0-7, the server sent bytes 0-7/${SIZE} with Content-Encoding gzip`,
      WEIGHTS,
    ),
  },
  "ranges of a size that it does not say": {
    of: "read",
    always: edited((head) => head.replace(`/${SIZE}`, "/*")),
  },
  "ranges in other letters": {
    always: edited((head) =>
      head.replace("Content-Range: b", "content-range:B")
    ),
  },
  "ranges in pieces": {
    of: "read",
    always: (_, { begin, end }) => {
      const last = Math.min(end, begin + Math.max(1 << 16, end - begin >> 1));
      return partial(
        [contentRange(begin, last, SIZE)],
        weights.subarray(begin, last + 1),
      );
    },
  },
  "ranges of one byte": {
    of: "read",
    always: (_, { begin }) =>
      partial(
        [contentRange(begin, begin, SIZE)],
        weights.subarray(begin, begin + 1),
      ),
    error: cannot(
      "asked for 5 bytes, the server sent 1, tried 4 times",
      WEIGHTS,
    ),
    pauses: THRICE,
  },
  "more bytes than the range has": {
    of: "read",
    always: plain(
      raw([
        head(
          "206 Partial Content",
          contentRange(0, 7, SIZE),
          "Transfer-Encoding: chunked",
        ),
        ...chunked(half),
      ]),
    ),
    error: cannot(
      "asked for bytes 0-7, the server sent more than these 8",
      WEIGHTS,
    ),
  },
  "a length that is shorter than the range": {
    of: "read",
    answers: [
      plain(partial([contentRange(0, 7, SIZE)], half.subarray(0, 3))),
    ],
    pauses: [200],
    check: (requests) => {
      assertEquals(
        requests.slice(1, 3).map(({ headers }) => headers.get("range")),
        ["bytes=0-7", "bytes=3-7"],
      );
    },
  },
  "a length that is longer than the range": {
    of: "read",
    always: plain(partial([contentRange(0, 7, SIZE)], half.subarray(0, 9))),
    error: cannot(
      "asked for bytes 0-7, the server sent more than these 8",
      WEIGHTS,
    ),
  },
  "resets in every range": {
    of: "read",
    answers: Array(2).fill((
      _: RawAnswer,
      { begin, end }: { begin: number; end: number },
    ) =>
      raw([
        head(
          "206 Partial Content",
          contentRange(begin, end, SIZE),
          `Content-Length: ${end - begin + 1}`,
        ),
        weights.subarray(begin, begin + 2),
      ], "reset")
    ),
    pauses: [200, 600],
    check: (requests) => {
      assertEquals(
        requests.slice(1, 4).map(({ headers }) => headers.get("range")),
        ["bytes=0-7", "bytes=2-7", "bytes=4-7"],
      );
    },
  },
  "silence in a range": {
    of: "read",
    answers: [(_, { begin, end }) =>
      raw([
        head(
          "206 Partial Content",
          contentRange(begin, end, SIZE),
          `Content-Length: ${end - begin + 1}`,
        ),
        weights.subarray(begin, begin + 5),
      ], "hang")],
    pauses: [200],
    notices: [
      `URL/${WEIGHTS}: no data for 1 s; trying again in 0.2 s.`,
    ],
    check: (requests) => {
      assertEquals(requests[2].headers.get("range"), "bytes=5-7");
    },
  },
  "503 for a range": {
    of: "read",
    answers: [plain(reply("503 Service Unavailable", ["Retry-After: 2"]))],
    pauses: [2000],
  },
  "404 for a range": {
    of: "read",
    always: plain(reply("404 Not Found")),
    error: cannot(
      "the server no longer has it (404)",
      WEIGHTS,
    ),
    requests: 2,
  },
  "403 for a range": {
    of: "read",
    query: "?sig=secret",
    always: plain(reply("403 Forbidden")),
    error: `Cannot read URL/${WEIGHTS}?…: the server returned 403 Forbidden`,
  },
  "an empty file": {
    of: "probe",
    always: plain(
      reply("416 Range Not Satisfiable", ["Content-Range: bytes */0"]),
    ),
    error: cannot("it has 0 bytes, a safetensors file has at least 8", WEIGHTS),
  },
  "416 for the first byte": {
    of: "probe",
    always: plain(reply("416 Range Not Satisfiable")),
    notices: copied("to bytes 0-0 it answered 416 Range Not Satisfiable"),
  },
  "no size": {
    of: "probe",
    always: edited((head) => head.replace(`/${SIZE}`, "/*")),
    notices: copied("to bytes 0-0 it answered bytes 0-0/*"),
    requests: 2,
  },
  "another first byte": {
    of: "probe",
    always: plain(partial([contentRange(0, 99, SIZE)], half.subarray(0, 100))),
    notices: copied(`to bytes 0-0 it answered bytes 0-99/${SIZE}`),
  },
  "several first bytes": {
    of: "probe",
    always: plain(
      partial(["Content-Type: multipart/byteranges; boundary=x"], "--x"),
    ),
    notices: copied(
      "to bytes 0-0 it answered multipart/byteranges; boundary=x",
    ),
  },
  "a compressed first byte": {
    of: "probe",
    always: edited((head) =>
      head.replace("Connection", "Content-Encoding: gzip\r\nConnection")
    ),
    notices: copied("it sent Content-Encoding gzip"),
  },
  "a range for the whole file": {
    always: plain(partial([contentRange(0, 99, SIZE)], half.subarray(0, 100))),
    error: cannot("the server returned 206 Partial Content", WEIGHTS),
  },
  "no ranges": {
    always: plain(reply("200 OK", [], weights)),
    notices: WHOLE,
    requests: 1,
  },
  "no ranges, chunks": {
    always: plain(
      raw([head("200 OK", "Transfer-Encoding: chunked"), ...chunked(weights)]),
    ),
    notices: WHOLE,
  },
  "no ranges, gzip": {
    always: plain(reply("200 OK", ["Content-Encoding: gzip"], packedWeights)),
    notices: WHOLE,
  },
  "no ranges, another encoding": {
    always: plain(reply("200 OK", ["Content-Encoding: zstd"], half)),
    error: cannot(
      "the server sent it with Content-Encoding zstd, must send it unencoded",
      WEIGHTS,
    ),
  },
  "no ranges, resets": {
    answers: Array(3).fill(
      plain(
        raw([head("200 OK", `Content-Length: ${SIZE}`), half], "reset"),
      ),
    ),
    always: plain(reply("200 OK", [], weights)),
    notices: WHOLE,
    pauses: THRICE,
    requests: 4,
  },
  "no ranges, resets for good": {
    always: plain(
      raw([head("200 OK", `Content-Length: ${SIZE}`), half], "reset"),
    ),
    notices: WHOLE,
    error: cannot("the connection broke, tried 4 times", WEIGHTS),
    pauses: THRICE,
  },
  "no ranges, chunks that end early": {
    answers: [
      plain(
        raw([
          head("200 OK", "Transfer-Encoding: chunked"),
          ...chunked(half, { broken: true }),
        ]),
      ),
    ],
    always: plain(reply("200 OK", [], weights)),
    notices: WHOLE,
    pauses: [200],
  },
  "no ranges, silence": {
    answers: [
      plain(raw([head("200 OK", `Content-Length: ${SIZE}`), half], "hang")),
    ],
    always: plain(reply("200 OK", [], weights)),
    notices: [
      ...WHOLE,
      `URL/${WEIGHTS}: no data for 1 s; trying again in 0.2 s.`,
    ],
    pauses: [200],
  },
  "no ranges, no length, half of the file": {
    always: plain(raw([head("200 OK"), half])),
    notices: WHOLE,
    error: cannot(
      `tensor model.layers.0.self_attn.o_proj.weight ends at byte 129784, but the file has ${half.length} bytes: it is truncated or its offsets are out of range`,
      WEIGHTS,
    ),
  },
  "no ranges, trailing garbage": {
    always: plain(
      reply("200 OK", [], new Uint8Array([...weights, 1, 2, 3])),
    ),
    notices: WHOLE,
    error: cannot(
      "the 3 bytes after model.norm.weight belong to no tensor",
      WEIGHTS,
    ),
  },
  "a web page in place of weights": {
    always: plain(reply("200 OK", [], page)),
    error: cannot(
      'it is an HTML page titled "Please sign in", must be the file itself',
      WEIGHTS,
    ),
  },
};

/** Shards, and the index that names them. */
const INDEX = "model.safetensors.index.json";
const SHARD = "model-00002-of-00015.safetensors";
const index = JSON.parse(
  new TextDecoder().decode(sharded.get(`/${INDEX}`)!),
);
const SHARD_MODES: Record<string, Mode> = {
  "an index that breaks off": {
    file: INDEX,
    answers: [
      plain(raw([head("200 OK", "Content-Length: 9999"), '{"weight_map": {'])),
    ],
    pauses: [200],
  },
  "an index that is a web page": {
    file: INDEX,
    always: plain(reply("200 OK", [], page)),
    error: cannot(
      'it is an HTML page titled "Please sign in", must be the file itself',
      INDEX,
    ),
  },
  "a missing shard": {
    file: SHARD,
    always: plain(reply("404 Not Found")),
    error: `Cannot open URL: shards are missing: URL/${SHARD}`,
    requests: 1,
  },
  "a shard behind a login": {
    file: SHARD,
    always: plain(reply("401 Unauthorized")),
    error: cannot("the server returned 401 Unauthorized", SHARD),
  },
  "a shard that is another one": {
    file: SHARD,
    always: (_) => serveWell(sharded.get(`/${SHARD.replace("02", "03")}`)),
    error:
      `Cannot load URL: it lacks model.layers.0.self_attn.q_proj.weight (not in ${SHARD}), model.layers.0.self_attn.k_proj.weight (not in ${SHARD}), it must have the 46 tensors of a Qwen3 with 4 layers`,
  },
};
for (
  const shard of [
    "http://example.com/x.safetensors",
    "//example.com/x.safetensors",
    "data:x.safetensors",
    "C:x.safetensors",
    "..%2fx.safetensors",
    "a%2e.safetensors",
    "a?b.safetensors",
    "a#b.safetensors",
    "a\\b.safetensors",
    "..safetensors",
    "a\nb.safetensors",
    "a\u202eb.safetensors",
    "a\ud800.safetensors",
    ".safetensors",
    "x.bin",
  ]
) {
  SHARD_MODES[`a shard named ${JSON.stringify(shard)}`] = {
    file: INDEX,
    always: plain(
      reply(
        "200 OK",
        [],
        JSON.stringify({
          weight_map: { ...index.weight_map, "model.norm.weight": shard },
        }),
      ),
    ),
    error: `Cannot use URL/${INDEX}: it puts model.norm.weight in ${
      JSON.stringify(shard).replace("\u202e", "\\u202e")
    }, must be a .safetensors file in the same folder, by its plain name`,
  };
}

const TOKENIZER_MODES: Record<string, Omit<Mode, "file">> = {
  "that breaks off": {
    answers: [
      plain(raw([head("200 OK", "Content-Length: 99"), TOKENIZER])),
    ],
    pauses: [200],
  },
  "that is a web page": {
    always: plain(reply("200 OK", [], page)),
    error: cannot(
      'it is an HTML page titled "Please sign in", must be the file itself',
      "tokenizer.json",
    ),
  },
  "behind a busy server": {
    always: plain(reply("500 Internal Server Error", [], page)),
    error: cannot(
      "the server returned 500 Internal Server Error, tried 4 times",
      "tokenizer.json",
    ),
    pauses: THRICE,
  },
};

/** Every tensor's bytes, as text. */
async function tensorBytes(checkpoint: Checkpoint): Promise<string[]> {
  const all: string[] = [];
  for (const { name, byteLength } of checkpoint.tensors.values()) {
    const bytes = new Uint8Array(byteLength);
    await checkpoint.read(name, 0, bytes);
    all.push(`${name}: ${bytes.join()}`);
  }
  return all.sort();
}

const expected = new Map<unknown, string[]>();
for (const [files, folder] of [[tiny, TINY], [sharded, SHARDED]] as const) {
  await using local = await openCheckpoint(folder.href);
  expected.set(files, await tensorBytes(local));
}

/** The folder for temporary files, until disposed; checks that it stays empty. */
async function temporaryFolder() {
  const before = Deno.env.get("TMPDIR"), path = await Deno.makeTempDir();
  Deno.env.set("TMPDIR", path);
  return {
    async assertEmpty() {
      const names = await Array.fromAsync(Deno.readDir(path));
      assertEquals(names.map(({ name }) => name), []);
    },
    async [Symbol.asyncDispose]() {
      if (before === undefined) Deno.env.delete("TMPDIR");
      else Deno.env.set("TMPDIR", before);
      await Deno.remove(path, { recursive: true });
    },
  };
}

/** Serves a folder the way a mode says. */
function serveMode(mode: Mode, files: Map<string, Uint8Array>) {
  const first = [...mode.answers ?? []];
  return serveRaw((request, connection) => {
    const { pathname } = new URL(request.target, "http://server");
    const good = serveWell(files.get(pathname), mode.tags);
    const range = rangeOf(request);
    const kind = range === undefined
      ? "whole"
      : request.headers.get("range") === "bytes=0-0"
      ? "probe"
      : "read";
    const concerned = pathname === `/${mode.file}` &&
      (mode.of ?? kind) === kind;
    const answer = concerned ? first.shift() ?? mode.always : undefined;
    const how = answer?.(good, range ?? { begin: 0, end: 0 }) ?? good;
    return how(request, connection);
  });
}

async function assertMode(mode: Mode) {
  const files = mode.files ?? tiny;
  await using _cache = await emptyWebCache();
  await using temporary = await temporaryFolder();
  await using server = await serveMode(mode, files);
  const pauses: number[] = [], notices: string[] = [], progress: string[] = [];
  const deadline = new AbortController();
  const timer = setTimeout(() => deadline.abort(), DEADLINE_MS);
  const shown = (text: string) => text.replaceAll(server.url, "URL");
  const isSilent =
    mode.notices?.some((notice) => /no (response|data) for/.test(notice)) ||
    /no (response|data) for/.test(mode.error ?? "");
  let error: string | undefined, isRead = false;
  try {
    const url = server.url.replace("//", `//${mode.user ?? ""}`);
    await using checkpoint = await openCheckpoint(url + (mode.query ?? ""), {
      signal: deadline.signal,
      readTimeout: isSilent ? SILENCE : undefined,
      sleep: (ms) => Promise.resolve(void pauses.push(ms)),
      onNotice: (notice) => notices.push(shown(notice)),
      onProgress: ({ file }) => progress.push(file ?? ""),
    });
    await temporary.assertEmpty();
    progress.push(checkpoint.name, checkpoint.location);
    assertEquals(await tensorBytes(checkpoint), expected.get(files));
    isRead = true;
    assertEquals(await checkpoint.text("tokenizer.json"), TOKENIZER);
    assertEquals(await checkpoint.text("chat_template.jinja"), undefined);
  } catch (cause) {
    if (!(cause instanceof Error) || cause.name === "AssertionError") {
      throw cause;
    }
    // Only the parser's: those of requests may tell secrets.
    assert(cause.cause === undefined || cause.cause instanceof SyntaxError);
    error = shown(cause.message);
  } finally {
    clearTimeout(timer);
  }
  const { requests } = server;
  const asked = requests.filter(({ target }) =>
    new URL(target, "http://server").pathname === `/${mode.file}`
  );
  assertEquals(error, mode.error);
  assertEquals(pauses, mode.pauses ?? []);
  const kept = notices.filter((notice) => KEPT.test(notice));
  assertEquals(kept.length, isRead ? 1 : 0);
  assertEquals(
    notices.filter((notice) => !KEPT.test(notice)),
    mode.notices ?? [],
  );
  assertEquals(asked.length, mode.requests ?? asked.length);
  mode.check?.(asked);
  for (const { method, headers } of requests) {
    assertEquals([method, headers.get("accept-encoding")], ["GET", "identity"]);
  }
  for (const text of [error ?? "", ...notices, ...progress]) {
    assert(!/secret|\n/.test(text), text);
  }
  await temporary.assertEmpty();
  // A request that was given up leaves no connection behind.
  for (let waited = 0; server.open > 0; waited += 10) {
    assert(waited < DEADLINE_MS, `${server.open} connections are open`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

for (const [name, mode] of Object.entries(TEXT_MODES)) {
  slowTest(
    `config.json, ${name}`,
    () => assertMode({ ...mode, file: "config.json" }),
  );
}
for (const [name, mode] of Object.entries(TOKENIZER_MODES)) {
  slowTest(
    `a tokenizer ${name}`,
    () => assertMode({ ...mode, file: "tokenizer.json" }),
  );
}
for (const [name, mode] of Object.entries(RANGE_MODES)) {
  slowTest(`weights, ${name}`, () => assertMode({ ...mode, file: WEIGHTS }));
}
for (const [name, mode] of Object.entries(SHARD_MODES)) {
  slowTest(`shards, ${name}`, () => assertMode({ ...mode, files: sharded }));
}
