/**
 * A Qwen3 checkpoint, loaded and ready: the public door to the runner.
 *
 * @module
 */
import { type Message, renderChat } from "./chat_template.ts";
import {
  type Checkpoint,
  type LoadProgress,
  openCheckpoint,
} from "./checkpoint.ts";
import type { Qwen3Config } from "./config.ts";
import { DebugRunner } from "./debug.ts";
import { type Choice, DeviceError, type Gpu } from "./device.ts";
import { type GenerateOptions, Run } from "./generate.ts";
import { cacheBytes } from "./kv_cache.ts";
import type { Fallback, Runner } from "./runner.ts";
import { CpuRunner } from "./runner_cpu.ts";
import { GpuRunner } from "./runner_gpu.ts";
import { resolveSampling, type Sampling } from "./sampling.ts";
import { type DeviceKind, selectDevice } from "./select_device.ts";
import {
  createTokenizer,
  readTokenizerFiles,
  type Tokenizer,
  type TokenizerFiles,
} from "./tokenizer.ts";

/** The embedded story model, beside this module wherever that was loaded from. */
export const DEFAULT_MODEL: string =
  new URL("../models/stories-3m/", import.meta.url).href;

/** Positions that a model has room for unless asked for more. */
const DEFAULT_CONTEXT = 4096;

/** How a model is loaded. */
export interface Qwen3Options {
  /** Where it runs; `auto` by default. */
  device?: DeviceKind;
  /**
   * `f32` computes and caches in f32 throughout; `auto` may use f16 where that is
   * faster and safe. Weights stay as stored under both.
   */
  precision?: "auto" | "f32";
  /** Tokens that a sequence may have; by default 4,096 or what model and device allow. */
  context?: number;
  onProgress?: (progress: LoadProgress) => void;
  /** Told once, in a line, what a person should know: a change of device. */
  onNotice?: (notice: string) => void;
  /** Ends loading. */
  signal?: AbortSignal;
  /** Any WebGPU implementation instead of `navigator.gpu`. */
  gpu?: GPU;
  /**
   * With `device: "gpu"`: checks every operation against the CPU as the model runs,
   * slowly, and throws at the first that differs, naming layer, operation and values.
   */
  debug?: boolean;
}

/** Where a model runs. */
export interface Device {
  kind: "gpu" | "cpu";
  /** The adapter's own name, or what the CPU path uses. */
  adapter: string;
  /** Every choice made, with its reason. */
  choices: readonly Choice[];
}

/**
 * Loads a Qwen3.
 *
 * `model` is a directory, an http(s) folder, a repository id (`Qwen/Qwen3-0.6B`,
 * `owner/name@revision`) in the Hugging Face cache or downloaded into it, or
 * `synthetic:qwen3-0.6b?seed=1`; without one it is the embedded story model.
 *
 * ```ts
 * import { loadQwen3 } from "../mod.ts";
 *
 * using qwen = await loadQwen3();
 * for await (const { text } of qwen.generate("Once upon a time", { maxTokens: 8 })) {
 *   console.log(text);
 * }
 * ```
 *
 * @throws {Error} if the checkpoint is missing, broken or not a dense Qwen3, or
 * the device cannot hold it.
 */
export async function loadQwen3(
  model: string = DEFAULT_MODEL,
  options: Qwen3Options = {},
): Promise<Qwen3> {
  const { device: kind = "auto", precision = "auto" } = options;
  if (!["auto", "gpu", "cpu"].includes(kind)) {
    throw new Error(
      `Cannot load ${model}: device is "${kind}", must be auto, gpu or cpu`,
    );
  }
  if (!["auto", "f32"].includes(precision)) {
    throw new Error(
      `Cannot load ${model}: precision is "${precision}", must be auto or f32`,
    );
  }
  if (options.debug && kind !== "gpu") {
    throw new Error(
      `Cannot load ${model}: debug compares a GPU with the CPU, device is "${kind}", must be gpu`,
    );
  }
  const { signal, onProgress } = options;
  const checkpoint = await openCheckpoint(model, { signal, onProgress });
  try {
    checkContext(checkpoint, options.context);
    return await Qwen3.load(checkpoint, options);
  } catch (error) {
    await checkpoint[Symbol.asyncDispose]();
    throw error;
  }
}

/** A loaded Qwen3. Made by {@linkcode loadQwen3}; dispose it to free the device. */
export class Qwen3 implements Disposable {
  readonly config: Qwen3Config;
  readonly #checkpoint: Checkpoint;
  readonly #options: Qwen3Options;
  readonly #files: TokenizerFiles;
  #tokenizer?: Tokenizer;
  #placed: Placed;
  #busy = false;

  private constructor(
    checkpoint: Checkpoint,
    files: TokenizerFiles,
    placed: Placed,
    options: Qwen3Options,
  ) {
    this.config = checkpoint.config;
    this.#checkpoint = checkpoint;
    this.#files = files;
    this.#placed = placed;
    this.#options = options;
  }

  /** @ignore Use {@linkcode loadQwen3}. */
  static async load(
    checkpoint: Checkpoint,
    options: Qwen3Options,
  ): Promise<Qwen3> {
    const files = await readTokenizerFiles(checkpoint);
    const placed = await place(checkpoint, options);
    return new Qwen3(checkpoint, files, placed, options);
  }

  /** Where it runs, with every choice and its reason. */
  get device(): Device {
    return this.#placed.device;
  }

  /** What runs it, for whoever measures or checks it. */
  get runner(): Runner {
    return this.#placed.runner;
  }

  /** Tokens that a sequence may have, prompt included. */
  get context(): number {
    return this.#placed.runner.context;
  }

  /** Operations that a GPU run had to do on the CPU. */
  get fallbacks(): readonly Fallback[] {
    return this.#placed.runner.fallbacks;
  }

  /**
   * Parsed when first asked for: token ids need none.
   *
   * @throws {Error} if the checkpoint has no tokenizer, or a broken one.
   */
  get tokenizer(): Tokenizer {
    return this.#tokenizer ??= createTokenizer(
      this.#checkpoint.name,
      this.#files,
    );
  }

  /** Whether there is a tokenizer at all. */
  get hasTokenizer(): boolean {
    return this.#files.tokenizer !== undefined;
  }

  /**
   * Logits after the last of `tokenIds`, `[vocab]`, or after each of them (`all`),
   * `[tokens, vocab]` in row order; always from an empty cache.
   *
   * @throws {Error} if there are no tokens, too many, or one is not in the vocabulary.
   */
  async logits(
    tokenIds: ArrayLike<number>,
    options: { all?: boolean; signal?: AbortSignal } = {},
  ): Promise<Float32Array> {
    const tokens = this.#check("compute logits", Array.from(tokenIds));
    return await this.#alone(() => this.#placed.runner.logits(tokens, options));
  }

  /**
   * Generates text after a prompt: words, a conversation, or token ids. Instruct
   * checkpoints get words as a user's message through their chat template, unless
   * `raw`.
   *
   * @throws {Error} if the prompt is empty or longer than the context, an option is
   * out of range, or text is given to a checkpoint without a tokenizer.
   */
  generate(
    prompt: string | readonly Message[] | readonly number[],
    options: GenerateOptions = {},
  ): Run {
    const { generation } = this.#checkpoint;
    const sampling = resolveSampling(options, generation);
    const tokens = this.#check("generate", this.#encode(prompt, options));
    const room = this.context - tokens.length + 1; // the last token is not cached
    const { maxTokens = room, stop = [], signal } = options;
    if (!Number.isInteger(maxTokens) || maxTokens < 1) {
      throw new RangeError(
        `Cannot generate: maxTokens is ${maxTokens}, must be an integer of at least 1`,
      );
    }
    const stops = typeof stop === "string" ? [stop] : stop;
    if (stops.length && !this.hasTokenizer) void this.tokenizer; // throws
    const eosTokenIds = options.ignoreEos
      ? []
      : generation.eosTokenIds ?? this.config.eosTokenIds;
    const most = Math.min(maxTokens, room);
    return new Run({
      start: () => this.#start(tokens, sampling, most, signal),
      promptTokens: tokens.length,
      maxTokens: most,
      sampling,
      eosTokenIds,
      stop: stops,
      tokenizer: this.hasTokenizer ? this.tokenizer : undefined,
      device: () => this.device.adapter,
      signal,
    });
  }

  /** Runs on the device; under `auto` once more on the CPU if that fails before the first token. */
  async *#start(
    tokens: number[],
    sampling: Sampling,
    maxTokens: number,
    signal?: AbortSignal,
  ): ReturnType<Runner["generate"]> {
    this.#enter();
    let begun = false;
    try {
      const run = () =>
        this.#placed.runner.generate(tokens, sampling, maxTokens, signal);
      try {
        for await (const ids of run()) {
          begun = true;
          yield ids;
        }
      } catch (error) {
        const retry = error instanceof DeviceError && !begun &&
          (this.#options.device ?? "auto") === "auto" &&
          this.device.kind === "gpu";
        if (!retry) throw error;
        this.#placed.runner[Symbol.dispose]();
        this.#placed = await placeOnCpu(
          this.#checkpoint,
          { ...this.#options, context: this.context, signal },
          gone(error, this.#options),
        );
        yield* run();
      }
    } finally {
      this.#busy = false;
    }
  }

  #encode(
    prompt: string | readonly Message[] | readonly number[],
    { raw, system, thinking }: GenerateOptions,
  ): number[] {
    if (typeof prompt !== "string") {
      if (prompt.length === 0) return [];
      if (prompt.every((item) => typeof item === "number")) return [...prompt];
    }
    const { tokenizer } = this;
    if (typeof prompt === "string") {
      if (prompt === "") return [];
      if (raw || tokenizer.chatTemplate === undefined) {
        if (system !== undefined) {
          throw new Error(
            `Cannot generate: a system message needs a chat template, ${
              raw
                ? "and raw leaves it out"
                : `${this.#checkpoint.name} has none`
            }`,
          );
        }
        return tokenizer.encode(prompt);
      }
    } else if (tokenizer.chatTemplate === undefined) {
      throw new Error(
        `Cannot generate: messages need a chat template, ${this.#checkpoint.name} has none`,
      );
    }
    const messages = typeof prompt === "string"
      ? [{ role: "user" as const, content: prompt }]
      : prompt as readonly Message[];
    const text = renderChat(
      tokenizer.chatTemplate!,
      system === undefined
        ? messages
        : [{ role: "system", content: system }, ...messages],
      { thinking, variables: tokenizer.specialTokens },
    );
    return tokenizer.encode(text, { addSpecialTokens: false });
  }

  #check(action: string, tokens: number[]): number[] {
    const { vocabSize } = this.config;
    if (tokens.length === 0) {
      throw new Error(
        `Cannot ${action}: the prompt is empty, it must have a token at least`,
      );
    }
    const wrong = tokens.findIndex((id) =>
      !Number.isInteger(id) || id < 0 || id >= vocabSize
    );
    if (wrong >= 0) {
      throw new RangeError(
        `Cannot ${action}: token ${wrong} is ${
          tokens[wrong]
        }, ids must be integers from 0 to ${vocabSize - 1}`,
      );
    }
    if (tokens.length > this.context) {
      throw new RangeError(
        `Cannot ${action}: the prompt has ${tokens.length} tokens, the context has room for ${this.context}`,
      );
    }
    return tokens;
  }

  #enter(): void {
    if (this.#busy) {
      throw new Error(
        "Cannot run a model twice at once: another run of it is not over yet",
      );
    }
    this.#busy = true;
  }

  async #alone<R>(work: () => Promise<R>): Promise<R> {
    this.#enter();
    try {
      return await work();
    } finally {
      this.#busy = false;
    }
  }

  [Symbol.dispose](): void {
    this.#placed.runner[Symbol.dispose]();
    Promise.resolve(this.#checkpoint[Symbol.asyncDispose]()).catch(() => {});
  }
}

/** A runner and how it came to be. */
interface Placed {
  runner: Runner;
  device: Device;
}

async function place(
  checkpoint: Checkpoint,
  options: Qwen3Options,
): Promise<Placed> {
  const kind = options.device ?? "auto";
  const { gpu, choice } = await selectDevice(
    kind,
    checkpoint.config,
    options.gpu,
  );
  if (!gpu) return await placeOnCpu(checkpoint, options, choice);
  try {
    return await placeOnGpu(checkpoint, options, gpu, choice);
  } catch (error) {
    gpu[Symbol.dispose]();
    if (kind !== "auto" || !(error instanceof DeviceError)) throw error;
    return await placeOnCpu(checkpoint, options, gone(error, options));
  }
}

/** The choice that follows the loss of a GPU; tells who wants to know. */
function gone(error: DeviceError, options: Qwen3Options): Choice {
  options.onNotice?.(`${error.message}; going on with the CPU`);
  return { what: "device", value: "cpu", reason: error.message };
}

async function placeOnGpu(
  checkpoint: Checkpoint,
  options: Qwen3Options,
  gpu: Gpu,
  choice: Choice,
): Promise<Placed> {
  const { config } = checkpoint;
  const exact = options.precision === "f32";
  const whole = config.headDim % 8 === 0;
  const cacheDtype = exact || !whole ? "f32" : "f16";
  const context = chooseContext(checkpoint, options, {
    bytes: gpu.limits.maxStorageBufferBindingSize,
    perPosition: cacheBytes(config, 1, 1, cacheDtype) /
      (2 * config.numHiddenLayers),
    whose: `${gpu.name} binds at most`,
  });
  if (gpu.software) requireMemory(checkpoint, context.tokens, cacheDtype);
  const runner = await (options.debug ? DebugRunner : GpuRunner).load(
    gpu,
    checkpoint,
    {
      ...options,
      context: context.tokens,
      cacheDtype,
      f16Products: gpu.f16 && !exact && !gpu.software,
    },
  );
  const products: Choice = {
    what: "products of many rows",
    value: gpu.f16 && !exact && !gpu.software ? "f16, summed in f32" : "f32",
    reason: exact
      ? "precision f32 was asked for"
      : gpu.software
      ? "f16 is not faster on a software renderer"
      : gpu.f16
      ? "faster; rows are scaled into f16's range"
      : "the adapter lacks shader-f16",
  };
  const cache: Choice = {
    what: "KV cache",
    value: cacheDtype,
    reason: exact
      ? "precision f32 was asked for"
      : whole
      ? "half the memory; a value beyond 65,504 makes it f32"
      : `a head of ${config.headDim} values is not whole 16-byte units`,
  };
  const choices = [choice, ...gpu.choices, products, cache, context.choice];
  return {
    runner,
    device: {
      kind: "gpu",
      adapter: gpu.name,
      get choices() {
        return [...choices, ...runner.choices];
      },
    },
  };
}

async function placeOnCpu(
  checkpoint: Checkpoint,
  options: Qwen3Options,
  choice: Choice,
): Promise<Placed> {
  const context = chooseContext(checkpoint, options);
  requireMemory(checkpoint, context.tokens, "f32");
  const runner = await CpuRunner.load(checkpoint, {
    ...options,
    context: context.tokens,
  });
  const { kernel, reason, threads } = runner.ops.info;
  const adapter = `CPU (${threads} ${threads === 1 ? "thread" : "threads"})`;
  const choices = [choice, context.choice, {
    what: "CPU kernels",
    value: kernel,
    reason,
  }];
  return { runner, device: { kind: "cpu", adapter, choices } };
}

/** The context that was asked for, or the largest of at most 4,096 that fits. */
function chooseContext(
  { name, config }: Checkpoint,
  { context }: Qwen3Options,
  room?: { bytes: number; perPosition: number; whose: string },
): { tokens: number; choice: Choice } {
  const trained = config.maxPositionEmbeddings;
  const fits = room ? Math.floor(room.bytes / room.perPosition) : Infinity;
  const choice = (tokens: number, reason: string) => ({
    tokens,
    choice: { what: "context", value: `${tokens} tokens`, reason },
  });
  if (context === undefined) {
    if (fits < Math.min(trained, DEFAULT_CONTEXT)) {
      return choice(
        fits,
        `${room!.whose} ${room!.bytes} bytes of one layer's keys`,
      );
    }
    return trained <= DEFAULT_CONTEXT
      ? choice(trained, "as long as the checkpoint was trained for")
      : choice(
        DEFAULT_CONTEXT,
        `the default; the checkpoint allows ${trained}`,
      );
  }
  if (context > fits) {
    throw new DeviceError(
      `Cannot load ${name}: a context of ${context} tokens takes ${
        context * room!.perPosition
      } bytes for one layer's keys, ${room!.whose} ${room!.bytes}`,
    );
  }
  return choice(context, "it was asked for");
}

function checkContext({ name, config }: Checkpoint, context?: number): void {
  if (context === undefined) return;
  const most = config.maxPositionEmbeddings;
  if (!Number.isInteger(context) || context < 1 || context > most) {
    throw new RangeError(
      `Cannot load ${name}: context is ${context}, must be an integer from 1 to ${most}, what the checkpoint was trained for`,
    );
  }
}

/** Refuses before anything is allocated what main memory cannot hold. */
function requireMemory(
  { name, config, tensors }: Checkpoint,
  context: number,
  dtype: "f16" | "f32",
): void {
  let weights = 0;
  for (const { byteLength } of tensors.values()) weights += byteLength;
  const cache = cacheBytes(config, 1, context, dtype);
  const { available } = Deno.systemMemoryInfo();
  if (weights + cache <= available) return;
  const mb = (bytes: number) => `${Math.ceil(bytes / 1e6)} MB`;
  throw new DeviceError(
    `Cannot load ${name}: it needs ${mb(weights)} for weights and ${
      mb(cache)
    } for a context of ${context} tokens, ${mb(available)} of memory are free`,
  );
}
