/**
 * Places a checkpoint on a device: chooses the device, a context length that fits, and
 * the types of the KV cache and the matmuls, each with a reason.
 *
 * @module
 */
import type { Checkpoint } from "./checkpoint/checkpoint.ts";
import { shownUrl } from "./checkpoint/fetch.ts";
import { contextLimit } from "./checkpoint/config.ts";
import { likely, quantizationNamed } from "./checkpoint/quantization.ts";
import type { LoadProgress } from "./checkpoint/sources.ts";
import {
  DeviceError,
  errorText,
  type OptionKind,
  printable,
  requireKind,
  testKind,
  wrongOption,
} from "./errors.ts";
import { cachedBytes, type CacheDtype } from "./formats/cached.ts";
import { host } from "./host.ts";
import type { Choice } from "./dispatch/choice.ts";
import { chooseContext, type ContextChoice } from "./dispatch/context.ts";
import type { Gpu } from "./webgpu/device.ts";
import { cacheBytes, smallerCache } from "./model/kv_cache.ts";
import {
  CACHE_TYPES,
  cacheRefusal,
  type CacheRequest,
  chooseCacheDtype,
  chooseCpuCacheDtype,
  chooseCpuQuants,
  chooseMatmulDtype,
} from "./dispatch/precision.ts";
import type { Runner } from "./model/runner.ts";
import { type CpuInfo, MOST_THREADS } from "./cpu/ops.ts";
import { CpuRunner } from "./cpu/runner.ts";
import { GpuRunner } from "./gpu/runner.ts";
import type { DeviceKind } from "./dispatch/device.ts";
import { WIDTH } from "./text/messages.ts";
import { givenOptions } from "./text/options.ts";
import { selectDevice } from "./device/select_device.ts";
import {
  checkImplementation,
  type DeviceOptions,
} from "./webgpu/implementation.ts";

/** Options of {@linkcode loadQwen3}. */
export interface Qwen3Options extends DeviceOptions {
  /** The device to run on; `auto` by default. */
  device?: DeviceKind;
  /**
   * `f32` computes and caches everything in f32; `auto` uses f16 where that is faster
   * and safe. It changes no weights.
   */
  precision?: "auto" | "f32";
  /**
   * How keys and values are cached. `auto`: f16 on a GPU, f32 on the CPU path and with
   * `precision: "f32"`. `q8_0` takes about half the memory of f16; keys and values are off
   * by 0.5 %, the story model's logits by 0.6 %. Its heads must be of a multiple of 32
   * values. On the CPU path, attention over many tokens takes twice as long.
   */
  kv?: "auto" | "f16" | "f32" | "q8_0";
  /**
   * Quantises the matrices as they are loaded: `q8_0`, `q6_k`, `q5_k_m`, `q5_k`, `q5_1`,
   * `q5_0`, `q4_k_m`, `q4_k`, `q4_1`, `q4_0`, `q3_k` or `q2_k`, as llama.cpp means them.
   * Below 8 bits, the LM head (or the embedding, if that is the head too) gets `q6_k`;
   * `_m` also gives it to the matrices that matter most. Rows that are not whole blocks of
   * 256 get a format with blocks of 32. By default, weights stay as stored.
   */
  quantize?: string;
  /**
   * The maximum length of a sequence in tokens, prompt and reply together; by default
   * 4,096, or less if the model or the device supports less.
   */
  context?: number;
  /**
   * Threads that compute on the CPU, including the caller's, from 1 to 256; by default one
   * for each core. They are not used when the model runs on the GPU.
   */
  threads?: number;
  /** Called with the progress of downloading and loading. */
  onProgress?: (progress: LoadProgress) => void;
  /**
   * Seconds without data from a server after which a request is given up and retried;
   * 30 by default.
   */
  readTimeout?: number;
  /**
   * Called with a line of text for the user when the model runs on the CPU although that
   * was not asked for, a download waits or is repeated, or something in the checkpoint is
   * not used. By default such lines go to stderr, each once per process; null turns that
   * off.
   */
  onNotice?: ((notice: string) => void) | null;
  /** Aborts loading. */
  signal?: AbortSignal;
  /**
   * Checks every operation and every sampled token against the CPU as the model runs,
   * and throws at the first difference, naming the layer, operation and values. Slow;
   * requires `device: "gpu"`. Does not cover the decode loop that runs on the device.
   */
  debug?: boolean;
}

const KINDS: Readonly<Record<keyof Qwen3Options, OptionKind>> = {
  device: "text",
  precision: "text",
  kv: "text",
  quantize: "text",
  context: "number",
  threads: "number",
  onProgress: "function",
  onNotice: "function",
  readTimeout: "number",
  signal: "signal",
  webgpu: "text",
  adapter: "text",
  gpu: "gpu",
  debug: "flag",
};

/**
 * Checks the arguments of `loadQwen3` that can be checked without the checkpoint, and
 * returns the options that are given.
 */
export function checkLoading(
  model: unknown,
  options: Qwen3Options,
): Qwen3Options {
  if (testKind(model, "object") === undefined) {
    throw new TypeError(
      "Cannot load a model: its name is missing, must come before the options: loadQwen3(name, options)",
    );
  }
  requireKind("Cannot load a model", "its name", model, "text");
  const cannot = `Cannot load ${shownUrl(model as string)}`;
  const given = givenOptions(cannot, options, KINDS);
  const { device = "auto", precision = "auto", kv = "auto" } = given;
  const { debug, context, threads, quantize } = given;
  const refuse = (what: string, value: unknown, must: string) => {
    throw wrongOption(cannot, what, value, must);
  };
  if (!["auto", "gpu", "cpu"].includes(device)) {
    refuse("device", device, "auto, gpu or cpu");
  }
  if (!["auto", "f32"].includes(precision)) {
    refuse("precision", precision, "auto or f32");
  }
  checkImplementation(cannot, given, device);
  if (!CACHE_TYPES.includes(kv)) refuse("kv", kv, "auto, f16, f32 or q8_0");
  if (quantize !== undefined && quantizationNamed(quantize) === undefined) {
    refuse("quantize", quantize, likely(quantize));
  }
  if (debug && device !== "gpu") {
    refuse("device", device, "gpu when debug is on");
  }
  if (context !== undefined && (!Number.isInteger(context) || context < 1)) {
    refuse("context", context, "an integer of at least 1");
  }
  if (threads !== undefined) {
    const fits = Number.isInteger(threads) && threads >= 1 &&
      threads <= MOST_THREADS;
    if (!fits) {
      refuse("threads", threads, `an integer from 1 to ${MOST_THREADS}`);
    }
    if (device === "gpu") {
      refuse("threads", threads, "left out when device is gpu");
    }
  }
  // Here null is not absent.
  return {
    ...given,
    onNotice: options.onNotice === undefined ? warn : given.onNotice,
  };
}

/** How a notice of {@linkcode placement} begins. */
const RUNNING = "Running on ";

/** Notices that were printed, without what is measured anew for each model. */
const printed = new Set<string>();

function warn(notice: string): void {
  const said = notice.startsWith(RUNNING)
    ? notice.replaceAll(/[\d.]+/g, "")
    : notice;
  if (printed.has(said)) return;
  printed.add(said);
  console.warn(printable(notice));
}

/** The device a model runs on. */
export interface Device {
  /** Whether the model runs on the GPU or the CPU path. */
  kind: "gpu" | "cpu";
  /** The adapter's name, or `CPU` with the number of threads. */
  adapter: string;
  /** Every choice that was made, with its reason. */
  choices: readonly Choice[];
}

/** A runner and its device. */
export interface Placed {
  runner: Runner;
  device: Device;
}

/** Selects a device by the options and the machine, and loads a checkpoint onto it. */
export async function place(
  checkpoint: Checkpoint,
  options: Qwen3Options,
): Promise<Placed> {
  const kind = options.device ?? "auto";
  const { gpu, choice } = await selectDevice(
    kind,
    checkpoint.config,
    options,
  );
  if (!gpu) {
    if (kind === "auto") options.onNotice?.(placement(choice));
    return await placeOnCpu(checkpoint, options, choice);
  }
  try {
    return await placeOnGpu(checkpoint, options, gpu, choice);
  } catch (error) {
    gpu[Symbol.dispose]();
    options.signal?.throwIfAborted();
    if (kind !== "auto" || !(error instanceof DeviceError)) throw error;
    return await placeOnCpu(checkpoint, options, gone(error, options));
  }
}

/** A notice about threads that were asked for. */
export function unusedThreads(threads: number): string {
  return `threads is ${threads}, but is not used: the model runs on the GPU.`;
}

/** Where a model runs and why, as one line of at most 100 columns. */
export function placement({ value, reason }: Choice): string {
  return line(`${RUNNING}${value}: ${reason}.`);
}

/** Cuts off what a line of a terminal has no room for. */
function line(text: string): string {
  return text.length > WIDTH ? `${text.slice(0, WIDTH - 1)}…` : text;
}

/**
 * Returns the choice of the CPU after a GPU failure, and reports it through `onNotice`.
 */
export function gone(error: DeviceError, options: Qwen3Options): Choice {
  const cause = errorText(error).replace(/^Cannot [^:]*: /, "");
  options.onNotice?.(line(`Continuing on the CPU: ${cause}`));
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
  const matmuls = chooseMatmulDtype(gpu, exact);
  checkCache(checkpoint, options.kv);
  const kept = chooseCacheDtype(config.headDim, { exact, kv: options.kv });
  const { dtype: cacheDtype } = kept, f16Matmuls = matmuls.dtype === "f16";
  const context = fitContext(checkpoint, options, cacheDtype, {
    bytes: gpu.limits.maxStorageBufferBindingSize,
    whose: `${gpu.name} binds at most`,
  });
  if (gpu.software) requireMemory(checkpoint, context.tokens, cacheDtype);
  // Imported only in debug mode; nothing else needs the checks.
  const { DebugRunner } = options.debug
    ? await import("./debug/runner.ts")
    : { DebugRunner: undefined };
  const runner = await (DebugRunner ?? GpuRunner).load(
    gpu,
    checkpoint,
    {
      ...options,
      context: context.tokens,
      cacheDtype,
      f16Matmuls,
    },
  );
  const decided: Choice[] = [{
    what: "matmuls of many rows",
    value: f16Matmuls ? "f16, summed in f32" : "f32",
    reason: matmuls.reason,
  }, { what: "KV cache", value: cacheDtype, reason: kept.reason }];
  const others = [...weightsChoice(options), ...decided, context.choice];
  return {
    runner,
    device: {
      kind: "gpu",
      adapter: gpu.name,
      get choices() { // the device's clock is found once something is timed
        return [choice, ...gpu.choices, ...others, ...runner.choices];
      },
    },
  };
}

/** The choice of the weights' formats, if one was made. */
function weightsChoice({ quantize }: Qwen3Options): Choice[] {
  return quantize === undefined ? [] : [{
    what: "weights",
    value: quantize.toLowerCase(),
    reason: "it was asked for",
  }];
}

/** Chooses a context whose keys of one layer, in `dtype`, fit into `bytes`. */
function fitContext(
  { name, config }: Checkpoint,
  { context: requested }: Qwen3Options,
  dtype: CacheDtype,
  { bytes, whose }: { bytes: number; whose: string },
): ContextChoice {
  const perPosition = cacheBytes(config, 1, 1, dtype) /
    (2 * config.numHiddenLayers);
  const smaller = dtype === "q8_0" || cacheRefusal(config.headDim, "q8_0")
    ? undefined
    : {
      name: "kv q8_0",
      perPosition: config.numKeyValueHeads *
        cachedBytes("q8_0", config.headDim),
    };
  return chooseContext({
    name,
    plain: config.maxPositionEmbeddings,
    most: contextLimit(config).tokens,
    requested,
    room: { bytes, perPosition, whose, smaller },
  });
}

/** Keys and values of a layer lie together within 4 GiB, beside the threads' work space. */
const MOST_CPU_KEYS = 2 ** 31 - 2 ** 26;

/** Loads a checkpoint onto the CPU; `choice` says why. */
export async function placeOnCpu(
  checkpoint: Checkpoint,
  options: Qwen3Options,
  choice: Choice,
): Promise<Placed> {
  checkCache(checkpoint, options.kv, true);
  const { dtype, reason } = chooseCpuCacheDtype(options.kv);
  const context = fitContext(checkpoint, options, dtype, {
    bytes: MOST_CPU_KEYS,
    whose: "the CPU path has room for",
  });
  requireMemory(checkpoint, context.tokens, dtype);
  const quants = chooseCpuQuants(options.precision === "f32");
  const runner = await CpuRunner.load(checkpoint, {
    ...options,
    context: context.tokens,
    cacheDtype: dtype,
    integers: quants.value !== "f32",
  });
  const { info } = runner.ops;
  const quantized = [...checkpoint.tensors.values()]
    .some(({ format }) => format.elements > 1);
  const multiplied = quantized && info.kernel !== "plain"
    ? [{ what: "quantised matmuls of few rows", ...quants }]
    : [];
  const choices = [choice, ...weightsChoice(options), ...multiplied];
  choices.push(
    { what: "KV cache", value: dtype, reason },
    context.choice,
    { what: "CPU kernels", value: info.kernel, reason: info.reason },
    threadChoice(info, options.threads),
  );
  const adapter = `CPU (${choices.at(-1)!.value})`;
  return { runner, device: { kind: "cpu", adapter, choices } };
}

/** The choice of the CPU's threads, with its reason. */
function threadChoice({ threads, reason }: CpuInfo, asked?: number): Choice {
  const cores = navigator.hardwareConcurrency;
  return {
    what: "threads",
    value: `${threads} ${threads === 1 ? "thread" : "threads"}`,
    reason: threads === asked
      ? "it was asked for"
      : asked !== undefined || threads < Math.min(cores, MOST_THREADS)
      ? `${asked ?? cores} cannot be used: ${reason}`
      : threads === cores
      ? `the machine has ${cores} ${cores === 1 ? "core" : "cores"}`
      : `the most, of ${cores} cores`,
  };
}

/** @throws {OptionError} if the checkpoint does not allow this context length. */
export function checkContext(
  { name, config }: Checkpoint,
  context?: number,
): void {
  if (context === undefined) return;
  const { tokens, why } = contextLimit(config);
  if (!Number.isInteger(context) || context < 1 || context > tokens) {
    throw wrongOption(
      `Cannot load ${name}`,
      "context",
      context,
      `from 1 to ${tokens} (${why})`,
    );
  }
}

/** @throws {OptionError} if heads cannot be cached as requested. */
function checkCache(
  { name, config }: Checkpoint,
  kv?: CacheRequest,
  onCpu?: boolean,
): void {
  const must = cacheRefusal(config.headDim, kv, onCpu);
  if (must !== undefined) {
    throw wrongOption(`Cannot load ${name}`, "kv", kv, must);
  }
}

/**
 * @throws {DeviceError} if main memory cannot hold the weights and the cache; called
 * before anything is allocated.
 */
function requireMemory(
  { name, config, tensors }: Checkpoint,
  context: number,
  dtype: CacheDtype,
): void {
  let weights = 0;
  for (const { byteLength } of tensors.values()) weights += byteLength;
  const cache = cacheBytes(config, 1, context, dtype);
  const available = host.freeMemory();
  if (available === undefined || weights + cache <= available) return;
  const mb = (bytes: number) => `${Math.ceil(bytes / 1e6)} MB`;
  throw new DeviceError(
    `Cannot load ${name}: it needs ${mb(weights)} for weights and ${
      mb(cache)
    } for a context of ${context} tokens, ${mb(available)} of memory is free${
      smallerCache(config, 1, context, dtype)
    }`,
  );
}
