/**
 * Run Qwen3 from TypeScript on Deno's built-in WebGPU, or on the CPU: no native
 * add-on, no build step, no model conversion.
 *
 * ```ts
 * import process from "node:process";
 * import { loadQwen3 } from "./mod.ts";
 *
 * using qwen = await loadQwen3(); // the embedded story model; or "Qwen/Qwen3-0.6B"
 *
 * const reply = await qwen.generate("Once upon a time", { maxTokens: 32 });
 * console.log(reply.text, reply.finishReason);
 *
 * const run = qwen.generate("A dog", { maxTokens: 32 }); // or as it is written:
 * for await (const { text } of run) process.stdout.write(text);
 * console.log(`\n${run.stats.summary}`);
 * ```
 *
 * The kernels can also be used on their own: see {@linkcode openDevice} and {@linkcode
 * matmul}, or {@linkcode gemm}, {@linkcode gemv} and {@linkcode batchedGemm}.
 *
 * @module
 */
export { DEFAULT_MODEL, loadQwen3, type Qwen3 } from "./lib/load.ts";
export type { Engine, EngineStats } from "./lib/engine/engine.ts";
export type { EngineOptions } from "./lib/engine/options.ts";
export type { PageStats } from "./lib/engine/pages.ts";
export {
  DeviceError,
  MemoryError,
  NoAdapterError,
  OptionError,
} from "./lib/errors.ts";
export type { LoadProgress } from "./lib/checkpoint/sources.ts";
export type { Dtype } from "./lib/dtype.ts";
export type {
  AdapterClass,
  Capabilities,
  Compiler,
  SubgroupMatrix,
} from "./lib/dispatch/capabilities.ts";
export type { Constants } from "./lib/dispatch/shapes.ts";
export type { Device, Qwen3Options } from "./lib/place.ts";
export type {
  BatchPiece,
  BatchReply,
  BatchRun,
  FinishReason,
  GenerateOptions,
  Piece,
  Reply,
  Run,
  RunStats,
  Sequence,
  SequenceReply,
} from "./lib/generate.ts";
export type {
  ContentPart,
  Message,
  ReasoningPart,
  TextPart,
  Tool,
  ToolCall,
  ToolCallPart,
  ToolResultPart,
} from "./lib/text/conversation.ts";
export { type ChatOptions, renderChat } from "./lib/text/chat_template.ts";
export { STORY_TEMPLATE } from "./lib/text/story_template.ts";
export type { Prompt, PromptOptions } from "./lib/text/prompt.ts";
export type {
  EmbedOptions,
  Ranking,
  RerankOptions,
  Text,
} from "./lib/text/embedding.ts";
export type { PieceKind } from "./lib/text/reply.ts";
export type {
  Experts,
  Qwen3Config,
  YarnScaling,
} from "./lib/checkpoint/config.ts";
export type {
  Chat,
  ChatContent,
  ChatSettings,
  SendOptions,
} from "./lib/engine/chat.ts";
export type {
  LoadChatOptions,
  SaveChatOptions,
} from "./lib/engine/chat_file.ts";
export type { CacheDtype } from "./lib/formats/cached.ts";
export type { KeptCache } from "./lib/model/kv_cache.ts";
export type { Fallback, Runner } from "./lib/model/runner.ts";
export type {
  RowPart,
  Rows,
  RowsRoom,
  RowsSize,
  RowText,
} from "./lib/model/rows.ts";
export type { Paging } from "./lib/model/kv_cache.ts";
export type {
  Logprobs,
  MaskSource,
  SampledTokens,
  Sampling,
  SamplingOptions,
  TokenLogprob,
  TokenMask,
} from "./lib/model/sampling.ts";
export type { DeviceKind } from "./lib/dispatch/device.ts";
export { SchemaError } from "./lib/text/grammar/mod.ts";
export type { Tokenizer } from "./lib/text/tokenizer.ts";
export type { Choice } from "./lib/dispatch/choice.ts";
export { openDevice } from "./lib/device/open_device.ts";
export { Gpu } from "./lib/webgpu/device.ts";
export type {
  AdapterName,
  DeviceOptions,
  WebGpuName,
} from "./lib/webgpu/implementation.ts";
export { Tensor } from "./lib/webgpu/tensor.ts";
export {
  batchedGemm,
  gemm,
  gemv,
  matmul,
  type MatmulOptions,
} from "./lib/matmul.ts";
export {
  chooseMatmul,
  type MatmulChoice,
  type MatmulKernel,
} from "./lib/dispatch/matmul.ts";
export {
  type Served,
  Server,
  type ServerOptions,
} from "./lib/server/server.ts";
export type { Submitting } from "./lib/server/service.ts";
export { prepareEnvironment } from "./lib/webgpu/environment.ts";
