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
} from "../../lib/tuning_file.ts";
import { linearKey } from "../../lib/dispatch/keys.ts";
import { bf16 } from "../../lib/formats/bf16.ts";
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
    constants: { WORKGROUP: 64, ROWS: 4, STEPS: 2 },
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
const tuning = await tuningText();
await generate(undamaged());
say({ base: peak() });
for (let index = first; index < first + count; index++) {
  const input = inputOf(seed, index, tuning);
  say({ begins: index, what: input.what });
  let outcome: string | undefined;
  try {
    await (input.tuning === undefined ? generate(input) : tune(input.tuning));
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
