/**
 * The verbs of a model on the GPU. Each records dispatches into the current
 * {@linkcode Plan}; nothing runs until the plan does.
 *
 * @module
 */
import { embed } from "../../kernels/embed.ts";
import { feedForward } from "../../kernels/feed_forward.ts";
import { pendingConstants } from "../../kernels/pending.ts";
import type { Matrix } from "../formats/matrix.ts";
import type { KvCache } from "../model/kv_cache.ts";
import { chooseFeedForward, joinsMlp } from "../dispatch/feed_forward.ts";
import { readsPending } from "../dispatch/linear.ts";
import type { Qwen3Config } from "../checkpoint/config.ts";
import type { Gpu } from "../webgpu/device.ts";
import type { Operands } from "../webgpu/kernel.ts";
import type { Ops } from "../model/ops.ts";
import { Plan } from "../webgpu/plan.ts";
import { Tensor } from "../webgpu/tensor.ts";
import { Recorder, type Ungated } from "./recorder.ts";
import { LinearLayers } from "./linear_layers.ts";
import { AttentionLayers } from "./attention_layers.ts";
import { ExpertLayers } from "./expert_layers.ts";

/** The number of partial sums of squares that embed writes per row. */
const EMBED_PARTS = Number(embed.constants.WORKGROUP);

/** {@linkcode Ops} on the GPU, with scratch memory of its own. */
export class GpuOps implements Ops<Tensor>, Disposable {
  readonly #recorder: Recorder;
  readonly #linears: LinearLayers;
  readonly #attention: AttentionLayers;
  readonly #experts: ExpertLayers;

  constructor(
    readonly gpu: Gpu,
    readonly config: Qwen3Config,
    plan: Plan = new Plan(gpu),
  ) {
    this.#recorder = new Recorder(gpu, config, plan);
    this.#linears = new LinearLayers(this.#recorder);
    this.#attention = new AttentionLayers(this.#recorder, this.#linears);
    this.#experts = new ExpertLayers(this.#recorder, this.#linears);
  }

  /**
   * The plan that verbs record into; set it before a forward pass, and when that goes on after
   * another. A pass may also have several plans, one after another.
   */
  get plan(): Plan {
    return this.#recorder.plan;
  }

  set plan(plan: Plan) {
    this.#recorder.plan = plan;
  }

  /** See {@linkcode Recorder.joins}. */
  get joins(): boolean {
    return this.#recorder.joins;
  }

  set joins(joins: boolean) {
    this.#recorder.joins = joins;
  }

  /** See {@linkcode Recorder.halves}. */
  get halves(): boolean {
    return this.#recorder.halves;
  }

  set halves(halves: boolean) {
    this.#recorder.halves = halves;
  }

  embed(table: Matrix<Tensor>, tokens: Tensor): Tensor {
    const [rows] = tokens.shape, x = this.#recorder.rows("x", rows, table.k);
    // A pass that was given up may have left something pending.
    const clears = rows === 1 && this.joins &&
      joinsMlp(this.config, table, this.gpu);
    this.#recorder.begin(clears);
    const pending: Operands = clears
      ? {
        first: this.#recorder.sums(0, table.k),
        second: this.#recorder.sums(1, table.k),
      }
      : {};
    const squares = this.#recorder.leaveSquares(x, EMBED_PARTS);
    for (const part of table.parts) {
      const operands = { table: { matrix: table, part }, tokens, x, squares };
      this.plan.add(embed, { ...operands, ...pending }, {
        label: "embed_tokens",
        reason: "rows by index",
        constants: { CLEARS: clears ? 1 : 0 },
        uniforms: { begin: part.begin },
      });
    }
    return x;
  }

  normMatmul(
    x: Tensor,
    norm: Matrix<Tensor>,
    w: Matrix<Tensor>,
    reader?: "attend",
  ): Tensor {
    const y = this.#recorder.rows("projected", x.shape[0], w.n);
    const reads = w.parts.every(({ format, rows: n }) =>
      readsPending({ n, k: w.k, format }, this.gpu)
    );
    if (!reads) this.#linears.settle(x);
    const parts = this.joins && reader === "attend";
    return this.#linears.linear(x, w, y, { norm, epilogue: "store", parts });
  }

  matmulAdd(
    x: Tensor,
    w: Matrix<Tensor>,
    residual: Tensor,
    after?: readonly [norm: Matrix<Tensor>, w: Matrix<Tensor>],
  ): Tensor {
    const recording = this.#recorder.recording,
      ungated = recording.ungated.get(x.buffer);
    if (ungated) return this.#feedForward(ungated, w, residual);
    const next = after && { norm: after[0], w: after[1] };
    const unprojected = recording.unprojected.get(x.buffer);
    recording.unprojected.delete(x.buffer);
    // A kernel that read the residual has written it with what was pending.
    const y = recording.whole.get(residual.buffer) ?? residual;
    recording.whole.delete(residual.buffer);
    const record = () =>
      this.#linears.linear(x, w, y, { epilogue: "add", next });
    if (!unprojected) return record();
    const { from } = unprojected;
    this.plan.only(({ length }) => length >= from, record);
    unprojected.record(w, y);
    return y;
  }

  normSwiglu(
    x: Tensor,
    norm: Matrix<Tensor>,
    gateUp: Matrix<Tensor>,
    down?: Matrix<Tensor>,
  ): Tensor {
    const rows = x.shape[0],
      y = this.#recorder.rows("gated", rows, gateUp.n / 2);
    const recording = this.#recorder.recording;
    const joined = this.joins && rows === 1 && down
      ? chooseFeedForward({ gateUp, down }, this.gpu)
      : undefined;
    if (typeof joined === "object" && recording.clears) {
      this.#linears.settle(x);
      recording.ungated.set(y.buffer, { x, norm, gateUp, choice: joined });
      return y;
    }
    if (gateUp.parts.every(({ twin }) => twin !== undefined)) {
      const next = down && { w: down };
      const why = typeof joined === "object"
        ? "embeddings are stored in blocks"
        : joined;
      const note = why && `down_proj has a dispatch of its own: ${why}`;
      const how = { norm, epilogue: "swiglu", next, note } as const;
      return this.#linears.linear(x, gateUp, y, how);
    }
    const both = this.#recorder.rows("gate and up", rows, gateUp.n);
    this.#linears.linear(x, gateUp, both, { norm, epilogue: "store" });
    this.#linears.swiglu(gateUp, both, y);
    return y;
  }

  /** Records an MLP, whose results are then pending for `residual`. */
  #feedForward(
    { x, norm, gateUp, choice: { constants, adders, reason } }: Ungated,
    down: Matrix<Tensor>,
    residual: Tensor,
  ): Tensor {
    const recording = this.#recorder.recording;
    recording.ungated.clear();
    const pending = {
      sums: this.#recorder.sums(recording.turn, down.n),
      constants: pendingConstants(adders),
    };
    recording.turn = 1 - recording.turn;
    const cleared = this.#recorder.sums(recording.turn, down.n);
    const matrices = { w: gateUp, down };
    const sums = { pending: pending.sums, cleared };
    this.plan.add(feedForward, { ...matrices, x, norm, ...sums }, {
      label: gateUp.label.replace(/gate_up_proj$/, "mlp"),
      reason,
      constants: { ...constants, ...pending.constants },
      uniforms: { eps: this.config.rmsNormEps },
    });
    this.#recorder.forget(residual);
    recording.pending.set(residual.buffer, pending);
    return residual;
  }

  chooseExperts(scores: Tensor): Tensor {
    return this.#experts.chooseExperts(scores);
  }

  expertsSwiglu(
    ...call: Parameters<ExpertLayers["expertsSwiglu"]>
  ): Tensor {
    return this.#experts.expertsSwiglu(...call);
  }

  expertsAdd(...call: Parameters<ExpertLayers["expertsAdd"]>): Tensor {
    return this.#experts.expertsAdd(...call);
  }

  attend(...call: Parameters<AttentionLayers["attend"]>): Tensor {
    return this.#attention.attend(...call);
  }

  lastRow(
    x: Tensor,
    { pass: { tokens } }: KvCache<Tensor>,
    ends?: Tensor,
  ): Tensor {
    if (tokens === 1) return x;
    if (ends) return this.#gather(x, ends);
    const [rows] = x.shape;
    const last = Uint32Array.from(
      { length: rows / tokens },
      (_, sequence) => (sequence + 1) * tokens - 1,
    );
    const index = Tensor.create(
      this.gpu,
      "u32",
      [last.length],
      last,
      "last rows",
    );
    this.plan.own(index);
    return this.#gather(x, index);
  }

  normRows(x: Tensor, rows: Tensor, norm: Matrix<Tensor>): Tensor {
    this.#linears.settle(x);
    return this.#linears.normed(this.#gather(x, rows), norm);
  }

  /** The rows of `x` that `index` names. */
  #gather(x: Tensor, index: Tensor): Tensor {
    const y = this.#recorder.rows("last", index.shape[0], x.shape[1]);
    const squares = this.#recorder.leaveSquares(y, EMBED_PARTS);
    this.plan.add(embed, { table: x, tokens: index, x: y, squares }, {
      label: "last_row",
      reason: "rows by index",
      uniforms: { begin: 0 },
    });
    return y;
  }

  /** Frees the scratch memory; plans that use it must not run again. */
  [Symbol.dispose](): void {
    this.#recorder[Symbol.dispose]();
  }
}
