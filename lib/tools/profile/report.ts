/**
 * A profile as data, exactly as `deno task profile --json` writes it. Times are in
 * milliseconds, rates in GB/s (10⁹ bytes) and TFLOP/s (10¹² operations).
 *
 * @module
 */
import type { Choice } from "../../dispatch/choice.ts";
import type { Fallback } from "../../model/runner.ts";
import type { Constants } from "../../dispatch/shapes.ts";

/** A complete profile. */
export interface ProfileReport {
  /** What limits the run and what to do about it, most important first. */
  verdicts: Verdict[];
  /** Tokens per second, one rate for the prefill and one for decode. */
  rates: Rate[];
  model: string;
  device: {
    kind: "gpu" | "cpu";
    adapter: string;
    /** Whether the adapter is a software renderer. */
    software: boolean;
    choices: readonly Choice[];
  };
  promptTokens: number;
  maxTokens: number;
  /** Number of sequences. */
  batch: number;
  /** The adapter's peak rates, measured in this run; absent on the CPU. */
  peaks?: Peaks;
  /** GPU time of each dispatch, wall time of whole passes, or wall time of the CPU's ops. */
  timedBy: "timestamps" | "passes" | "verbs";
  /** How to read the numbers: what was sampled, scaled or left out. */
  notes: string[];
  phases: Phase[];
  coverage: Coverage;
  /** Operations of a GPU run that fell back to the CPU. */
  fallbacks: readonly Fallback[];
  /** The decode loop as `generate` runs it; absent with `--kernels`. */
  loop?: Loop;
  /** GPU over CPU; with `--compare`. */
  compare?: Comparison[];
  timeline: TimelineEvent[];
}

/** The rate of a phase, over all sequences. */
export interface Rate {
  phase: Phase["name"];
  tokensPerSecond: number;
  /** What was timed. */
  kind: string;
}

/** Something that limits a run, and what to do about it. */
export interface Verdict {
  rule:
    | "coverage"
    | "cpu chosen"
    | "unpacked"
    | "software renderer"
    | "readbacks"
    | "encoding"
    | "idle"
    | "compare"
    | "decode"
    | "prefill"
    | "untimed";
  severity: "red" | "yellow" | "green";
  /** One sentence. */
  text: string;
}

/** Rates that purpose-built kernels reach on an adapter. */
export interface Peaks {
  readGBps: number;
  /** Rate of buffers if textures are faster; `readGBps` is the textures' rate then. */
  bufferGBps?: number;
  f32TFLOPS: number;
  /** Absent without `shader-f16`. */
  f16TFLOPS?: number;
  /** Fewest workgroups of 256 threads whose f32 rate is within a tenth of the best. */
  fillWorkgroups: number;
}

/** Prefill or decode. */
export interface Phase {
  name: "prefill" | "decode";
  /** Tokens per step: all prompts together, or one per sequence. */
  tokens: number;
  /** Decode steps or prompts that were timed; `notes` says which. */
  sampledSteps: number;
  /** One step as `generate` runs it; a prefill is all prompts one after another. */
  ms: number;
  /** That step with one pass per dispatch; absent if not timed that way. */
  profiledMs?: number;
  /** `profiledMs / ms`. */
  factor?: number;
  /** The part of `profiledMs` between passes, outside every operation. */
  betweenMs?: number;
  /** Dispatches per step; ops on the CPU. */
  dispatches: number;
  flops: number;
  bytes: number;
  /** Times add up to `profiledMs`: the last operation is the time between the others. */
  operations: Operation[];
}

/** One kind of operation in a phase, summed over all layers. */
export interface Operation {
  /** Name as in the model: `qkv_proj`, `attention scores`. */
  name: string;
  group: "linear" | "attention" | "norm" | "embedding" | "sampling" | "other";
  /** Whether it is a matmul. */
  matmul: boolean;
  /** `[5, 1024] × [1024, 2048]` */
  shape: string;
  /** `f32 × bf16 → f32` */
  dtypes: string;
  /** Kernels that ran. */
  kernel: string;
  /** What is fused into the same dispatches: `RMSNorm`, `residual add`, … */
  fused: string[];
  constants: Constants;
  /** Why this kernel with these constants. */
  reason: string;
  /** Dispatches per step, without those that only sum the splits of a matmul. */
  calls: number;
  /** Workgroups of the largest dispatch. */
  workgroups: number;
  /** Threads per workgroup, if the kernel has a constant for it. */
  threads?: number;
  /** Time per profiled step; absent if the adapter has no timestamps. */
  ms?: number;
  /** Share of the unprofiled step, so `between passes` has none. */
  share?: number;
  flops: number;
  /** Least bytes that must move, counting each operand once. */
  bytes: number;
  tflops?: number;
  gbps?: number;
  /** The adapter's limit that bounds it. */
  bound?: "memory" | "f32" | "f16";
  /** Fraction of that limit that was reached. */
  fraction?: number;
}

/** How much of the matmuls ran on the GPU. */
export interface Coverage {
  calls: { gpu: number; total: number };
  flops: { gpu: number; total: number };
  refusals: Refusal[];
}

/** Matmuls that an allowed kernel refused. */
export interface Refusal {
  /** `[GPU] GEMV rejected: shape mismatch (need 2D×1D, got 2D×2D): [5, 1024] × [1024, 2048]` */
  line: string;
  kernel: string;
  need: string;
  got: string;
  shape: string;
  operations: string[];
  count: number;
}

/** The decode loop; times are per step, which yields one token per sequence. */
export interface Loop {
  /** Steps after the first tokens, which belong to the prefill. */
  steps: number;
  /** Tokens of all sequences in these steps. */
  tokens: number;
  /** The most steps between two readbacks. */
  chunk: number;
  /** Wall time, the GPU's idling included. */
  stepMs: number;
  encodeMs: number;
  submitMs: number;
  /** Waiting for readbacks to be mapped, while the GPU works. */
  waitMs: number;
  readbackMs: number;
  /** GPU time; absent without timestamps. */
  gpuMs?: number;
  /** Share of the time from the first to the last pass in which the GPU was idle. */
  idle?: number;
  /** Idle gaps grouped by length, the longest first. */
  gaps: { ms: number; count: number }[];
  /** From the call to the first token. */
  firstTokenMs: number;
}

/** Speedup of the GPU over the CPU. */
export interface Comparison {
  phase: "prefill" | "decode";
  what: "Linear" | "attention" | "whole";
  gpuMs?: number;
  cpuMs: number;
  factor?: number;
  target: [number, number];
}

/** An event, in milliseconds since the profile began. */
export interface TimelineEvent {
  lane: "GPU" | "CPU";
  /** What was being measured. */
  part: "decode loop" | "profiled prefill" | "profiled decode";
  name: string;
  /** Kernel, shape and element types of a dispatch that was timed by itself. */
  detail?: string;
  begin: number;
  ms: number;
}
