/**
 * Compares what a model needs with what a device has, from the checkpoint's headers.
 *
 * @module
 */
import { defaultContext } from "../../dispatch/context.ts";
import {
  cacheRefusal,
  type CacheRequest,
  chooseCacheDtype,
  chooseCpuCacheDtype,
} from "../../dispatch/precision.ts";
import type { Checkpoint } from "../../checkpoint/checkpoint.ts";
import { cachedBytes, type CacheDtype } from "../../formats/cached.ts";
import { contextLimit } from "../../checkpoint/config.ts";
import { DeviceError, errorText } from "../../errors.ts";
import type { Gpu } from "../../webgpu/device.ts";
import { bytes as size } from "../format.ts";
import type { Finding } from "./report.ts";
import { cacheBytes } from "../../model/kv_cache.ts";
import { familyOf } from "../../model/families.ts";
import { listWeights } from "../../model/family.ts";

/** Bytes of all weights as stored. */
export function weightBytes({ tensors }: Checkpoint): number {
  return [...tensors.values()].reduce((sum, t) => sum + t.byteLength, 0);
}

/**
 * Bytes of weights that a decode step reads: of experts those that are used, and of an
 * embedding that is not the LM head too a row.
 */
export function bytesPerToken({ config, tensors }: Checkpoint): number {
  const { gguf } = familyOf(config), { experts } = config;
  let sum = 0;
  for (const { name, shape: [rows], byteLength } of tensors.values()) {
    const isTable = gguf.tensor(name) === gguf.embedding;
    if (experts && gguf.within?.(name, config)) {
      sum += byteLength * experts.used / experts.count;
    } else if (isTable && !config.tieWordEmbeddings) sum += byteLength / rows;
    else sum += byteLength;
  }
  return sum;
}

/**
 * Weights, KV cache, bindings and memory of a model on `gpu`, or on the CPU without one.
 *
 * @param name what the model is called in the texts
 */
export async function modelNeeds(
  checkpoint: Checkpoint,
  { context: wanted, kv }: { context?: number; kv?: CacheRequest },
  gpu: Gpu | undefined,
  name = checkpoint.name,
): Promise<Finding[]> {
  const { config } = checkpoint;
  const { tokens: most, why } = contextLimit(config);
  if (
    wanted !== undefined &&
    !(Number.isInteger(wanted) && wanted >= 1 && wanted <= most)
  ) {
    return [{
      severity: "red",
      topic: "context",
      text:
        `--context is ${wanted}, must be from 1 to ${most} for ${name} (${why})`,
    }];
  }
  const context = wanted ?? defaultContext(config.maxPositionEmbeddings);
  const must = cacheRefusal(config.headDim, kv, !gpu);
  if (must !== undefined) {
    const text = `--kv is ${kv}, must be ${must}`;
    return [{ severity: "red", topic: "KV cache", text }];
  }
  const { dtype } = gpu
    ? chooseCacheDtype(config.headDim, { kv })
    : chooseCpuCacheDtype(kv);
  const weights = weightBytes(checkpoint);
  const cache = cacheBytes(config, 1, context, dtype);
  const needs: Finding = {
    severity: "green",
    topic: "model",
    text: `${name} needs ${size(weights)} for weights and ${
      size(cache)
    } for a KV cache of ${context} tokens in ${dtype}`,
    data: { weights, cache, context, cacheDtype: dtype },
  };
  return [
    needs,
    ...(gpu ? bindings(checkpoint, context, dtype, gpu) : []),
    await memory(
      weights + cache,
      gpu,
      dtype === "q8_0" || cacheRefusal(config.headDim, "q8_0")
        ? undefined
        : weights + cacheBytes(config, 1, context, "q8_0"),
    ),
  ];
}

/** Compares the largest weight and the keys of a layer with the largest binding. */
function bindings(
  { config, tensors }: Checkpoint,
  context: number,
  dtype: CacheDtype,
  gpu: Gpu,
): Finding[] {
  const limit = gpu.limits.maxStorageBufferBindingSize;
  const oneLayer = { ...config, numHiddenLayers: 1 };
  const sizes = listWeights(familyOf(config).weights(oneLayer)).map((spec) => ({
    name: spec.label.replace("layers.0.", ""),
    bytes: spec.tensors.reduce(
      (sum, { name }) => sum + (tensors.get(name)?.byteLength ?? 0),
      0,
    ),
  }));
  const widest = sizes.reduce((a, b) => b.bytes > a.bytes ? b : a);
  const split = sizes.filter(({ bytes }) => bytes > limit)
    .map(({ name, bytes }) =>
      `${name} needs ${Math.ceil(bytes / limit)} buffers or more`
    );
  const keys = cacheBytes(config, 1, context, dtype) /
    (2 * config.numHiddenLayers);
  const most = Math.floor(limit / (keys / context));
  const quantized = context * config.numKeyValueHeads *
    cachedBytes("q8_0", config.headDim);
  const smaller = dtype === "q8_0" || quantized > limit ||
      cacheRefusal(config.headDim, "q8_0")
    ? ""
    : ", or --kv q8_0";
  return [{
    severity: split.length ? "yellow" : "green",
    topic: "largest binding",
    text: `${widest.name} takes ${
      size(widest.bytes)
    }, the adapter binds up to ${size(limit)}: ${
      split.length
        ? `${split.join(", ")}, with one dispatch each`
        : "nothing is split"
    }`,
    data: { ...widest, limit, split },
  }, {
    severity: keys > limit ? "red" : "green",
    topic: "context",
    text: `keys of ${context} tokens take ${size(keys)} per layer, ${
      keys > limit
        ? `more than the adapter binds: use --context ${most} or less${smaller}`
        : `--context may be up to ${
          Math.min(most, contextLimit(config).tokens)
        }`
    }`,
    data: { keys, limit },
  }];
}

/**
 * Checks free main memory for the CPU and software adapters; on other GPUs it allocates.
 */
async function memory(
  bytes: number,
  gpu: Gpu | undefined,
  smaller?: number,
): Promise<Finding> {
  const topic = "memory";
  const instead = `use a smaller model or a shorter --context${
    smaller === undefined
      ? ""
      : `, or --kv q8_0, with which it is ${size(smaller)}`
  }`;
  if (!gpu || gpu.software) {
    const { available } = Deno.systemMemoryInfo();
    const fits = bytes <= available;
    return {
      severity: fits ? "green" : "red",
      topic,
      text: `${size(available)} of main memory free, ${size(bytes)} needed${
        fits ? "" : `: ${instead}`
      }`,
      data: { needed: bytes, available },
    };
  }
  const failure = await tryToAllocate(gpu, bytes);
  return {
    severity: failure ? "red" : "green",
    topic,
    text: failure
      ? `${gpu.name} cannot allocate ${size(bytes)} (${failure}): ${instead}`
      : `${gpu.name} can allocate the ${size(bytes)} needed`,
    data: { needed: bytes },
  };
}

/** Why `bytes` cannot be allocated, if so. It tries, since WebGPU cannot be asked. */
async function tryToAllocate(
  gpu: Gpu,
  bytes: number,
): Promise<string | undefined> {
  using buffers = new DisposableStack();
  gpu.device.pushErrorScope("out-of-memory");
  let failure: string | undefined;
  try {
    const most = Math.min(gpu.limits.maxBufferSize, 1 << 30) & ~15;
    for (let left = bytes; left > 0; left -= most) {
      const buffer = gpu.buffer(Math.min(most, left), "memory test");
      buffers.defer(() => buffer.destroy());
    }
  } catch (error) {
    if (!(error instanceof DeviceError)) throw error;
    failure = error.message;
  }
  const error = await gpu.device.popErrorScope();
  return failure ?? (error ? errorText(error.message) : undefined);
}
