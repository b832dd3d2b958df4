/**
 * About how long rows take, from the size of the model and the rates of the device. The
 * shares of the peaks are typical, so that an estimate is good to a factor of two or
 * three, which tells seconds from hours.
 *
 * @module
 */
import type { Checkpoint } from "../lib/checkpoint/checkpoint.ts";
import { parseSynthetic } from "../lib/checkpoint/synthetic.ts";
import { contextLimit } from "../lib/checkpoint/config.ts";
import type { Peaks } from "../lib/tools/profile/report.ts";

/** Sizes of a model that its speed depends on. */
export interface ModelSize {
  /** Weights as stored. */
  bytes: number;
  weights: number;
  layers: number;
  /** Most tokens. */
  context: number;
}

/** The size of a checkpoint's model. */
export function sizeOf({ tensors, config }: Checkpoint): ModelSize {
  let bytes = 0, weights = 0;
  for (const { byteLength, shape } of tensors.values()) {
    bytes += byteLength;
    weights += shape.reduce((product, size) => product * size, 1);
  }
  return {
    bytes,
    weights,
    layers: config.numHiddenLayers,
    context: contextLimit(config).tokens,
  };
}

/** Bytes of weights from which a software renderer takes minutes for a prompt. */
export const MOST_SOFTWARE_BYTES = 2e9;

/** The synthetic model of another size with the same parameters; others have no such sizes. */
export function resized(model: string, size: string): string | undefined {
  const [, query] = /^synthetic:qwen3-[^?]*(\?.*)?$/i.exec(model.trim()) ?? [
    undefined,
    null,
  ];
  return query === null ? undefined : `synthetic:qwen3-${size}${query ?? ""}`;
}

/** Share of the f32 peak that prompts reach, and microseconds between dispatches. */
const HARDWARE = { prompt: 0.4, dispatch: 4e-6 };
const SOFTWARE = { prompt: 0.08, dispatch: 60e-6 };
const DISPATCHES_PER_LAYER = 6;
/** A thread of the CPU path: bytes it reads and FLOPs a second. */
const CPU_READ = 2e9, CPU_FLOPS = 14e9, MOST_READERS = 8;
/** Seconds to start a process or to open a device, and bytes loaded a second. */
const START = 1, LOAD = 1e9;

/** Seconds that parts of rows take. */
export class Speed {
  constructor(
    readonly model: ModelSize,
    readonly options: { model: string; runs: number; maxTokens: number },
    readonly gpu?: { peaks: Peaks; software: boolean },
    readonly threads: number = navigator.hardwareConcurrency,
  ) {}

  /** The speed with a model of another size; undefined if that is not measured. */
  resized(size: string): Speed | undefined {
    const { options, gpu, threads } = this;
    const model = resized(options.model, size);
    const of = model && sizeOf(parseSynthetic(model));
    if (!of || gpu?.software && of.bytes > MOST_SOFTWARE_BYTES) {
      return undefined;
    }
    return new Speed(of, { ...options, model }, gpu, threads);
  }

  /** Runs of a measurement, with the one that warms up. */
  runs(most = Infinity): number {
    return 1 + Math.min(most, this.options.runs);
  }

  /** A generation on the GPU; none if the context is too short. */
  generate(prompt: number, tokens: number, sequences = 1): number {
    const { model: { bytes, weights, layers, context }, gpu } = this;
    if (!gpu || prompt + tokens > context) return 0;
    const { peaks, software } = gpu, is = software ? SOFTWARE : HARDWARE;
    const flops = 2 * weights, rate = is.prompt * peaks.f32TFLOPS * 1e12;
    const step = Math.max(
      bytes / peaks.readGBps / 1e9,
      sequences * flops / rate,
    );
    return sequences * prompt * flops / rate +
      tokens * (step + layers * DISPATCHES_PER_LAYER * is.dispatch);
  }

  /** A generation on the CPU path. */
  generateOnCpu(prompt: number, tokens: number): number {
    const { model: { bytes, weights, context }, threads } = this;
    if (prompt + tokens > context) return 0;
    const readers = Math.min(MOST_READERS, threads);
    return 2 * weights * prompt / (CPU_FLOPS * threads) +
      tokens * bytes / (CPU_READ * readers);
  }

  /** Multiplies in f32 on the GPU. */
  multiply(flops: number): number {
    return this.gpu ? flops / (this.gpu.peaks.f32TFLOPS * 1e12) : 0;
  }

  /** Loading the model. */
  get load(): number {
    return START + this.model.bytes / LOAD;
  }
}

/** `a few seconds`, `about 40 s`, `about 12 min` or `about 3 h`. */
export function aboutText(seconds: number): string {
  if (seconds < 5) return "a few seconds";
  if (seconds < 95) return `about ${10 * Math.ceil(seconds / 10)} s`;
  const minutes = seconds / 60;
  return minutes < 95
    ? `about ${Math.ceil(minutes)} min`
    : `about ${Math.ceil(minutes / 60)} h`;
}
