/**
 * What a model needs against what a device has, by the headers of its checkpoint.
 *
 * @module
 */
import type { Checkpoint } from "../../checkpoint/checkpoint.ts";
import { DeviceError } from "../../errors.ts";
import type { Gpu } from "../../webgpu/device.ts";
import type { Finding } from "./report.ts";
import { cacheBytes } from "../../model/kv_cache.ts";
import { familyOf } from "../../model/families.ts";
import { listWeights } from "../../model/family.ts";

/** Positions if nobody asks for more. */
const DEFAULT_CONTEXT = 4096;

const mb = (bytes: number) => `${Math.ceil(bytes / 1e6)} MB`;

/** Bytes that all weights take as stored. */
export function weightBytes({ tensors }: Checkpoint): number {
  return [...tensors.values()].reduce((sum, t) => sum + t.byteLength, 0);
}

/** Weights, KV cache, bindings and memory of `checkpoint` on `gpu`, or on the CPU. */
export async function modelNeeds(
  checkpoint: Checkpoint,
  wanted: number | undefined,
  gpu: Gpu | undefined,
): Promise<Finding[]> {
  const { name, config } = checkpoint;
  const trained = config.maxPositionEmbeddings;
  if (
    wanted !== undefined &&
    !(Number.isInteger(wanted) && wanted >= 1 && wanted <= trained)
  ) {
    return [{
      severity: "red",
      topic: "context",
      text:
        `--context is ${wanted}, ${name} was trained for 1 to ${trained} tokens`,
    }];
  }
  const context = wanted ?? Math.min(DEFAULT_CONTEXT, trained);
  const dtype = gpu && config.headDim % 8 === 0 ? "f16" : "f32";
  const weights = weightBytes(checkpoint);
  const cache = cacheBytes(config, 1, context, dtype);
  const needs: Finding = {
    severity: "green",
    topic: "model",
    text: `${name} needs ${mb(weights)} for weights and ${
      mb(cache)
    } for a KV cache of ${context} tokens in ${dtype}`,
    data: { weights, cache, context, cacheDtype: dtype },
  };
  return [
    needs,
    ...(gpu ? bindings(checkpoint, context, dtype, gpu) : []),
    await memory(weights + cache, gpu),
  ];
}

/** What is read through one binding, against the adapter's largest. */
function bindings(
  { config, tensors }: Checkpoint,
  context: number,
  dtype: "f16" | "f32",
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
      `${name} goes into ${Math.ceil(bytes / limit)} buffers or more`
    );
  const keys = cacheBytes(config, 1, context, dtype) /
    (2 * config.numHiddenLayers);
  const most = Math.floor(limit / (keys / context));
  return [{
    severity: split.length ? "yellow" : "green",
    topic: "largest binding",
    text: `${widest.name} has ${mb(widest.bytes)}, the adapter binds ${
      mb(limit)
    }: ${
      split.length
        ? `${split.join(", ")}, a dispatch for each`
        : "nothing is split"
    }`,
    data: { ...widest, limit, split },
  }, {
    severity: keys > limit ? "red" : "green",
    topic: "context",
    text: `one layer's keys of ${context} tokens take ${mb(keys)}, ${
      keys > limit
        ? `more than the adapter binds: use --context ${most} or less`
        : `a context of up to ${
          Math.min(most, config.maxPositionEmbeddings)
        } tokens can be bound`
    }`,
    data: { keys, limit },
  }];
}

/** Main memory for the CPU and software adapters; hardware is asked for as much. */
async function memory(bytes: number, gpu: Gpu | undefined): Promise<Finding> {
  const topic = "memory";
  if (!gpu || gpu.software) {
    const { available } = Deno.systemMemoryInfo();
    const fits = bytes <= available;
    return {
      severity: fits ? "green" : "red",
      topic,
      text: `${mb(available)} of main memory are free, ${mb(bytes)} are needed${
        fits ? "" : ": use a smaller model or a shorter --context"
      }`,
      data: { needed: bytes, available },
    };
  }
  const failure = await tryToAllocate(gpu, bytes);
  return {
    severity: failure ? "red" : "green",
    topic,
    text: failure
      ? `${gpu.name} refuses ${
        mb(bytes)
      } (${failure}): use a smaller model or a shorter --context`
      : `${gpu.name} gives the ${mb(bytes)} that are needed`,
    data: { needed: bytes },
  };
}

/** Why `bytes` cannot be had, if so; WebGPU does not tell how much memory there is. */
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
  return failure ?? error?.message.replaceAll(/\s+/g, " ");
}
