/**
 * Many clients of one engine for a while: they join, stop reading, abort and edit their
 * prompts at random, and every token must be what the request gives alone.
 *
 *   deno run -A bench/soak.ts [MODEL] [gpu|cpu] [CLIENTS] [SECONDS]
 *
 * @module
 */
import { DEFAULT_MODEL, loadQwen3, type Qwen3 } from "../mod.ts";
import type { Engine } from "../lib/engine/engine.ts";
import { fmix32 } from "../lib/fmix32.ts";

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
  /** Bytes at a third of the way and at the end: of the process, and on the device. */
  memory: { rss: [number, number]; device: [number, number] };
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
 * Prompts with shared beginnings, as conversations have them: each is a random text, an
 * earlier one with its reply and more, or an earlier one that was edited.
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
  for (let i = 0; i < prompts; i++) {
    const { prompt, reply } = pool[draws.upTo(i)] ?? { prompt: [], reply: [] };
    const edited = prompt.slice(0, draws.upTo(prompt.length));
    const begin = draws.upTo(2) > 0 ? [...prompt, ...reply] : edited;
    const next = [...begin, ...text(1 + draws.upTo(most / 4))].slice(-most);
    const run = await qwen.generate(next, { ...GREEDY, maxTokens });
    pool.push({ prompt: next, reply: run.tokenIds });
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
  const memory = (): [rss: number, device: number] => [
    Deno.memoryUsage().rss,
    qwen.memoryBytes,
  ];
  let early: [number, number] | undefined, said = 0;
  const isOver = () =>
    requests >= options.requests || elapsed() >= options.seconds;
  const client = async (own: Draws) => {
    while (!isOver()) {
      requests++;
      await wait(own.upTo(3) * 5);
      const done = await ask(engine, pool[own.upTo(pool.length - 1)], own);
      tokens += done.tokens;
      if (done.left) left++;
      const part = Math.max(
        requests / options.requests,
        elapsed() / options.seconds,
      );
      if (part > 1 / 3) early ??= memory();
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
  const [rss, device] = early ?? memory(), [rssNow, deviceNow] = memory();
  return {
    requests,
    tokens,
    left,
    cachedTokens: cachedTokens - before.cachedTokens,
    seconds,
    memory: { rss: [rss, rssNow], device: [device, deviceNow] },
  };
}

const MIB = (bytes: number) => `${(bytes / 2 ** 20).toFixed(0)} MiB`;

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
  const { rss, device: bytes } = report.memory;
  console.log(
    `${report.requests} requests of ${clients} clients, ${report.left} left early, ${report.tokens} tokens at ${
      (report.tokens / report.seconds).toFixed(0)
    }/s, ${report.cachedTokens} prompt tokens not read again; all as alone`,
  );
  console.log(
    `memory after a third, and at the end: process ${
      rss.map(MIB).join(", ")
    }, device ${bytes.map(MIB).join(", ")}`,
  );
}

if (import.meta.main) await main();
