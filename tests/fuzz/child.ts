/**
 * Gives inputs of the fuzzer to the library, in a process of its own that the test
 * watches: arguments are the seed, the first input and the number of inputs. Every line
 * of stdout is JSON: the memory that an undamaged input takes, an input
 * begins, an input ended, or all is done.
 */
import { loadQwen3 } from "../../mod.ts";
import {
  loadTuning,
  saveTuning,
  type TunedDevice,
  tuningPath,
} from "../../lib/device/tuning_file.ts";
import { linearKey } from "../../lib/dispatch/keys.ts";
import { bf16 } from "../../lib/formats/bf16.ts";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import { listWebCache } from "../../lib/checkpoint/web_cache.ts";
import { type Input, inputOf, undamaged } from "./inputs.ts";

const [seed, first, count] = Deno.args.map(Number);
const folder = Deno.env.get("QWEN3_TUNING_DIR")!;

/** A line for the test that watches. */
function say(line: Record<string, unknown>): void {
  const bytes = new TextEncoder().encode(`${JSON.stringify(line)}\n`);
  for (let at = 0; at < bytes.length;) {
    at += Deno.stdout.writeSync(bytes.subarray(at));
  }
}

const stray: string[] = [];
globalThis.addEventListener("unhandledrejection", (event) => {
  event.preventDefault();
  stray.push(`unhandled rejection: ${event.reason}`);
});

/** A device as far as tuned constants depend on it. */
const device = (): TunedDevice => ({
  adapter: {
    info: {
      ...{ vendor: "1", architecture: "", device: "2", description: "fuzz" },
      ...{ subgroupMinSize: 32, subgroupMaxSize: 32 },
    },
  } as GPUAdapter,
  limits: {
    maxComputeWorkgroupStorageSize: 49152,
    maxComputeInvocationsPerWorkgroup: 1024,
  } as GPUSupportedLimits,
  tuned: new Map(),
  subgroupSize: 32,
  adapterClass: "NVIDIA",
});

async function tuningText(): Promise<string> {
  const shape = { m: 1, n: 4096, k: 1024, norm: true, swiglu: false };
  const entry = {
    constants: { WORKGROUP: 64, ROWS: 4, STEPS: 2, WALKERS: 1 },
    ...{ gain: 0.05, spread: 0.01, model: "fuzz" },
  };
  const key = linearKey("gemv", { ...shape, format: bf16 });
  const { path } = await saveTuning(device(), new Map([[key, entry]]));
  return await Deno.readTextFile(path);
}

/** Opens the checkpoint and generates a few tokens. */
async function generate({ base, changes, prompt, options }: Input) {
  const path = await Deno.makeTempDir({ prefix: "qwen3-fuzz-" });
  try {
    for await (const { name } of Deno.readDir(base)) {
      if (name in changes || name.startsWith("golden.")) continue;
      await Deno.symlink(new URL(name, base), `${path}/${name}`);
    }
    for (const [name, content] of Object.entries(changes)) {
      const bytes = typeof content === "string"
        ? new TextEncoder().encode(content)
        : content;
      await Deno.writeFile(`${path}/${name}`, bytes);
    }
    using qwen = await loadQwen3(path, { device: "cpu", context: 64 });
    const given = typeof options === "object" && options !== null &&
        !Array.isArray(options)
      ? { maxTokens: 3, ...options }
      : options;
    // As from JavaScript, which may pass anything.
    const run = qwen.generate(prompt as string, given as { maxTokens: number });
    for await (const _ of run);
    void [run.toolCalls, run.reasoning, run.text, run.stats.summary];
  } finally {
    await Deno.remove(path, { recursive: true });
  }
}

/** Reads a file of tuned constants; what is wrong with it is a reason, not an error. */
async function tune(text: string): Promise<void> {
  const gpu = device();
  await Deno.writeTextFile(await tuningPath(gpu), text);
  const { value, reason } = await loadTuning(gpu);
  if (value === "off") throw new Error(reason);
}

/** A server with the smallest fixture, or none. */
function answer(isThere: boolean): typeof fetch {
  const base = new URL("../fixtures/tiny-tied-bf16/", import.meta.url);
  return async (input, init) => {
    const headers = new Headers(init?.headers);
    if (!isThere) throw new TypeError("no network");
    const name = new URL(`${input}`).pathname.slice(1);
    const file = await Deno.readFile(new URL(name, base)).catch(() => null);
    if (file === null) return new Response(null, { status: 404 });
    const etag = `"${name}"`;
    return headers.get("if-none-match") === etag
      ? new Response(null, { status: 304, headers: { etag } })
      : new Response(file, { headers: { etag } });
  };
}

const WEB = "http://fuzz.test/";

/** Reads a web folder as far as a load does; returns the bytes of a tensor. */
async function readWeb(isThere: boolean): Promise<string> {
  await using checkpoint = await openCheckpoint(WEB, {
    fetch: answer(isThere),
    sleep: () => Promise.resolve(),
  });
  const bytes = new Uint8Array(128);
  await checkpoint.read("model.norm.weight", 0, bytes);
  await checkpoint.text("tokenizer.json");
  return bytes.join();
}

async function indexPath(): Promise<string> {
  const [{ folder }] = await listWebCache();
  return `${folder}/index.json`;
}

async function webIndex(): Promise<string> {
  norm = await readWeb(true);
  return await Deno.readTextFile(await indexPath());
}

/** The bytes that readWeb() must return. */
let norm = "";

/**
 * Opens a web folder whose index is damaged: without the server that may be refused, with
 * it nothing may be wrong.
 */
async function openKept(text: string): Promise<void> {
  await Deno.writeTextFile(await indexPath(), text);
  await listWebCache();
  let refused: unknown;
  try {
    if (await readWeb(false) !== norm) throw new Error("other bytes");
  } catch (error) {
    refused = error;
  }
  if (await readWeb(true) !== norm) throw new Error("other bytes");
  if (refused !== undefined) throw refused;
}

/** The story model, for chats. */
const qwen = await loadQwen3(undefined, { device: "cpu", context: 64 });
const SHORT = { temperature: 0, maxTokens: 3 };

async function savedChat(): Promise<Uint8Array<ArrayBuffer>> {
  const tools = [{ type: "function", function: { name: "f" } }] as const;
  const chat = qwen.chat({ ...SHORT, system: "A tale." });
  await chat.send("Once upon a time");
  chat.tools = tools;
  const { readable, writable } = new TransformStream<Uint8Array>();
  const bytes = new Response(readable).bytes();
  await chat.save(writable);
  return await bytes;
}

/** Loads a saved chat and goes on with it; what cannot be loaded changes nothing. */
async function goOn(saved: Uint8Array<ArrayBuffer>): Promise<void> {
  const chat = qwen.chat({ ...SHORT, messages: [] });
  try {
    await chat.load(new Response(saved).body!);
  } catch (error) {
    if (chat.messages.length > 0) throw new Error("messages were changed");
    throw error;
  }
  chat.tools = undefined; // the story model has no place for them
  await chat.send("She had a cat");
  chat.undo();
}

/** The most memory that the process had, in bytes; on Linux only. */
function peak(): number {
  try {
    const status = Deno.readTextFileSync("/proc/self/status");
    return Number(/VmHWM:\s+(\d+) kB/.exec(status)?.[1] ?? 0) * 1024;
  } catch {
    return Deno.memoryUsage().rss;
  }
}

Deno.mkdirSync(folder, { recursive: true });
const own = {
  tuning: await tuningText(),
  index: await webIndex(),
  chat: await savedChat(),
};
await generate(undamaged());
say({ base: peak() });
for (let index = first; index < first + count; index++) {
  const input = inputOf(seed, index, own);
  say({ begins: index, what: input.what });
  let outcome: string | undefined;
  try {
    if (input.tuning !== undefined) await tune(input.tuning);
    else if (input.index !== undefined) await openKept(input.index);
    else if (input.chat !== undefined) await goOn(input.chat);
    else await generate(input);
  } catch (error) {
    outcome = error instanceof Error
      ? error.message
      : `not an Error: ${String(error)}`;
    if (!outcome.startsWith("Cannot ") && error instanceof Error) {
      outcome += `\n${error.stack}`;
    }
  }
  await new Promise((resolve) => setTimeout(resolve)); // for stray rejections
  say({ ended: index, outcome, stray: stray.splice(0), peak: peak() });
}
say({ done: true });
Deno.exit(0);
