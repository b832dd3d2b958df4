/**
 * Clients of `deno task serve`, in a process of their own, against `generateBatch`.
 *
 *   deno run -A bench/serve.ts [MODEL] [gpu|cpu|dawn] [TOKENS] [CLIENTS …]
 */
import { loadQwen3 } from "../mod.ts";
import { fmix32 } from "../lib/fmix32.ts";

const [
  model = "synthetic:qwen3-0.6b",
  where = "auto",
  tokens = "256",
  ...clients
] = Deno.args;
const webgpu = where === "dawn" ? where : undefined;
const device = webgpu ? "gpu" : where as "auto" | "gpu" | "cpu";
const COUNTS = clients.length > 0 ? clients.map(Number) : [1, 16, 64];
const PROMPT = 32, REPEATS = 3, EACH = Number(tokens);

const promptOf = (seed: number): number[] =>
  Array.from({ length: PROMPT }, (_, i) => fmix32(seed * 65537 + i) % 2000);

/** Tokens per second, sorted, of some rounds after one that records and compiles. */
async function ratesOf(
  count: number,
  round: (seeds: number[]) => Promise<unknown>,
): Promise<number[]> {
  const rates: number[] = [];
  for (let i = 0; i <= REPEATS; i++) {
    // Other prompts each time, so that none is cached.
    const seeds = Array.from({ length: count }, (_, k) => 1000 * i + k);
    const began = performance.now();
    await round(seeds);
    const rate = count * EACH / (performance.now() - began) * 1000;
    if (i > 0) rates.push(rate);
  }
  return rates.sort((a, b) => a - b);
}

/** The rates of `generateBatch`, by the number of texts. */
async function batchRates(): Promise<number[]> {
  using qwen = await loadQwen3(model, {
    device,
    ...(webgpu ? { webgpu } : {}),
    context: 1024,
  });
  console.log(`${model} on ${qwen.device.adapter}, ${EACH} tokens each`);
  const rates: number[] = [];
  for (const count of COUNTS) {
    const all = await ratesOf(
      count,
      (seeds) =>
        Promise.resolve(qwen.generateBatch(seeds.map(promptOf), {
          temperature: 0,
          maxTokens: EACH,
          ignoreEos: true,
        })),
    );
    rates.push(all[REPEATS >> 1]);
  }
  return rates;
}

async function startServer() {
  const child = new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "-A", "--no-lock", "tasks/serve.ts", "--port", "0"],
      ...["--model", model, "--device", device, "--context", "1024"],
      ...(webgpu ? ["--webgpu", webgpu] : []),
      ...["--slots", `${Math.max(...COUNTS)}`],
    ],
    cwd: new URL("..", import.meta.url),
    stderr: "piped",
  }).spawn();
  let text = "";
  const found = Promise.withResolvers<string>();
  (async () => {
    for await (
      const part of child.stderr.pipeThrough(new TextDecoderStream())
    ) {
      text += part;
      const [, url] = / at (http:\S+)\/v1/.exec(text) ?? [];
      if (url) found.resolve(url);
    }
    found.reject(new Error(text));
  })();
  const url = await found.promise;
  while (!(await fetch(`${url}/health`)).ok) {
    await new Promise((done) => setTimeout(done, 100));
  }
  return { url, stop: () => child.kill("SIGTERM"), ended: child.status };
}

const direct = await batchRates();
const { url, stop, ended } = await startServer();
for (const [i, count] of COUNTS.entries()) {
  for (const stream of [false, true]) {
    const rates = await ratesOf(
      count,
      (seeds) =>
        Promise.all(seeds.map(async (seed) => {
          const response = await fetch(`${url}/v1/completions`, {
            method: "POST",
            body: JSON.stringify({
              prompt: promptOf(seed),
              max_tokens: EACH,
              temperature: 0,
              ignore_eos: true,
              stream,
            }),
          });
          const text = await response.text();
          if (!response.ok) throw new Error(text);
        })),
    );
    const [low, rate, high] = [0, REPEATS >> 1, REPEATS - 1]
      .map((at) => Math.round(rates[at]));
    console.log(
      `${`${count}`.padStart(3)} clients, ${
        stream ? "streams " : "whole   "
      } ` +
        `${rate} (${low}–${high}) tokens/s, ` +
        `${(rate / direct[i]).toFixed(2)} × generateBatch's ${
          Math.round(direct[i])
        }`,
    );
  }
}
stop();
await ended;
