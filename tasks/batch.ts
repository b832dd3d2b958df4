/**
 * Answers the requests of a file, in the format of OpenAI's batches.
 *
 *   deno task batch in.jsonl out.jsonl
 *   deno task batch in.jsonl out.jsonl --model Qwen/Qwen3-0.6B
 */
import { described, errorText } from "../lib/errors.ts";
import { isObject } from "../lib/json.ts";
import { errorResponse } from "../lib/server/errors.ts";
import { newId } from "../lib/server/service.ts";
import { Server } from "../lib/server/server.ts";
import { type FlagTable, runTask } from "./flags.ts";
import { onInterrupt } from "./interrupts.ts";
import { nameModel, say } from "./model.ts";
import { LOADING_FLAGS, Progress, THREADS_FLAG } from "./progress.ts";
import { readServed, SERVED_FLAGS, startServing } from "./served.ts";

const FLAGS: FlagTable = {
  ...SERVED_FLAGS,
  "verbose": ["switch", "say every choice about the device, with its reason"],
  ...LOADING_FLAGS,
  ...THREADS_FLAG,
};

const NOTES =
  `Each line of IN is a request: {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {…}}; also for /v1/completions, /v1/responses and /v1/embeddings.
OUT gets a line for each, in the same order, also for one that failed. If OUT has lines already, they are kept, and the batch goes on after them.`;

/** How errors begin. */
const CANNOT = "Cannot run the batch";
const URLS = [
  "/v1/chat/completions",
  "/v1/completions",
  "/v1/responses",
  "/v1/embeddings",
];
/** Requests that may be done before an earlier one is. */
const AHEAD = 1000;
const NEWLINE = 10;
/** How replies get their ids, and how their lines begin. */
const ID = "batch_req_", REPLY = `{"id":"${ID}`;

/** A line of the input. */
interface Asked {
  custom_id: string;
  url: string;
  body: Record<string, unknown>;
}

await runTask({
  usage: "deno task batch IN.jsonl OUT.jsonl [flags]",
  flags: FLAGS,
  notes: NOTES,
  examples: [
    "deno task batch in.jsonl out.jsonl --model Qwen/Qwen3-0.6B",
  ],
}, async (flags) => {
  const served = await readServed(flags);
  const [from, to] = await filesOf(flags.words);
  const total = await countLines(from), done = await resume(from, to);
  if (done === total) {
    say(`${to} has all ${total} replies already.`);
    return 0;
  }
  // Rather than an error after the model is loaded.
  using file = await open(to, { append: true, create: true });
  const interrupt = onInterrupt(), { signal } = interrupt;
  using progress = await Progress.start();
  try {
    const server = new Server({
      seconds: 7 * 86_400,
      bodyBytes: 1 << 28,
      queue: Infinity, // a request may ask for many texts; there are no other clients
    });
    using serving = await startServing(server, served, signal, progress);
    const job = { from, file, done, total, slots: serving.slots };
    await run(job, server, progress, signal);
  } catch (error) {
    if (interrupt.code === undefined) throw nameModel(error);
    progress.clear();
    say("Interrupted. The same command goes on where this one ended.");
  }
  return interrupt.code ?? 0;
});

/** The two files. */
async function filesOf(
  words: readonly string[],
): Promise<[from: string, to: string]> {
  const [from, to] = words;
  if (words.length !== 2) {
    throw new Error(
      `${CANNOT}: ${words.length} files are named, must be two: IN.jsonl OUT.jsonl`,
    );
  }
  // Two paths may lead to one file, which would lose its last request.
  if (from === to || await identityOf(from) === await identityOf(to)) {
    throw new Error(`${CANNOT}: IN and OUT are both ${from}, must differ`);
  }
  return [from, to];
}

/** The path without links; the path itself if nothing is there. */
function identityOf(file: string): Promise<string> {
  return Deno.realPath(file).catch(() => file);
}

/** A line of a file, and its number there, from 1. */
interface Line {
  bytes: Uint8Array;
  number: number;
}

/** The lines of a file that are not blank. */
async function* linesOf(file: string): AsyncGenerator<Line> {
  let rest = new Uint8Array(), number = 1;
  using opened = await open(file, { read: true });
  const isBlank = (line: Uint8Array) => line.every((byte) => byte <= 32);
  for await (const chunk of opened.readable) {
    let begin = 0;
    for (let at = 0; (at = chunk.indexOf(NEWLINE, at)) >= 0; begin = ++at) {
      const bytes = concat(rest, chunk.subarray(begin, at));
      rest = new Uint8Array();
      if (!isBlank(bytes)) yield { bytes, number };
      number++;
    }
    rest = concat(rest, chunk.subarray(begin));
  }
  if (!isBlank(rest)) yield { bytes: rest, number };
}

function concat(a: Uint8Array, b: Uint8Array): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(a.length + b.length);
  all.set(a);
  all.set(b, a.length);
  return all;
}

async function open(
  file: string,
  options: Deno.OpenOptions,
): Promise<Deno.FsFile> {
  try {
    const opened = await Deno.open(file, options);
    if (!(await opened.stat()).isDirectory) return opened;
    opened.close();
    throw new Error("it is a folder");
  } catch (error) {
    throw new Error(
      `${CANNOT}: ${file} cannot be opened (${errorText(error)})`,
    );
  }
}

async function countLines(file: string): Promise<number> {
  let count = 0;
  for await (const _ of linesOf(file)) count++;
  if (count > 0) return count;
  throw new Error(`${CANNOT}: ${file} has no requests, must have at least one`);
}

/**
 * How many replies there are already. A last line that was cut off is removed.
 *
 * @throws {Error} if a reply is not for the request in its place.
 */
async function resume(from: string, to: string): Promise<number> {
  let size: number;
  try {
    size = (await Deno.stat(to)).size;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return 0;
    throw new Error(`${CANNOT}: ${to} cannot be read (${errorText(error)})`);
  }
  if (size === 0) return 0;
  const requests = linesOf(from);
  let whole = 0, count = 0;
  for await (const { bytes, number } of linesOf(to)) {
    if (whole + bytes.length >= size) { // without a line break
      if (isCutReply(bytes)) break;
      throw new Error(
        `${CANNOT}: line ${number} of ${to} is no reply, must be one, or ${to} removed`,
      );
    }
    const { value } = await requests.next();
    const asked = idOf(value?.bytes), answered = idOf(bytes);
    if (value === undefined || asked !== answered) {
      throw new Error(
        `${CANNOT}: line ${number} of ${to} is for ${
          described(answered)
        }, must be for ${described(asked)} as in ${from}, or ${to} removed`,
      );
    }
    whole += bytes.length + 1;
    count++;
  }
  await Deno.truncate(to, whole);
  return count;
}

/** Whether a line may be the begin of a reply. */
function isCutReply(line: Uint8Array): boolean {
  const text = new TextDecoder().decode(line.subarray(0, REPLY.length));
  return text === REPLY.slice(0, text.length);
}

/** The id of a request or reply; null if it has none. */
function idOf(line?: Uint8Array): unknown {
  try {
    const json = JSON.parse(new TextDecoder().decode(line));
    return isObject(json) ? json.custom_id ?? null : null;
  } catch { // its reply says so
    return null;
  }
}

/** What is to be done. */
interface Job {
  from: string;
  /** Replies are appended to it. */
  file: Deno.FsFile;
  /** Requests that have been answered, and all of them. */
  done: number;
  total: number;
  /** Requests that are answered at once. */
  slots: number;
}

/** Answers the requests that have no reply yet, some at once, and writes in their order. */
async function run(
  { from, file, done: skipped, total, slots }: Job,
  server: Server,
  progress: Progress,
  signal: AbortSignal,
): Promise<void> {
  const ready = new Map<number, string>(), running = new Set<Promise<void>>();
  const seen = new Map<unknown, number>(), began = performance.now();
  let written = skipped, failed = 0, tokens = 0, index = 0;
  const write = async () => {
    for (let line; (line = ready.get(written)) !== undefined; written++) {
      ready.delete(written);
      await writeLine(file, line);
    }
  };
  const show = () => {
    const rate = tokens / (performance.now() - began) * 1000;
    const note = `${Math.round(rate)} tokens/s`;
    progress.count("batch", "requests", written + ready.size, total, note);
  };
  for await (const line of linesOf(from)) {
    const at = index++;
    const request = readRequest(line, seen);
    if (at < skipped) continue;
    while (running.size >= slots || at - written >= AHEAD) {
      if (running.size > 0) await Promise.race(running); // or all have ended by now
      await write();
      show();
    }
    signal.throwIfAborted();
    const task = answer(server, request, signal).then((reply) => {
      signal.throwIfAborted();
      if (reply.failed) failed++;
      tokens += reply.tokens;
      ready.set(at, reply.line);
    }).finally(() => running.delete(task));
    task.catch(() => {}); // the race has it, or one before it ended the batch
    running.add(task);
  }
  while (running.size > 0) {
    await Promise.race(running);
    await write();
    show();
  }
  await write();
  progress.clear();
  const seconds = (performance.now() - began) / 1000;
  say(
    `${total - skipped} requests in ${seconds.toFixed(1)} s, ${
      Math.round(tokens / seconds)
    } tokens/s; ${failed === 0 ? "none" : failed} failed.`,
  );
}

async function writeLine(file: Deno.FsFile, line: string): Promise<void> {
  const bytes = new TextEncoder().encode(`${line}\n`);
  try {
    for (let at = 0; at < bytes.length;) {
      at += await file.write(bytes.subarray(at));
    }
  } catch (error) {
    throw new Error(
      `${CANNOT}: a reply cannot be written (${errorText(error)})`,
    );
  }
}

/** A request, or what is wrong with its line. */
type Read = { asked: Asked } | { custom_id: unknown; wrong: string };

function readRequest(
  { bytes, number }: Line,
  seen: Map<unknown, number>,
): Read {
  let json: unknown;
  const wrong = (why: string, custom_id: unknown = null) => ({
    custom_id,
    wrong: `Cannot read line ${number}: ${why}`,
  });
  try {
    json = JSON.parse(
      new TextDecoder("utf-8", { fatal: true }).decode(bytes),
    );
  } catch (error) {
    return wrong(`it is not valid JSON (${errorText(error)})`);
  }
  if (!isObject(json)) {
    return wrong(`it is ${described(json)}, must be an object`);
  }
  const { custom_id, method = "POST", url, body } = json;
  const problem = (why: string) => wrong(why, custom_id ?? null);
  if (typeof custom_id !== "string") {
    return problem(`custom_id is ${described(custom_id)}, must be a string`);
  }
  const before = seen.get(custom_id);
  if (before !== undefined) {
    return problem(
      `custom_id is ${described(custom_id)} as in line ${before}, must differ`,
    );
  }
  seen.set(custom_id, number);
  if (method !== "POST") {
    return problem(`method is ${described(method)}, must be POST`);
  }
  if (typeof url !== "string" || !URLS.includes(url)) {
    return problem(
      `url is ${described(url)}, must be one of ${URLS.join(", ")}`,
    );
  }
  if (!isObject(body)) {
    return problem(`body is ${described(body)}, must be an object`);
  }
  if (body.stream === true) {
    return problem("body.stream is true, must be left out");
  }
  return { asked: { custom_id, url, body } };
}

/** Answers a request; an error is part of the reply. */
async function answer(server: Server, read: Read, signal: AbortSignal) {
  const id = newId(ID);
  if ("wrong" in read) {
    const { custom_id, wrong: message } = read;
    const error = { code: "invalid_request", message };
    const line = JSON.stringify({ id, custom_id, response: null, error });
    return { line, failed: true, tokens: 0 };
  }
  const { custom_id, url, body: asked } = read.asked;
  const response = await server.fetch(
    new Request(`http://localhost${url}`, {
      method: "POST",
      body: JSON.stringify(asked),
      signal,
    }),
  );
  const { status, body } = await outcomeOf(response), { usage } = body;
  return {
    line: JSON.stringify({
      id,
      custom_id,
      response: {
        status_code: status,
        request_id: response.headers.get("x-request-id"),
        body,
      },
      error: null,
    }),
    failed: status !== 200,
    tokens: usage?.completion_tokens ?? usage?.output_tokens ?? 0,
  };
}

/** The status and JSON of a response; a request that failed after its headers breaks off. */
async function outcomeOf(response: Response) {
  try {
    return { status: response.status, body: await response.json() };
  } catch (error) {
    const failed = errorResponse(error);
    return { status: failed.status, body: await failed.json() };
  }
}
