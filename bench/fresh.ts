/**
 * Measures a first use, as a script to run in its own process. Prints one line of JSON,
 * a {@linkcode Fresh}.
 *
 *   deno run -A bench/fresh.ts DEVICE               # only opens a device
 *   deno run -A bench/fresh.ts DEVICE MODEL PROMPT  # loads, generates after PROMPT tokens
 *
 * DEVICE is the JSON of what `openDevice` takes, such as {}.
 *
 * @module
 */
import { openDevice } from "../lib/device/open_device.ts";
import { loadQwen3 } from "../lib/load.ts";
import { prepareEnvironment } from "../lib/webgpu/environment.ts";
import { generate } from "./model_rows.ts";

/** Measured in a fresh process. */
export interface Fresh {
  /** Peak resident memory of the process. */
  peakBytes: number;
  /** Absent without a model. */
  loaded?: {
    loadMs: number;
    /** From the first call to `generate` to its first token. */
    firstTokenMs: number;
    /** From the start of the process to the first token. */
    processMs: number;
    /** Peak resident memory until the model was loaded. */
    loadPeakBytes: number;
  };
}

const FIRST_TOKENS = 4;

/** Peak resident memory so far. */
function peakBytes(): number {
  const status = Deno.readTextFileSync("/proc/self/status"); // Linux
  return 1024 * Number(/VmHWM:\s*(\d+) kB/.exec(status)![1]);
}

if (import.meta.main) {
  prepareEnvironment();
  const [options, model, prompt] = Deno.args, device = JSON.parse(options);
  let loaded: Fresh["loaded"];
  if (model === undefined) (await openDevice(device))[Symbol.dispose]();
  else {
    const began = performance.now();
    using qwen = await loadQwen3(model, { ...device, device: "gpu" });
    const loadMs = performance.now() - began;
    const loadPeakBytes = peakBytes();
    const before = performance.now();
    const stats = await generate(qwen, Number(prompt), FIRST_TOKENS);
    const firstTokenMs = stats.timeToFirstTokenMs;
    const processMs = before + firstTokenMs;
    loaded = { loadMs, firstTokenMs, processMs, loadPeakBytes };
  }
  const fresh: Fresh = { peakBytes: peakBytes(), loaded };
  console.log(JSON.stringify(fresh));
}
