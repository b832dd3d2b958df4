/**
 * What the rows of `deno task bench` share: the device, its peaks, a loaded model, and
 * how runs are repeated.
 *
 * @module
 */
import { contextLimit } from "../lib/checkpoint/config.ts";
import type { CacheRequest } from "../lib/dispatch/precision.ts";
import type { OpenOptions } from "../lib/checkpoint/sources.ts";
import { openCheckpoint } from "../lib/checkpoint/open.ts";
import { openDevice } from "../lib/device/open_device.ts";
import type { Gpu } from "../lib/webgpu/device.ts";
import type { DeviceOptions } from "../lib/webgpu/implementation.ts";
import { loadQwen3, type Qwen3 } from "../lib/load.ts";
import { measurePeaks, timeByWall } from "../lib/tools/peaks.ts";
import type { Plan, StepState } from "../lib/webgpu/plan.ts";
import type { Peaks } from "../lib/tools/profile/report.ts";
import { timePlan } from "../lib/webgpu/timing.ts";
import { GpuRunner } from "../lib/gpu/runner.ts";
import { shownUrl } from "../lib/checkpoint/fetch.ts";
import { MemoryError } from "../lib/errors.ts";
import {
  type ModelSize,
  MOST_SOFTWARE_BYTES,
  resized,
  sizeOf,
} from "./estimate.ts";
import { Unmeasurable } from "./report.ts";
import { kindOf, type ModelKind } from "./targets.ts";

/** Runs of what takes long: long prompts, processes, the CPU path. */
export const FEW_RUNS = 3;
/** Work before a timed pass, since an idle GPU lowers its clocks. */
const WARM_MS = 30, MOST_WARM = 256;

/** Options of every row. */
export interface BenchOptions {
  model: string;
  /** How keys and values are cached; as on loading by default. */
  kv?: CacheRequest;
  /** Timed runs of each measure, after one that warms up. */
  runs: number;
  /** Tokens per generation. */
  maxTokens: number;
  /** How the checkpoint is opened, and where progress goes. */
  opening?: OpenOptions & { threads?: number };
  /** The GPU of the rows that need one. */
  device?: DeviceOptions;
}

/** A model on the GPU and its runner. */
export interface Loaded {
  qwen: Qwen3;
  runner: GpuRunner;
}

/** The GPU and what it reaches. */
export interface OnGpu {
  gpu: Gpu;
  peaks: Peaks;
}

/**
 * The device and the model, each opened when a row first needs it; disposing frees both.
 */
export class BenchSetting implements Disposable {
  #loaded?: Loaded;
  #opening?: Promise<OnGpu>;
  #gpu?: Gpu;
  /** That of another size. */
  #resized?: BenchSetting;

  private constructor(
    readonly options: BenchOptions,
    readonly size: ModelSize,
    readonly kind: ModelKind,
    /** Where the checkpoint is. */
    readonly location: string,
  ) {}

  /** @throws {Error} if there is no such model. */
  static async open(options: BenchOptions): Promise<BenchSetting> {
    await using checkpoint = await openCheckpoint(
      options.model,
      options.opening,
    );
    const { location } = checkpoint, kind = kindOf(checkpoint);
    return new BenchSetting(options, sizeOf(checkpoint), kind, location);
  }

  /**
   * The GPU and its peaks.
   *
   * @throws {NoAdapterError} if there is no adapter.
   */
  onGpu(): Promise<OnGpu> {
    return this.#opening ??= this.#open();
  }

  async #open(): Promise<OnGpu> {
    const gpu = this.#gpu = await openDevice(this.options.device);
    return { gpu, peaks: await measurePeaks(gpu) };
  }

  /**
   * The model with room for `context` tokens.
   *
   * @throws {Unmeasurable} if the checkpoint's context is shorter.
   */
  async model(context: number): Promise<Loaded> {
    this.#resized?.freeModel();
    if (this.#loaded && this.#loaded.qwen.context >= context) {
      return this.#loaded;
    }
    const known = this.#loaded
      ? contextLimit(this.#loaded.qwen.config).tokens
      : Infinity;
    if (context > known) refuseContext(context, known);
    this.freeModel();
    const { model, opening, kv, device } = this.options;
    const { threads: _, ...rest } = opening ?? {}; // the CPU path's
    const options = { ...rest, ...device, device: "gpu", kv } as const;
    const qwen = await loadQwen3(model, options);
    const most = contextLimit(qwen.config).tokens;
    if (qwen.context >= context) return this.#keep(qwen);
    if (context > most) {
      this.#keep(qwen); // for rows that need less
      refuseContext(context, most);
    }
    qwen[Symbol.dispose]();
    return this.#keep(await loadQwen3(model, { ...options, context }));
  }

  /**
   * Measures a synthetic model of another size with the same parameters, on the same GPU.
   *
   * @throws {Unmeasurable} if this model is another one, or that one is too large
   */
  async resized<T>(
    size: string,
    measure: (setting: BenchSetting) => Promise<T>,
  ): Promise<T> {
    const { options } = this, { gpu } = await this.onGpu();
    const model = resized(options.model, size);
    if (model === undefined) {
      throw new Unmeasurable(
        `the model is ${shownUrl(options.model)}, must be synthetic:qwen3-…`,
      );
    }
    if (this.#resized?.options.model !== model) {
      this.#resized?.freeModel();
      this.#resized = await BenchSetting.open({ ...options, model });
      this.#resized.#opening = this.#opening;
    }
    const { bytes } = this.#resized.size;
    if (gpu.software && bytes > MOST_SOFTWARE_BYTES) {
      const [is, most] = [bytes, MOST_SOFTWARE_BYTES].map((n) =>
        `${(n / 1e9).toFixed(1)} GB`
      );
      throw new Unmeasurable(
        `its weights are ${is}, must be at most ${most} on a software renderer`,
      );
    }
    this.#loaded?.qwen[Symbol.dispose]();
    this.#loaded = undefined;
    try {
      return await measure(this.#resized);
    } catch (error) {
      if (!(error instanceof MemoryError)) throw error;
      throw new Unmeasurable(error.message);
    }
  }

  #keep(qwen: Qwen3): Loaded {
    const { runner } = qwen;
    if (!(runner instanceof GpuRunner)) {
      throw new Error("Cannot measure: the model is not on the GPU");
    }
    return this.#loaded = { qwen, runner };
  }

  /** Frees the model's memory for a row that needs no model or loads its own. */
  freeModel(): void {
    this.#resized?.freeModel();
    this.#loaded?.qwen[Symbol.dispose]();
    this.#loaded = undefined;
  }

  /** Results of `runs` runs, after one that warms up. */
  async repeat<T>(
    run: () => Promise<T>,
    runs: number = this.options.runs,
  ): Promise<T[]> {
    await run();
    const all: T[] = [];
    for (let i = 0; i < runs; i++) all.push(await run());
    return all;
  }

  [Symbol.dispose](): void {
    this.freeModel();
    this.#gpu?.[Symbol.dispose]();
  }
}

function refuseContext(context: number, most: number): never {
  throw new Unmeasurable(
    `it needs a context of ${context} tokens, the checkpoint has ${most}`,
  );
}

/**
 * GPU milliseconds of each of `runs` runs of a plan, after others that keep the GPU
 * busy. Without timestamps, one wall-clock time.
 */
export async function hotTimes(
  gpu: Gpu,
  plan: Plan,
  runs: number,
  state?: StepState,
): Promise<number[]> {
  if (!gpu.timestamps) return [await timeByWall(gpu, plan, runs, state)];
  const [first] = await timePlan(gpu, plan, 1, state);
  const warm = gpu.software
    ? 1
    : Math.min(MOST_WARM, Math.ceil(WARM_MS / Math.max(first, 1e-3)));
  const times = await timePlan(gpu, plan, warm + runs, state);
  gpu.check();
  return times.slice(warm);
}
