/**
 * Run Qwen3 from TypeScript on Deno's built-in WebGPU, or on the CPU: no native
 * add-on, no build step, no model conversion.
 *
 * ```ts
 * import { loadQwen3 } from "./mod.ts";
 *
 * using qwen = await loadQwen3(); // the embedded story model; or "Qwen/Qwen3-0.6B"
 * const run = qwen.generate("Once upon a time", { maxTokens: 16, temperature: 0 });
 * for await (const { text } of run) console.log(text);
 * console.log(run.finishReason, run.stats.summary);
 * ```
 *
 * The kernels beneath are there to be used alone: {@linkcode openDevice},
 * {@linkcode matmul} and what it chooses from.
 *
 * @module
 */
export {
  DEFAULT_MODEL,
  loadQwen3,
  type Prompt,
  type Qwen3,
} from "./lib/load.ts";
export { MemoryError } from "./lib/model/kv_cache.ts";
export type { Device, Qwen3Options } from "./lib/place.ts";
export type {
  BatchPiece,
  BatchRun,
  FinishReason,
  GenerateOptions,
  Piece,
  Run,
  RunStats,
  Sequence,
} from "./lib/generate.ts";
export type { Message, Tool, ToolCall } from "./lib/text/chat_template.ts";
export type { LoadProgress } from "./lib/checkpoint/open.ts";
export type { Qwen3Config, YarnScaling } from "./lib/checkpoint/config.ts";
export type { Fallback } from "./lib/model/runner.ts";
export type { Sampling, SamplingOptions } from "./lib/model/sampling.ts";
export type { DeviceKind } from "./lib/select_device.ts";
export type { Tokenizer } from "./lib/text/tokenizer.ts";
export {
  type Choice,
  DeviceError,
  type DeviceOptions,
  Gpu,
  NoAdapterError,
  openDevice,
} from "./lib/webgpu/device.ts";
export type { Dtype } from "./lib/model/ops.ts";
export { Tensor, type TensorPart } from "./lib/webgpu/tensor.ts";
export {
  batchedGemm,
  gemm,
  gemv,
  matmul,
  type MatmulOptions,
} from "./lib/matmul.ts";
export { type Capabilities } from "./lib/dispatch/linear.ts";
export {
  chooseMatmul,
  type MatmulChoice,
  type MatmulKernel,
} from "./lib/dispatch/matmul.ts";
