/**
 * The CPU path timed verb by verb.
 *
 * @module
 */
import { type Matrix, rowsHeld } from "../../formats/matrix.ts";
import type { CpuKvCache } from "../../cpu/kv_cache.ts";
import type { CpuTensor } from "../../cpu/ops.ts";
import type { CpuRunner } from "../../cpu/runner.ts";
import type { Constants } from "../../dispatch/shapes.ts";
import { familyOf } from "../../model/families.ts";
import { finish } from "../../model/family.ts";
import type { CachePass } from "../../model/kv_cache.ts";
import { type History, historyOf, sampleEach } from "../../model/sampling.ts";
import { type Call, tap } from "../../model/tap.ts";
import { type CostContext, type Costed, costsOf } from "./costs.ts";
import { type Sample, timelineName, wallPhase } from "./operations.ts";
import type { Phase, TimelineEvent } from "./report.ts";
import { prefillSamples, promptIds, type Setting } from "./setting.ts";

/** The longest time spent on timing decode steps. */
const BUDGET_MS = 2000, MOST_STEPS = 16;
/** Prompt tokens that go through the model at once. */
const ROWS = 256;

const BETWEEN = {
  name: "in between",
  reason: "the forward pass itself, and the copy of the logits",
};

type CpuSetting = Pick<
  Setting,
  "promptTokens" | "maxTokens" | "batch" | "sampling" | "origin" | "signal"
>;
type Part = TimelineEvent["part"];

/** Times a prefill of every prompt, and sampled decode steps of the batch. */
export async function profileCpu(
  runner: CpuRunner,
  setting: CpuSetting,
): Promise<{ phases: Phase[]; timeline: TimelineEvent[] }> {
  const { promptTokens, maxTokens, batch } = setting;
  runner.requireRoom(batch, promptTokens + maxTokens);
  const { cacheDtype } = runner, room = promptTokens + maxTokens;
  using cache = runner.ops.createCache(batch, room, cacheDtype);
  const { vocabSize } = runner.config;
  const ids = promptIds(promptTokens, vocabSize);
  const warm = new CpuProfile(runner, cache, setting);
  for (const few of [ids.slice(0, ROWS / 16), [0]]) { // compiles
    const pass = { first: 0, sequences: 1, tokens: few.length };
    await warm.forward(few, pass, "profiled prefill");
  }
  cache.reset();
  const profile = new CpuProfile(runner, cache, setting);
  const { phase, next } = await profile.prefill(ids);
  const decode = await profile.decode(next);
  return { phases: [phase, decode], timeline: profile.timeline };
}

/** A result and how long it took. */
interface Timed<R> {
  result: R;
  ms: number;
}

/** Runs the phases and keeps what each verb took. */
class CpuProfile {
  readonly timeline: TimelineEvent[] = [];
  readonly #histories: History[];
  #samples: Sample[] = [];
  #step = 0;

  constructor(
    readonly runner: CpuRunner,
    readonly cache: CpuKvCache,
    readonly setting: CpuSetting,
  ) {
    this.#histories = Array.from(
      { length: setting.batch },
      () => historyOf(runner.config.vocabSize, []),
    );
  }

  /** A prefill of each prompt, and the first token of each sequence. */
  async prefill(
    ids: readonly number[],
  ): Promise<{ phase: Phase; next: number[] }> {
    const { batch, promptTokens } = this.setting;
    const prompts = prefillSamples(batch), runs = batch / prompts.length;
    let ms = 0, last: Float32Array = new Float32Array();
    for (const first of prompts) {
      for (let at = 0; at < ids.length; at += ROWS) {
        const chunk = ids.slice(at, at + ROWS);
        const pass = { first, sequences: 1, tokens: chunk.length };
        const done = await this.forward(chunk, pass, "profiled prefill", runs);
        ms += runs * done.ms;
        last = done.result;
      }
    }
    // The prompts that were not timed count as cached, too.
    this.cache.reset(Array(batch).fill(promptTokens));
    const sampled = this.#sample(Array(batch).fill(last), "profiled prefill");
    ms += sampled.ms;
    const tokens = batch * promptTokens;
    const samples = this.#takeSamples();
    const phase = wallPhase("prefill", tokens, ms, samples, 1, BETWEEN);
    return { phase, next: sampled.result };
  }

  /** Decode steps of the whole batch, for as long as the budget allows. */
  async decode(next: number[]): Promise<Phase> {
    const { batch, maxTokens } = this.setting;
    const { vocabSize } = this.runner.config;
    const most = Math.min(MOST_STEPS, maxTokens - 1);
    let ms = 0, steps = 0;
    while (steps < most && (steps === 0 || ms < BUDGET_MS)) {
      const pass = { first: 0, sequences: batch, tokens: 1 };
      const done = await this.forward(next, pass, "profiled decode");
      const rows = next.map((_, s) =>
        done.result.subarray(s * vocabSize, (s + 1) * vocabSize)
      );
      const sampled = this.#sample(rows, "profiled decode");
      next = sampled.result;
      ms += done.ms + sampled.ms;
      steps++;
    }
    const samples = this.#takeSamples();
    return wallPhase("decode", batch, ms / steps, samples, steps, BETWEEN);
  }

  /**
   * Logits after the last token of each sequence. `runs` is how many passes this one
   * stands for.
   */
  async forward(
    ids: readonly number[],
    pass: CachePass,
    part: Part,
    runs?: number,
  ): Promise<Timed<Float32Array>> {
    await new Promise((resolve) => setTimeout(resolve, 0)); // lets signals through
    this.setting.signal?.throwIfAborted();
    const { cache, runner: { config, weights, ops } } = this;
    const { first, sequences, tokens } = pass, length = cache.lengths[first];
    const context = { config, sequences, tokens, length };
    const from = this.#samples.length, began = performance.now();
    const timed = tap(ops, (call, run) => {
      const began = performance.now(), result = run();
      this.#add(this.#costed(call), context, performance.now() - began);
      return result;
    });
    cache.begin(pass);
    const data = Uint32Array.from(ids);
    const input: CpuTensor = { dtype: "u32", shape: [ids.length], data };
    const logits = finish(
      familyOf(config).forward(timed, weights, input, cache),
    );
    cache.advance();
    const result = (logits.data as Float32Array).slice();
    const ms = performance.now() - began;
    this.#draw(part, from, began, runs);
    return { result, ms };
  }

  /** The next token of each sequence. */
  #sample(rows: readonly Float32Array[], part: Part): Timed<number[]> {
    const { config } = this.runner, [length] = this.cache.lengths;
    const from = this.#samples.length, began = performance.now();
    const { sampling } = this.setting;
    const histories = this.#histories, step = this.#step++;
    const result = [...sampleEach(rows, sampling, histories, step)];
    const ms = performance.now() - began;
    this.#add(
      [{ label: "sampling.sample", kernel: "argmax", dims: {}, constants: {} }],
      { config, sequences: rows.length, tokens: 1, length },
      ms,
    );
    this.#draw(part, from, began);
    return { result, ms };
  }

  /** Puts the samples from index `from` on the timeline, one after the other. */
  #draw(part: Part, from: number, began: number, runs = 1): void {
    let begin = began - this.setting.origin;
    for (const sample of this.#samples.slice(from)) {
      const { ms = 0 } = sample, name = timelineName(sample);
      this.timeline.push({ lane: "CPU", part, name, begin, ms });
      begin += ms;
      sample.runs = runs;
    }
  }

  #takeSamples(): Sample[] {
    return this.#samples.splice(0);
  }

  /** Records a verb as one dispatch, or as several that each compute some columns. */
  #add(like: Costed[], context: CostContext, ms: number): void {
    const { kernel, reason } = this.runner.ops.info, [first] = like;
    const columns = like.reduce((sum, { dims: { n = 1 } }) => sum + n, 0);
    const costs = like.flatMap((one) => {
      const share = like.length === 1 ? 1 : one.dims.n / columns;
      return costsOf(one, context)
        .map((cost) => ({ ...cost, part: cost.part * share }));
    });
    this.#samples.push({
      dispatch: { ...first, kernel: `CPU ${kernel}`, reason },
      context,
      workgroups: 1,
      ms,
      costs,
    });
  }

  /** A verb as dispatches of the GPU kernel that costs the same, one per format. */
  #costed(call: Call<CpuTensor>): Costed[] {
    const linear = (
      { shape: [m, k] }: CpuTensor,
      { label, parts }: Matrix<CpuTensor>,
      constants: Constants,
    ) =>
      parts.map((part) => ({
        label,
        kernel: "gemv",
        dims: { m, n: rowsHeld(part), k },
        constants: { ...constants, W_DTYPE: part.format.name },
      }));
    const experts = (
      { label, parts, n: rows, k }: Matrix<CpuTensor>,
      { shape: [, used] }: CpuTensor,
      constants: Constants,
    ) =>
      parts.map((part) => {
        const n = rowsHeld(part);
        const EXPERTS = n / rows * this.runner.config.experts!.count;
        const own = { ...constants, EXPERTS, W_DTYPE: part.format.name };
        return {
          label,
          kernel: "expertGemv",
          dims: { held: n, n, k, used },
          constants: own,
        };
      });
    switch (call.verb) {
      case "embed": {
        const [{ n, k, parts: [{ format }] }, { shape: [m] }] = call.args;
        const constants = { TABLE_DTYPE: format.name };
        const dims = { m, n, k };
        return [{ label: "embed_tokens", kernel: "embed", dims, constants }];
      }
      case "normMatmul": {
        const [x, _, w] = call.args;
        return linear(x, w, { NORM: 1, EPILOGUE: "store" });
      }
      case "matmulAdd": {
        const [x, w] = call.args;
        return linear(x, w, { EPILOGUE: "add" });
      }
      case "normSwiglu": {
        const [x, _, w] = call.args;
        return linear(x, w, { NORM: 1, EPILOGUE: "swiglu" });
      }
      case "chooseExperts": {
        const [{ shape: [m, n] }] = call.args;
        const dims = { m, n }, constants = {}, kernel = "chooseExperts";
        return [{ label: "choose_experts", kernel, dims, constants }];
      }
      case "expertsSwiglu": {
        const [, , w, chosen] = call.args;
        return experts(w, chosen, { EPILOGUE: "swiglu" });
      }
      case "expertsAdd": {
        const [, w, chosen] = call.args;
        return experts(w, chosen, { EPILOGUE: "add" });
      }
      case "attend": {
        const label = `layers.${call.args[4]}.attention`;
        const constants = { K_DTYPE: "f32" };
        return [{ label, kernel: "attendDecode", dims: {}, constants }];
      }
      case "lastRow": // these cost too little to count
      case "normRows":
        return [{ label: "last_row", kernel: "", dims: {}, constants: {} }];
    }
  }
}
