/**
 * A recorded sequence of dispatches that can be replayed. Bind groups and uniforms are
 * created once; a replay only sets them and dispatches, because each command that Deno
 * encodes costs microseconds of CPU time.
 *
 * @module
 */
import type { Gpu } from "./device.ts";
import {
  type CallOptions,
  type Dims,
  type Grid,
  type Kernel,
  type Operands,
  prepare,
  type Prepared,
} from "./kernel.ts";
import { compile, type Shader } from "./pipeline.ts";

/**
 * Dispatches in the first submission of {@linkcode Plan.run}, and the factor by which
 * later ones grow (bench/log.md, "A prompt submitted in pieces").
 */
export const FIRST_PIECE = 8, PIECE_GROWTH = 4;

/** What changes from one replay to the next. */
export interface StepState {
  /** Tokens in the KV cache before this pass, in the longest sequence. */
  length: number;
}

/** One recorded dispatch. */
export interface Dispatch {
  /** What it computes, named as in the model: `layers.3.qkv_proj`. */
  label: string;
  kernel: string;
  dims: Dims;
  constants: Prepared["constants"];
  /** Why this kernel and these constants were chosen. */
  reason: string;
  pipeline: GPUComputePipeline;
  bindGroup: GPUBindGroup;
  grid: Grid;
  /** Overrides `grid` if that depends on the step; undefined skips the dispatch. */
  gridAt?: (state: StepState) => Grid | undefined;
}

/** Options of {@linkcode Plan.add}. */
export interface AddOptions extends CallOptions {
  label?: string;
  reason?: string;
  gridAt?: Dispatch["gridAt"];
}

/** Dispatches in order: `add` them, then `seal` and `run` the plan. */
export class Plan implements Disposable {
  readonly dispatches: Dispatch[] = [];
  #prepared: { call: Prepared; options: AddOptions }[] = [];
  /** Which steps the dispatches run in that are being recorded; all by default. */
  #when?: (state: StepState) => boolean;
  #uniforms?: GPUBuffer;
  #owned: Disposable[] = [];

  /** @param literal see {@linkcode CallOptions} */
  constructor(readonly gpu: Gpu, readonly literal?: CallOptions["literal"]) {}

  /**
   * Records a dispatch.
   *
   * @throws {Error} if shapes disagree with the kernel's contract.
   */
  add(kernel: Kernel, operands: Operands, options: AddOptions = {}): void {
    const { literal } = this, when = this.#when;
    const call = prepare(this.gpu, kernel, operands, { literal, ...options });
    const { gridAt = () => call.grid } = options;
    const gated = when &&
      { gridAt: (state: StepState) => when(state) ? gridAt(state) : undefined };
    this.#prepared.push({ call, options: { ...options, ...gated } });
  }

  /** Records dispatches that run only in steps for which `when` is true. */
  only(when: (state: StepState) => boolean, record: () => void): void {
    this.#when = when;
    record();
    this.#when = undefined;
  }

  /** Makes the plan dispose `what` when it is itself disposed. */
  own(what: Disposable): void {
    this.#owned.push(what);
  }

  /** Shaders of the dispatches added since the last `seal`. */
  get shaders(): Shader[] {
    return this.#prepared.map(({ call }) => call.shader);
  }

  /**
   * Compiles the dispatches added since the last `seal`, and creates their uniforms and
   * bind groups.
   */
  seal(): this {
    const { device, limits } = this.gpu;
    const align = Math.max(16, limits.minUniformBufferOffsetAlignment);
    if (this.#prepared.length === 0) return this;
    let size = 0;
    const offsets = this.#prepared.map(({ call }) => {
      const at = size;
      size += Math.ceil(call.uniforms.byteLength / align) * align;
      return at;
    });
    const data = new Uint8Array(size);
    this.#prepared.forEach(({ call }, i) =>
      data.set(new Uint8Array(call.uniforms), offsets[i])
    );
    if (size > 0) {
      this.#uniforms = this.gpu.buffer(
        size,
        "uniforms",
        GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST,
      );
      device.queue.writeBuffer(this.#uniforms, 0, data);
    }
    this.#prepared.forEach(({ call, options }, i) => {
      const uniform = call.uniforms.byteLength === 0 ? [] : [{
        binding: call.entries.length,
        resource: {
          buffer: this.#uniforms!,
          offset: offsets[i],
          size: call.uniforms.byteLength,
        },
      }];
      const { pipeline, layout } = compile(this.gpu, call.shader);
      this.dispatches.push({
        label: options.label ?? call.kernel.name,
        kernel: call.kernel.name,
        dims: call.dims,
        constants: call.constants,
        reason: options.reason ?? "asked for",
        pipeline,
        bindGroup: device.createBindGroup({
          layout,
          entries: [...call.entries, ...uniform],
        }),
        grid: call.grid,
        gridAt: options.gridAt,
      });
    });
    this.#prepared = [];
    return this;
  }

  /** Encodes dispatches `begin` to `end` into a pass; all by default. */
  encode(
    pass: GPUComputePassEncoder,
    state: StepState = { length: 0 },
    begin = 0,
    end = this.dispatches.length,
  ): void {
    const last = Math.min(end, this.dispatches.length);
    for (let i = begin; i < last; i++) {
      const { pipeline, bindGroup, grid, gridAt } = this.dispatches[i];
      const groups = gridAt ? gridAt(state) : grid;
      if (!groups) continue;
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, bindGroup);
      pass.dispatchWorkgroups(groups[0], groups[1], groups[2]);
    }
  }

  /**
   * Seals, encodes and submits the plan: a few dispatches first, so that the device starts
   * immediately, then larger and larger pieces while it works.
   */
  run(state: StepState = { length: 0 }): void {
    this.seal();
    let size = FIRST_PIECE;
    for (let begin = 0; begin < this.dispatches.length;) {
      this.submit(state, begin, begin + size);
      begin += size;
      size *= PIECE_GROWTH;
    }
  }

  /** Encodes and submits dispatches `begin` to `end` of a sealed plan. */
  submit(state: StepState, begin: number, end: number): void {
    const { device } = this.gpu;
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    this.encode(pass, state, begin, end);
    pass.end();
    device.queue.submit([encoder.finish()]);
  }

  [Symbol.dispose](): void {
    this.#uniforms?.destroy();
    for (const what of this.#owned) what[Symbol.dispose]();
  }
}
