/**
 * Many clients of one engine for a while: they join, stop reading, abort and edit their
 * prompts at random, and every token must be what the request gives alone. Memory must
 * level off: it grows while passes of new shapes are recorded and compiled, and V8's heap
 * follows its garbage, but nothing stays of a request.
 *
 *   deno run -A bench/soak.ts [MODEL] [gpu|cpu] [CLIENTS] [SECONDS]
 *
 * @module
 */
import v8 from "node:v8";
import vm from "node:vm";
import { DEFAULT_MODEL, loadQwen3, type Qwen3 } from "../mod.ts";
import type { Engine } from "../lib/engine/engine.ts";
import { fmix32 } from "../lib/fmix32.ts";
import type { Logprobs } from "../lib/model/sampling.ts";

/** Bounds of a soak; the first that is reached ends it. */
export interface SoakOptions {
  clients: number;
  requests: number;
  seconds: number;
  /** The most tokens of a reply. */
  maxTokens: number;
  /** Different prompts. */
  prompts: number;
  seed: number;
}

/** What happened. */
export interface SoakReport {
  requests: number;
  tokens: number;
  /** Requests that were left early, by breaking off or by a signal. */
  left: number;
  /** Prompt tokens that were not read again. */
  cachedTokens: number;
  seconds: number;
  /** At the beginning and after each tenth. */
  memory: readonly MemorySample[];
}

/** Memory after a garbage collection, in bytes. */
export interface MemorySample {
  /** Requests until then. */
  requests: number;
  /** Of the process. */
  rss: number;
  /** Of these V8's heap, with the room that it keeps for garbage. */
  heap: number;
  /** What that heap holds. */
  used: number;
  /** On the device. */
  device: number;
}

/** A request that is asked again and again, and what it gives alone. */
interface Known {
  prompt: readonly number[];
  reply: readonly number[];
}

/** Numbers that a seed determines. */
class Draws {
  #count = 0;
  constructor(readonly seed: number) {}

  /** A whole number from 0 to `most`. */
  upTo(most: number): number {
    return fmix32(this.seed + 0x9e3779b9 * this.#count++) % (most + 1);
  }
}

const GREEDY = { temperature: 0, ignoreEos: true } as const;

/**
 * Smaller differences of log probabilities may be due to the order of sums, which others in a
 * batch change: by 4e-6, seldom by 1e-5.
 */
const NEARLY = 1e-3;

/** How many tokens are chosen until two are nearly as likely, with `logprobs: 2`. */
export function decided(logprobs: readonly Logprobs[] = []): number {
  const tie = logprobs.findIndex(({ top: [best, second] }) =>
    best.logprob - second.logprob < NEARLY
  );
  return tie < 0 ? logprobs.length : tie;
}

/**
 * Prompts with shared beginnings, as conversations have them: the first is a long random
 * text; others are an earlier one with its reply and more, or one that was edited.
 */
async function makePool(
  qwen: Qwen3,
  { maxTokens, prompts }: SoakOptions,
  draws: Draws,
): Promise<Known[]> {
  const pool: Known[] = [], { vocabSize } = qwen.config;
  const most = Math.floor(qwen.context / 2) - maxTokens;
  const text = (length: number) =>
    Array.from({ length }, () => draws.upTo(vocabSize - 1));
  while (pool.length < prompts) {
    const i = pool.length;
    const { prompt, reply } = pool[draws.upTo(i)] ?? { prompt: [], reply: [] };
    const edited = prompt.slice(0, draws.upTo(prompt.length));
    const begin = draws.upTo(2) > 0 ? [...prompt, ...reply] : edited;
    const length = i > 0 ? 1 + draws.upTo(most / 4) : most;
    const next = [...begin, ...text(length)].slice(-most);
    const options = { ...GREEDY, maxTokens, logprobs: 2 };
    const run = await qwen.generate(next, options);
    const sure = run.tokenIds.slice(0, decided(run.logprobs));
    if (sure.length > 0) pool.push({ prompt: next, reply: sure });
  }
  return pool;
}

/** Asks for one reply; returns its tokens, and whether it was left early. */
async function ask(
  engine: Engine,
  { prompt, reply }: Known,
  draws: Draws,
): Promise<{ tokens: number; left: boolean }> {
  const maxTokens = 1 + draws.upTo(reply.length - 1), how = draws.upTo(5);
  const ender = new AbortController(), { signal } = ender;
  const run = engine.submit(prompt, { ...GREEDY, maxTokens, signal });
  const end = draws.upTo(maxTokens);
  let count = 0;
  if (how > 2) await run;
  else {
    for await (const _ of run) {
      if (draws.upTo(9) === 0) await wait(draws.upTo(10));
      if (++count < end || how === 2) continue;
      if (how === 0) break;
      ender.abort();
    }
  }
  const { tokenIds } = run, left = tokenIds.length < maxTokens;
  const wrong = tokenIds.findIndex((id, i) => id !== reply[i]);
  if (wrong >= 0) {
    throw new Error(
      `Cannot go on: token ${wrong} after a prompt of ${prompt.length} is ${
        tokenIds[wrong]
      }, must be ${reply[wrong]}`,
    );
  }
  if (left && how > 1) {
    throw new Error(
      `Cannot go on: a reply has ${tokenIds.length} tokens, must have ${maxTokens}`,
    );
  }
  return { tokens: tokenIds.length, left };
}

/** Samples at each tenth of a run. */
class Memory {
  readonly samples: MemorySample[] = [];
  readonly #collect: () => void;

  constructor(readonly qwen: Qwen3) {
    v8.setFlagsFromString("--expose-gc");
    this.#collect = vm.runInNewContext("gc");
  }

  /** Takes the samples that are due when this `part` of the run is over. */
  sample(requests: number, part: number): void {
    while (this.samples.length <= Math.min(10, Math.floor(10 * part))) {
      // Garbage of WebGPU is small in V8's heap, but holds memory outside it.
      this.#collect();
      const { rss, heapTotal: heap, heapUsed: used } = Deno.memoryUsage();
      const { memoryBytes: device } = this.qwen;
      this.samples.push({ requests, rss, heap, used, device });
    }
  }
}

const wait = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/**
 * Runs clients until one of the bounds is reached.
 *
 * @throws {Error} if a token is not what its request gives alone, or a slot stays taken.
 */
export async function soak(
  qwen: Qwen3,
  engine: Engine,
  options: SoakOptions,
  onProgress?: (text: string) => void,
): Promise<SoakReport> {
  const draws = new Draws(options.seed);
  const pool = await makePool(qwen, options, draws);
  const began = performance.now(), before = engine.stats;
  const elapsed = () => (performance.now() - began) / 1000;
  let requests = 0, tokens = 0, left = 0;
  const memory = new Memory(qwen);
  let said = 0;
  const part = () =>
    Math.max(requests / options.requests, elapsed() / options.seconds);
  const client = async (own: Draws) => {
    for (;;) {
      memory.sample(requests, part());
      if (part() >= 1) return;
      requests++;
      await wait(own.upTo(3) * 5);
      const done = await ask(engine, pool[own.upTo(pool.length - 1)], own);
      tokens += done.tokens;
      if (done.left) left++;
      if (elapsed() < said + 10) continue;
      said = elapsed();
      onProgress?.(`${said.toFixed(0)} s: ${requests} requests`);
    }
  };
  await Promise.all(Array.from(
    { length: options.clients },
    (_, i) => client(new Draws(fmix32(options.seed + i))),
  ));
  const seconds = elapsed();
  for (let i = 0; i < 200 && engine.stats.running > 0; i++) await wait(10);
  const { running, waiting, pages, cachedTokens } = engine.stats;
  if (running + waiting + pages.held > 0) {
    throw new Error(
      `Cannot end: ${running} requests run, ${waiting} wait and ${pages.held} pages are held, must be none`,
    );
  }
  return {
    requests,
    tokens,
    left,
    cachedTokens: cachedTokens - before.cachedTokens,
    seconds,
    memory: memory.samples,
  };
}

const MIB = (bytes: number) => (bytes / 2 ** 20).toFixed(1);

/** A line per sample, and how much each column grew in the last half. */
function memoryTable(samples: readonly MemorySample[]): string {
  const columns = ["rss", "heap", "used", "device"] as const;
  const line = (head: string | number, cells: readonly string[]) =>
    [`${head}`, ...cells].map((cell) => cell.padStart(9)).join("");
  const middle = samples[samples.length >> 1], end = samples.at(-1)!;
  const thousands = (end.requests - middle.requests) / 1000;
  return [
    "MiB after each tenth: the process, V8's heap, what that holds, the device",
    line("requests", columns),
    ...samples.map((sample) =>
      line(sample.requests, columns.map((column) => MIB(sample[column])))
    ),
    "growth per 1,000 requests in the last half:",
    line(
      "",
      columns.map((column) => MIB((end[column] - middle[column]) / thousands)),
    ),
  ].join("\n");
}

async function main(): Promise<void> {
  const [model = DEFAULT_MODEL, device = "auto", clients = "64", time = "600"] =
    Deno.args;
  using qwen = await loadQwen3(model, {
    device: device as "auto" | "gpu" | "cpu",
    precision: "f32", // rounding then rarely decides
  });
  const slots = Math.min(64, Number(clients));
  using engine = await qwen.engine({ slots });
  const report = await soak(qwen, engine, {
    clients: Number(clients),
    requests: 1e6,
    seconds: Number(time),
    maxTokens: 64,
    prompts: 32,
    seed: Date.now(),
  }, (text) => console.error(text));
  console.log(
    `${report.requests} requests of ${clients} clients, ${report.left} left early, ${report.tokens} tokens at ${
      (report.tokens / report.seconds).toFixed(0)
    }/s, ${report.cachedTokens} prompt tokens not read again; all as alone`,
  );
  console.log(memoryTable(report.memory));
}

if (import.meta.main) await main();
