/**
 * Runs in a process of its own for `deno task bench`: what a first use costs. One
 * line of JSON, see {@linkcode Fresh}; memory in bytes.
 *
 *   deno run -A bench/fresh.ts               # opens a device, no more
 *   deno run -A bench/fresh.ts MODEL PROMPT  # loads and generates after PROMPT tokens
 *
 * @module
 */
import { openDevice } from "../lib/open_device.ts";
import { loadQwen3 } from "../lib/load.ts";
import { prepareEnvironment } from "../lib/webgpu/environment.ts";
import { generate } from "./model_rows.ts";

/** What a fresh process saw. */
export interface Fresh {
  /** Resident memory, at its highest since the process began. */
  peakBytes: number;
  /** Absent where no model was asked for. */
  loaded?: {
    loadMs: number;
    /** Of the first generation, from the call. */
    firstTokenMs: number;
    /** From the start of the process. */
    processMs: number;
    /** Resident memory, at its highest until the model was loaded. */
    loadPeakBytes: number;
  };
}

const FIRST_TOKENS = 4;

/** Resident memory at its highest. */
function peakBytes(): number {
  const status = Deno.readTextFileSync("/proc/self/status"); // Linux
  return 1024 * Number(/VmHWM:\s*(\d+) kB/.exec(status)![1]);
}

if (import.meta.main) {
  prepareEnvironment();
  const [model, prompt] = Deno.args;
  let loaded: Fresh["loaded"];
  if (model === undefined) (await openDevice())[Symbol.dispose]();
  else {
    const began = performance.now();
    using qwen = await loadQwen3(model, { device: "gpu" });
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
