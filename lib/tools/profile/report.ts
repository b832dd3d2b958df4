/**
 * What a profile says, as data: `deno task profile --json` writes exactly this.
 * Times are milliseconds, rates GB/s (10⁹ bytes) and TFLOP/s (10¹² operations).
 *
 * @module
 */
import type { Choice } from "../../dispatch/choice.ts";
import type { Fallback } from "../../model/runner.ts";
import type { Constants } from "../../dispatch/shapes.ts";

/** All of a profile. */
export interface ProfileReport {
  /** What holds the run back and what to do, the most important first. */
  verdicts: Verdict[];
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
  /** Sequences that run together. */
  batch: number;
  /** What this adapter can do, measured in this run; absent on the CPU. */
  peaks?: Peaks;
  /** `timestamps`: each dispatch; `passes`: wall time of whole passes; `verbs`: wall time of the CPU's verbs. */
  timedBy: "timestamps" | "passes" | "verbs";
  /** What a reader of the numbers must know: what was sampled, scaled or left out. */
  notes: string[];
  phases: Phase[];
  coverage: Coverage;
  /** Operations that a GPU run had to do on the CPU. */
  fallbacks: readonly Fallback[];
  /** The decode loop as `generate` runs it; absent where `--kernels` was given. */
  loop?: Loop;
  /** GPU over CPU; with `--compare`. */
  compare?: Comparison[];
  timeline: TimelineEvent[];
}

/** Something that holds a run back, and what to do about it. */
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

/** Rates that kernels made for nothing else reach on an adapter. */
export interface Peaks {
  readGBps: number;
  /** Of buffers, where the adapter reads textures faster: `readGBps` is theirs then. */
  bufferGBps?: number;
  f32TFLOPS: number;
  /** Absent without `shader-f16`. */
  f16TFLOPS?: number;
  /** Workgroups of 256 threads from which on the f32 rate is within a tenth of its best. */
  fillWorkgroups: number;
}

/** Prefill or decode. */
export interface Phase {
  name: "prefill" | "decode";
  /** Tokens of one step: all prompts, or one of each sequence. */
  tokens: number;
  /** Decode steps, or prompts of a batch, that were timed; `notes` says which. */
  sampledSteps: number;
  /** One step as `generate` runs it; a prefill is all prompts, one after the other. */
  ms: number;
  /** The same step with a pass for each dispatch; absent where not timed so. */
  profiledMs?: number;
  /** `profiledMs / ms`. */
  factor?: number;
  /** What `profiledMs` has beyond its operations: between passes. */
  betweenMs?: number;
  /** Dispatches of a step; verbs on the CPU. */
  dispatches: number;
  tokensPerSecond: number;
  flops: number;
  bytes: number;
  /** The last one is what lies between the others, so that their times sum to `profiledMs`. */
  operations: Operation[];
}

/** One kind of operation of a phase, over all layers. */
export interface Operation {
  /** As a model person names it: `qkv_proj`, `attention scores`. */
  name: string;
  group: "linear" | "attention" | "norm" | "embedding" | "sampling" | "other";
  /** Whether it is a matrix product. */
  matmul: boolean;
  /** `[5, 1024] × [1024, 2048]` */
  shape: string;
  /** `f32 × bf16 → f32` */
  dtypes: string;
  /** Kernels that ran. */
  kernel: string;
  /** What the same dispatches also did: `RMSNorm`, `residual add`, … */
  fused: string[];
  constants: Constants;
  /** Why this kernel with these constants. */
  reason: string;
  /** Dispatches per step, but for those that only sum the parts of a product. */
  calls: number;
  /** Workgroups of the largest dispatch. */
  workgroups: number;
  /** Threads of a workgroup, where the kernel says. */
  threads?: number;
  /** Per profiled step; absent where the adapter has no timestamps. */
  ms?: number;
  /** Of the step as it runs; `between passes` has none, it is not there unprofiled. */
  share?: number;
  flops: number;
  /** Bytes that must move at least: each operand once. */
  bytes: number;
  tflops?: number;
  gbps?: number;
  /** What would limit it on this adapter if nothing else did. */
  bound?: "memory" | "f32" | "f16";
  /** Of that limit. */
  fraction?: number;
}

/** Which matrix products ran on the GPU. */
export interface Coverage {
  calls: { gpu: number; total: number };
  flops: { gpu: number; total: number };
  refusals: Refusal[];
}

/** Products that no allowed kernel took. */
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

/** The decode loop; times are of a step, which gives a token of each sequence. */
export interface Loop {
  /** After the first tokens, which belong to the prefill. */
  steps: number;
  /** Of all sequences in these steps. */
  tokens: number;
  /** Steps between two readbacks; the largest. */
  chunk: number;
  encodeMs: number;
  submitMs: number;
  /** Until a readback is mapped; the GPU works meanwhile. */
  waitMs: number;
  readbackMs: number;
  /** The GPU's own time; absent without timestamps. */
  gpuMs?: number;
  tokensPerSecond: number;
  /** As if the GPU never waited for the CPU. */
  tokensPerSecondWithoutIdle?: number;
  /** Share of the time from first to last pass in which the GPU ran none. */
  idle?: number;
  /** Its gaps, the longest first. */
  gaps: { ms: number; count: number }[];
  /** From the call to the first token. */
  firstTokenMs: number;
}

/** GPU over CPU. */
export interface Comparison {
  phase: "prefill" | "decode";
  what: "Linear" | "attention" | "whole";
  gpuMs?: number;
  cpuMs: number;
  factor?: number;
  target: [number, number];
}

/** Something that took time, in milliseconds since the profile began. */
export interface TimelineEvent {
  lane: "GPU" | "CPU";
  /** What was going on. */
  part: "decode loop" | "profiled prefill" | "profiled decode";
  name: string;
  /** Kernel, shape and element types of what was timed alone. */
  detail?: string;
  begin: number;
  ms: number;
}
