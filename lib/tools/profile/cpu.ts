/**
 * The CPU path timed verb by verb.
 *
 * @module
 */
import { type Matrix, rowsHeld } from "../../formats/matrix.ts";
import type { Constants } from "../../dispatch/shapes.ts";
import type { CachePass, KvCache } from "../../model/kv_cache.ts";
import type { Ops } from "../../model/ops.ts";
import type { CpuKvCache } from "../../cpu/kv_cache.ts";
import type { CpuTensor } from "../../cpu/ops.ts";
import { type Cost, type CostContext, costsOf } from "./costs.ts";
import { type Sample, wallPhase } from "./operations.ts";
import type { Phase, TimelineEvent } from "./report.ts";
import { prefillSamples, promptIds, type Setting } from "./setting.ts";
import { familyOf } from "../../model/families.ts";
import type { CpuRunner } from "../../cpu/runner.ts";
import { sampleEach, seenBits } from "../../model/sampling.ts";

/** Decode steps are timed for this long at most. */
const BUDGET_MS = 2000, MOST_STEPS = 16;
/** Prompt tokens that go through the model at once. */
const ROWS = 256;

const BETWEEN = {
  name: "between verbs",
  reason: "the forward pass itself, and the copy of the logits",
};

/** Times a prefill of every prompt and sampled decode steps of all on the CPU. */
export async function profileCpu(
  runner: CpuRunner,
  { promptTokens, maxTokens, batch, sampling, origin, signal }: Pick<
    Setting,
    | "promptTokens"
    | "maxTokens"
    | "batch"
    | "sampling"
    | "origin"
    | "signal"
  >,
): Promise<{ phases: Phase[]; timeline: TimelineEvent[] }> {
  const { vocabSize } = runner.config;
  runner.requireRoom(batch, promptTokens + maxTokens);
  using cache = runner.ops.createCache(batch, promptTokens + maxTokens);
  const timed = new TimedOps(runner);
  const timeline: TimelineEvent[] = [];
  /** Notes on the timeline what was timed since the sample at `from`. */
  const note = (
    part: TimelineEvent["part"],
    from: number,
    began: number,
    runs = 1,
  ) => {
    let at = began - origin;
    for (const sample of timed.samples.slice(from)) {
      const { dispatch: { label: name }, ms = 0 } = sample;
      timeline.push({ lane: "CPU", part, name, begin: at, ms });
      at += ms;
      sample.runs = runs;
    }
  };
  const run = async (
    ids: readonly number[],
    pass: CachePass,
    part: TimelineEvent["part"],
    runs?: number,
  ) => {
    await new Promise((resolve) => setTimeout(resolve, 0)); // lets signals in
    signal?.throwIfAborted();
    const began = performance.now(), from = timed.samples.length;
    const logits = timed.forward(ids, cache, pass);
    const ms = performance.now() - began;
    note(part, from, began, runs);
    return { logits, ms };
  };
  const ids = promptIds(promptTokens, vocabSize);
  for (const warm of [ids.slice(0, ROWS / 16), [0]]) { // compiles
    const pass = { first: 0, sequences: 1, tokens: warm.length };
    await run(warm, pass, "profiled prefill");
  }
  cache.reset();
  timed.samples.length = timeline.length = 0;

  const seen = Array.from({ length: batch }, () => seenBits(vocabSize, []));
  let step = 0;
  /** The next token of each sequence, and how long it took to choose them. */
  const sample = (
    rows: readonly Float32Array[],
    part: TimelineEvent["part"],
  ) => {
    const began = performance.now(), from = timed.samples.length;
    const next = sampleEach(rows, sampling, seen, step++);
    const ms = performance.now() - began;
    timed.sampled(batch, cache.lengths[0], ms);
    note(part, from, began);
    return { next, ms };
  };
  const prompts = prefillSamples(batch), runs = batch / prompts.length;
  let prefillMs = 0, last: Float32Array = new Float32Array();
  for (const first of prompts) {
    for (let at = 0; at < ids.length; at += ROWS) {
      const chunk = ids.slice(at, at + ROWS);
      const pass = { first, sequences: 1, tokens: chunk.length };
      const done = await run(chunk, pass, "profiled prefill", runs);
      prefillMs += runs * done.ms;
      last = done.logits;
    }
  }
  cache.reset(Array(batch).fill(promptTokens)); // of those that were not timed, too
  const rows: Float32Array[] = Array(batch).fill(last);
  const first = sample(rows, "profiled prefill");
  prefillMs += first.ms;
  const prefill = timed.samples.splice(0);
  let decodeMs = 0, steps = 0, { next } = first;
  while (
    steps < Math.min(MOST_STEPS, maxTokens - 1) &&
    (steps === 0 || decodeMs < BUDGET_MS)
  ) {
    const pass = { first: 0, sequences: batch, tokens: 1 };
    const { logits, ms } = await run(next, pass, "profiled decode");
    const sampled = sample(
      rows.map((_, s) => logits.subarray(s * vocabSize, (s + 1) * vocabSize)),
      "profiled decode",
    );
    next = sampled.next;
    decodeMs += ms + sampled.ms;
    steps++;
  }
  const tokens = batch * promptTokens;
  return {
    phases: [
      wallPhase("prefill", tokens, prefillMs, prefill, 1, BETWEEN),
      wallPhase(
        "decode",
        batch,
        decodeMs / steps,
        timed.samples,
        steps,
        BETWEEN,
      ),
    ],
    timeline,
  };
}

/** {@linkcode Ops} on the CPU that notes what each verb takes. */
class TimedOps implements Ops<CpuTensor> {
  readonly samples: Sample[] = [];
  #context: CostContext;

  constructor(readonly runner: CpuRunner) {
    const { config } = runner;
    this.#context = { config, sequences: 1, tokens: 1, length: 0 };
  }

  /** Logits after the last token of each sequence; `ids` are appended to `cache`. */
  forward(
    ids: readonly number[],
    cache: CpuKvCache,
    pass: CachePass,
  ): Float32Array {
    const { config, weights } = this.runner;
    const { first, sequences, tokens } = pass, length = cache.lengths[first];
    this.#context = { config, sequences, tokens, length };
    cache.begin(pass);
    const data = Uint32Array.from(ids);
    const input: CpuTensor = { dtype: "u32", shape: [ids.length], data };
    const logits = familyOf(config).forward(this, weights, input, cache);
    cache.advance();
    return (logits.data as Float32Array).slice();
  }

  /** Notes what sampling took. */
  sampled(sequences: number, length: number, ms: number): void {
    const { config } = this.runner;
    const context = { config, sequences, tokens: 1, length };
    this.#note("sampling.sample", "argmax", {}, {}, ms, context);
  }

  embed(table: Matrix<CpuTensor>, tokens: CpuTensor): CpuTensor {
    const { n, k } = table, m = tokens.shape[0];
    return this.#time(
      () => this.runner.ops.embed(table, tokens),
      "embed_tokens",
      "embed",
      { m, n, k },
      { TABLE_DTYPE: table.parts[0].format.name },
    );
  }

  normMatmul(
    x: CpuTensor,
    norm: Matrix<CpuTensor>,
    w: Matrix<CpuTensor>,
  ): CpuTensor {
    return this.#linear(
      x,
      w,
      { NORM: 1, EPILOGUE: "store" },
      () => this.runner.ops.normMatmul(x, norm, w),
    );
  }

  matmulAdd(
    x: CpuTensor,
    w: Matrix<CpuTensor>,
    residual: CpuTensor,
  ): CpuTensor {
    return this.#linear(
      x,
      w,
      { EPILOGUE: "add" },
      () => this.runner.ops.matmulAdd(x, w, residual),
    );
  }

  normSwiglu(
    x: CpuTensor,
    norm: Matrix<CpuTensor>,
    gateUp: Matrix<CpuTensor>,
  ): CpuTensor {
    return this.#linear(
      x,
      gateUp,
      { NORM: 1, EPILOGUE: "swiglu" },
      () => this.runner.ops.normSwiglu(x, norm, gateUp),
    );
  }

  attend(
    qkv: CpuTensor,
    qNorm: Matrix<CpuTensor>,
    kNorm: Matrix<CpuTensor>,
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
    w: Matrix<CpuTensor>,
    constants: Constants,
    verb: () => CpuTensor,
  ): CpuTensor {
    const [m, k] = x.shape, { label, n } = w;
    const began = performance.now();
    const result = verb();
    const ms = performance.now() - began;
    // Rows in different formats move different bytes.
    const costs = w.parts.flatMap((part) => {
      const rows = rowsHeld(part), all = { W_DTYPE: part.format.name };
      const dims = { m, n: rows, k };
      return costsOf({
        ...{ label, kernel: "gemv", dims },
        constants: { ...constants, ...all },
      }, this.#context).map((cost) => ({ ...cost, part: rows / n }));
    });
    this.#push(label, { m, n, k }, constants, ms, costs);
    return result;
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
    const costed = { label, kernel: like, dims, constants };
    this.#push(label, dims, constants, ms, costsOf(costed, context), context);
  }

  #push(
    label: string,
    dims: Record<string, number>,
    constants: Constants,
    ms: number,
    costs: Cost[],
    context: CostContext = this.#context,
  ): void {
    const { kernel, reason } = this.runner.ops.info;
    this.samples.push({
      dispatch: { label, kernel: `CPU ${kernel}`, dims, constants, reason },
      context,
      workgroups: 1,
      ms,
      costs,
    });
  }
}
