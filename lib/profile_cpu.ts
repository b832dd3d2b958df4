/**
 * The CPU path timed verb by verb.
 *
 * @module
 */
import type { KvCache, Ops } from "./ops.ts";
import type { CpuKvCache, CpuTensor } from "./ops_cpu.ts";
import { type Cost, type CostContext, costsOf } from "./profile_costs.ts";
import { type Sample, wallPhase } from "./profile_operations.ts";
import type { Phase, TimelineEvent } from "./profile_report.ts";
import { forward, type Weights } from "./qwen3.ts";
import type { CpuRunner } from "./runner_cpu.ts";
import { sample, type Sampling } from "./sampling.ts";

/** Decode steps are timed for this long at most. */
const BUDGET_MS = 2000, MOST_STEPS = 16;
/** Prompt tokens that go through the model at once. */
const ROWS = 256;

const BETWEEN = {
  name: "between verbs",
  reason: "the forward pass itself, and the copy of the logits",
};

/** Times a prefill of `promptTokens` and sampled decode steps of one sequence on the CPU. */
export async function profileCpu(
  runner: CpuRunner,
  { promptTokens, maxTokens, sampling, origin, signal }: {
    promptTokens: number;
    maxTokens: number;
    sampling: Sampling;
    /** When the timeline begins. */
    origin: number;
    signal?: AbortSignal;
  },
): Promise<{ phases: Phase[]; timeline: TimelineEvent[] }> {
  using cache = runner.ops.createCache(1, promptTokens + maxTokens);
  const timed = new TimedOps(runner);
  const timeline: TimelineEvent[] = [];
  const run = async (ids: number[], part: TimelineEvent["part"]) => {
    await new Promise((resolve) => setTimeout(resolve, 0)); // lets signals in
    signal?.throwIfAborted();
    const began = performance.now(), from = timed.samples.length;
    const logits = timed.forward(ids, cache);
    const ms = performance.now() - began;
    let at = began - origin;
    for (const { dispatch, ms = 0 } of timed.samples.slice(from)) {
      timeline.push({ lane: "CPU", part, name: dispatch.label, begin: at, ms });
      at += ms;
    }
    return { logits, ms };
  };
  const ids = Array.from(
    { length: promptTokens },
    (_, i) => i * 7919 % runner.config.vocabSize,
  );
  await run([0], "profiled decode"); // compiles
  cache.lengths[0] = 0;
  timed.samples.length = timeline.length = 0;
  let prefillMs = 0;
  let logits: Float32Array = new Float32Array();
  for (let at = 0; at < ids.length; at += ROWS) {
    const done = await run(ids.slice(at, at + ROWS), "profiled prefill");
    prefillMs += done.ms;
    logits = done.logits;
  }
  const prefill = timed.samples.splice(0);
  const seen = new Uint32Array(Math.ceil(runner.config.vocabSize / 32));
  let decodeMs = 0, steps = 0;
  while (
    steps < Math.min(MOST_STEPS, maxTokens - 1) &&
    (steps === 0 || decodeMs < BUDGET_MS)
  ) {
    const began = performance.now();
    const id = sample(logits, sampling, seen, steps);
    const ms = performance.now() - began;
    timed.sampled(cache.lengths[0], ms);
    const done = await run([id], "profiled decode");
    logits = done.logits;
    decodeMs += ms + done.ms;
    steps++;
  }
  return {
    phases: [
      wallPhase("prefill", promptTokens, prefillMs, prefill, 1, BETWEEN),
      wallPhase("decode", 1, decodeMs / steps, timed.samples, steps, BETWEEN),
    ],
    timeline,
  };
}

/** {@linkcode Ops} on the CPU that notes what each verb takes. */
class TimedOps implements Ops<CpuTensor> {
  readonly samples: Sample[] = [];
  readonly #labels: Map<CpuTensor, string>;
  #context: CostContext;

  constructor(readonly runner: CpuRunner) {
    this.#labels = labelsOf(runner.weights);
    const { config } = runner;
    this.#context = { config, sequences: 1, tokens: 1, length: 0 };
  }

  /** Logits after the last of `ids`, which are appended to `cache`. */
  forward(ids: readonly number[], cache: CpuKvCache): Float32Array {
    const { config, weights } = this.runner;
    const tokens = ids.length, [length] = cache.lengths;
    this.#context = { config, sequences: 1, tokens, length };
    cache.pass = { first: 0, tokens };
    const data = Uint32Array.from(ids);
    const input: CpuTensor = { dtype: "u32", shape: [tokens], data };
    const logits = forward(this, weights, input, cache);
    cache.lengths[0] += tokens;
    return (logits.data as Float32Array).slice();
  }

  /** Notes what sampling took. */
  sampled(length: number, ms: number): void {
    const context = { ...this.#context, tokens: 1, length };
    this.#note("sampling.sample", "sample", {}, {}, ms, context);
  }

  embed(table: CpuTensor, tokens: CpuTensor): CpuTensor {
    const [n, k] = table.shape, m = tokens.shape[0];
    return this.#time(
      () => this.runner.ops.embed(table, tokens),
      "embed_tokens",
      "embed",
      { m, n, k },
      { TABLE_DTYPE: table.dtype },
    );
  }

  normMatmul(x: CpuTensor, norm: CpuTensor, w: CpuTensor): CpuTensor {
    return this.#linear(
      x,
      w,
      { NORM: 1, EPILOGUE: 0 },
      () => this.runner.ops.normMatmul(x, norm, w),
    );
  }

  matmulAdd(x: CpuTensor, w: CpuTensor, residual: CpuTensor): CpuTensor {
    return this.#linear(
      x,
      w,
      { EPILOGUE: 1 },
      () => this.runner.ops.matmulAdd(x, w, residual),
    );
  }

  normSwiglu(x: CpuTensor, norm: CpuTensor, gateUp: CpuTensor): CpuTensor {
    return this.#linear(
      x,
      gateUp,
      { NORM: 1, EPILOGUE: 2 },
      () => this.runner.ops.normSwiglu(x, norm, gateUp),
    );
  }

  attend(
    qkv: CpuTensor,
    qNorm: CpuTensor,
    kNorm: CpuTensor,
    cache: KvCache<CpuTensor>,
    layer: number,
  ): CpuTensor {
    return this.#time(
      () => this.runner.ops.attend(qkv, qNorm, kNorm, cache, layer),
      `layers.${layer}.attention`,
      "attendDecode",
      {},
      { K_DTYPE: "f32" },
    );
  }

  lastRow(x: CpuTensor, cache: KvCache<CpuTensor>): CpuTensor {
    const { ops } = this.runner;
    return this.#time(() => ops.lastRow(x, cache), "last_row", "", {}, {});
  }

  #linear(
    x: CpuTensor,
    w: CpuTensor,
    constants: Record<string, number>,
    verb: () => CpuTensor,
  ): CpuTensor {
    const [m, k] = x.shape, [n] = w.shape;
    const label = this.#labels.get(w) ?? "linear";
    return this.#time(verb, label, "gemv", { m, n, k }, {
      ...constants,
      W_DTYPE: w.dtype,
    });
  }

  #time(
    verb: () => CpuTensor,
    label: string,
    like: string,
    dims: Record<string, number>,
    constants: Record<string, number | string>,
  ): CpuTensor {
    const began = performance.now();
    const result = verb();
    this.#note(label, like, dims, constants, performance.now() - began);
    return result;
  }

  /** `like`: the kernel whose costs it has. */
  #note(
    label: string,
    like: string,
    dims: Record<string, number>,
    constants: Record<string, number | string>,
    ms: number,
    context: CostContext = this.#context,
  ): void {
    const { kernel, reason } = this.runner.ops.info;
    const costs: Cost[] = costsOf(
      { label, kernel: like, dims, constants },
      context,
    );
    this.samples.push({
      dispatch: { label, kernel: `CPU ${kernel}`, dims, constants, reason },
      context,
      workgroups: 1,
      ms,
      costs,
    });
  }
}

function labelsOf(weights: Weights<CpuTensor>): Map<CpuTensor, string> {
  const labels = new Map([[weights.lmHead, "lm_head"]]);
  weights.layers.forEach((layer, i) => {
    labels.set(layer.qkvProj, `layers.${i}.qkv_proj`);
    labels.set(layer.oProj, `layers.${i}.o_proj`);
    labels.set(layer.gateUpProj, `layers.${i}.gate_up_proj`);
    labels.set(layer.downProj, `layers.${i}.down_proj`);
  });
  return labels;
}
