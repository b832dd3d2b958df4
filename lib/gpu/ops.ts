/**
 * The verbs of a model on the GPU. Each records dispatches into the current
 * {@linkcode Plan}; nothing runs until the plan does.
 *
 * @module
 */
import { attendDecode, decodeGrid } from "../../kernels/attend_decode.ts";
import { pieceWords } from "../../kernels/attend_project.ts";
import { addPending } from "../../kernels/add_pending.ts";
import { attendPrefill } from "../../kernels/attend_prefill.ts";
import { attendPrefillF16 } from "../../kernels/attend_prefill_f16.ts";
import { attendPrefillMatrix } from "../../kernels/attend_prefill_matrix.ts";
import { chooseExperts } from "../../kernels/choose_experts.ts";
import { embed } from "../../kernels/embed.ts";
import { expertGemm } from "../../kernels/expert_gemm.ts";
import { expertGemmMatrix } from "../../kernels/expert_gemm_matrix.ts";
import { expertGemv, expertSquareParts } from "../../kernels/expert_gemv.ts";
import { expertGemvInt8 } from "../../kernels/expert_gemv_int8.ts";
import { feedForward } from "../../kernels/feed_forward.ts";
import { gatherRows } from "../../kernels/gather_rows.ts";
import { gemm } from "../../kernels/gemm.ts";
import { gemmMatrix } from "../../kernels/gemm_matrix.ts";
import { gemv, squareParts } from "../../kernels/gemv.ts";
import { gemvInt8, int8Parts } from "../../kernels/gemv_int8.ts";
import { gemvRows, rowParts } from "../../kernels/gemv_rows.ts";
import { gemvRowsInt8 } from "../../kernels/gemv_rows_int8.ts";
import { prefillGrid, splitsEnd } from "../../kernels/heads.ts";
import { int8Sizes } from "../../kernels/int8_case.ts";
import { mergeSplits } from "../../kernels/merge_splits.ts";
import { pendingConstants, pendingWords } from "../../kernels/pending.ts";
import { qkNormRope } from "../../kernels/qk_norm_rope.ts";
import { rmsNorm } from "../../kernels/rms_norm.ts";
import { roundedSizes } from "../../kernels/rounded_row.ts";
import { sortExperts } from "../../kernels/sort_experts.ts";
import { sumExperts } from "../../kernels/sum_experts.ts";
import { sumSplits } from "../../kernels/sum_splits.ts";
import { swiglu } from "../../kernels/swiglu.ts";
import { toF16 } from "../../kernels/to_f16.ts";
import { toInt8 } from "../../kernels/to_int8.ts";
import { unpack } from "../../kernels/unpack.ts";
import { type Matrix, type MatrixPart, rowsHeld } from "../formats/matrix.ts";
import {
  exactLanes,
  laneConstants,
  mostThreads,
  rowThreads,
} from "../dispatch/capabilities.ts";
import type { KvCache } from "../model/kv_cache.ts";
import type { Constants, Epilogue, NextShape } from "../dispatch/shapes.ts";
import {
  chooseFeedForward,
  type FeedForwardChoice,
  joinsMlp,
} from "../dispatch/feed_forward.ts";
import {
  chooseLinear,
  type LinearChoice,
  readsPending,
} from "../dispatch/linear.ts";
import {
  cacheConstant,
  chooseDecodeAttention,
  choosePrefillRows,
  choosePrefillSplits,
  chooseProjection,
  headConstants,
  mostSplits,
  type PrefillSplits,
  type ProjectionChoice,
} from "../dispatch/attention.ts";
import {
  chooseExpertGemm,
  chooseExpertGemv,
  groupsRows,
  groupTile,
  groupTiles,
} from "../dispatch/experts.ts";
import { chooseMatrixAttention } from "../dispatch/matrices.ts";
import { chooseAttentionDtype, headVector } from "../dispatch/precision.ts";
import type { Qwen3Config } from "../checkpoint/config.ts";
import type { Gpu } from "../webgpu/device.ts";
import {
  type Kernel,
  type Operands,
  splitGrid,
  type WeightOperand,
} from "../webgpu/kernel.ts";
import type { GpuKvCache } from "./kv_cache.ts";
import type { Ops } from "../model/ops.ts";
import { Plan, type StepState } from "../webgpu/plan.ts";
import { Tensor } from "../webgpu/tensor.ts";

/** The number of partial sums of squares that embed writes per row. */
const EMBED_PARTS = Number(embed.constants.WORKGROUP);
/** The number that addPending writes. */
const SETTLED_PARTS = Number(addPending.constants.WORKGROUP);

/** The kernels of one or a few rows, and the sums of squares that they leave. */
const BY_ROWS = {
  gemv: [gemv, squareParts],
  gemvInt8: [gemvInt8, int8Parts],
  gemvRows: [gemvRows, rowParts],
} as const;

/** The kernels of rows by their experts, and the sums of squares that they leave. */
const BY_EXPERTS = {
  expertGemv: [expertGemv, expertSquareParts],
  expertGemvInt8: [expertGemvInt8, int8Parts],
} as const;

/** Prefill attention by tensor cores. */
const WHOLE: PrefillSplits = {
  splits: () => 1,
  most: 1,
  reason: "keys are not split: the kernel for tensor cores cannot",
};

/** A call of a Linear layer, for one part of its matrix. */
interface LinearCall {
  x: Tensor;
  norm?: Matrix<Tensor>;
  /** `x`, or `x` normed by a separate dispatch if there is a norm. */
  input: () => Tensor;
  /** `x`, normed if there is a norm, as integers for lanes that take `unit` elements. */
  rounded: (unit: number) => [planes: Tensor, scales: Tensor];
  w: Matrix<Tensor>;
  part: MatrixPart<Tensor>;
  y: Tensor;
  epilogue: Epilogue;
  choice: LinearChoice;
  /** What is to be added to `x`. */
  pending?: Pending;
  next?: Next;
  /** The next part of the matrix, if the kernel takes both. */
  other?: MatrixPart<Tensor>;
}

/** The norm, if there is one, and the matrix that results go through next. */
interface Next {
  norm?: Matrix<Tensor>;
  w: Matrix<Tensor>;
}

/** Rows that were normed and converted to f16 where the splits of a matmul were summed. */
interface Halved {
  norm: Matrix<Tensor>;
  headroom: number;
  made: [rows: Tensor, scales: Tensor];
}

/** A row that the kernel that made it has rounded for the next one. */
interface Rounded {
  row: Tensor;
  /** By which it was normed, but for the factor. */
  norm: Matrix<Tensor> | undefined;
}

/** How pairs of a row and an expert are grouped by expert; see kernels/sort_experts.ts. */
interface Groups {
  tile: number;
  groups: Tensor;
  order: Tensor;
  places: Tensor;
}

/** A call of a Linear layer of experts. */
interface ExpertCall {
  x: Tensor;
  /** By which `x` is normed first. */
  norm?: Matrix<Tensor>;
  w: Matrix<Tensor>;
  chosen: Tensor;
  y: Tensor;
  epilogue: Epilogue;
  /** Rows of an expert, gates and ups counted once. */
  n: number;
  next?: Next;
}

/** Bytes of matrices on the device. */
const bytesOf = (matrices: readonly Matrix<Tensor>[]): number =>
  matrices.flatMap(({ parts }) => parts.flatMap(({ planes }) => planes))
    .reduce((sum, { bytes }) => sum + bytes, 0);

/** What kernels before it need to know about a matrix. */
const nextShape = ({ parts, largest }: Matrix<Tensor>): NextShape => ({
  formats: parts.map(({ format }) => format),
  largest,
});

/** The arguments of attention in one layer. */
interface Attend {
  qkv: Tensor;
  qNorm: Matrix<Tensor>;
  kNorm: Matrix<Tensor>;
  cache: GpuKvCache;
  layer: number;
}

/** Attention of few keys, which the matmul of its result is to record together with that. */
interface Unprojected {
  /** Cached tokens from which on attention runs by itself, and has been recorded. */
  readonly from: number;
  /** Records both, for fewer. */
  record(w: Matrix<Tensor>, residual: Tensor): void;
}

/** Gates and ups of one row, which the matmul of their result is to record together with that. */
interface Ungated {
  x: Tensor;
  norm: Matrix<Tensor>;
  gateUp: Matrix<Tensor>;
  choice: FeedForwardChoice;
}

/** Sums that are to be added to a row, in fixed point; see kernels/pending.ts. */
interface Pending {
  sums: Tensor;
  constants: Constants;
}

/** What verbs leave for those that follow in a recording, most of it by a tensor's buffer. */
class Recording {
  /** Partial sums of squares of rows. */
  readonly squares = new Map<GPUBuffer, Tensor>();
  /** Rows that were rounded for the next kernel, by the buffer of the unrounded ones. */
  readonly ahead = new Map<GPUBuffer, Rounded>();
  /** Rows in f16 for the next kernel, by the buffer of those in f32. */
  readonly halved = new Map<GPUBuffer, Halved>();
  /** Results of attention that are computed with what they are multiplied by. */
  readonly unprojected = new Map<GPUBuffer, Unprojected>();
  /** How rows are grouped by expert, if they are, by the buffer of what was chosen. */
  readonly groups = new Map<GPUBuffer, Groups>();
  /** Results of gates and ups that are computed with what they are multiplied by. */
  readonly ungated = new Map<GPUBuffer, Ungated>();
  /** What is to be added to a row when it is read. */
  readonly pending = new Map<GPUBuffer, Pending>();
  /** Rows to which that was added, by the buffer of those without. */
  readonly whole = new Map<GPUBuffer, Tensor>();
  /** Which of two buffers the next sums go to. */
  turn = 0;
  /** The flags of the cache. */
  flags?: Tensor;

  /** @param clears whether both are cleared when the pass begins */
  constructor(readonly clears: boolean) {}
}

/** {@linkcode Ops} on the GPU, with scratch memory of its own. */
export class GpuOps implements Ops<Tensor>, Disposable {
  #plan: Plan;
  #buffers = new Map<string, Tensor>();
  /** What verbs have left for those that follow. */
  #recording = new Recording(false);
  /** That of each plan: another pass may be recorded between two verbs. */
  #recordings = new WeakMap<Plan, Recording>();
  /**
   * Whether attention of few keys and the matmul of its result may be one dispatch, and so may
   * the matmuls of an MLP, if that pays off. What is between them is then in no buffer.
   */
  joins = true;

  constructor(
    readonly gpu: Gpu,
    readonly config: Qwen3Config,
    plan: Plan = new Plan(gpu),
  ) {
    this.#plan = plan;
  }

  /**
   * The plan that verbs record into; set it before a forward pass, and when that goes on after
   * another. A pass may also have several plans, one after another.
   */
  get plan(): Plan {
    return this.#plan;
  }

  set plan(plan: Plan) {
    this.#plan = plan;
    this.#recording = this.#recordings.get(plan) ?? this.#recording;
    this.#recordings.set(plan, this.#recording);
  }

  embed(table: Matrix<Tensor>, tokens: Tensor): Tensor {
    const [rows] = tokens.shape, x = this.#rows("x", rows, table.k);
    // A pass that was given up may have left something pending.
    const clears = rows === 1 && this.joins &&
      joinsMlp(this.config, table, this.gpu);
    this.#recording = new Recording(clears);
    this.#recordings.set(this.plan, this.#recording);
    const pending: Operands = clears
      ? { first: this.#sums(0, table.k), second: this.#sums(1, table.k) }
      : {};
    const squares = this.#leaveSquares(x, EMBED_PARTS);
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

  normMatmul(x: Tensor, norm: Matrix<Tensor>, w: Matrix<Tensor>): Tensor {
    const y = this.#rows("projected", x.shape[0], w.n);
    const reads = w.parts.every(({ format, rows: n }) =>
      readsPending({ n, k: w.k, format }, this.gpu)
    );
    if (!reads) this.#settle(x);
    return this.#linear(x, w, y, { norm, epilogue: "store" });
  }

  matmulAdd(
    x: Tensor,
    w: Matrix<Tensor>,
    residual: Tensor,
    after?: readonly [norm: Matrix<Tensor>, w: Matrix<Tensor>],
  ): Tensor {
    const recording = this.#recording,
      ungated = recording.ungated.get(x.buffer);
    if (ungated) return this.#feedForward(ungated, w, residual);
    const next = after && { norm: after[0], w: after[1] };
    const unprojected = recording.unprojected.get(x.buffer);
    recording.unprojected.delete(x.buffer);
    // A kernel that read the residual has written it with what was pending.
    const y = recording.whole.get(residual.buffer) ?? residual;
    recording.whole.delete(residual.buffer);
    const record = () => this.#linear(x, w, y, { epilogue: "add", next });
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
    const rows = x.shape[0], y = this.#rows("gated", rows, gateUp.n / 2);
    const recording = this.#recording;
    const joined = this.joins && rows === 1 && down
      ? chooseFeedForward({ gateUp, down }, this.gpu)
      : undefined;
    if (typeof joined === "object" && recording.clears) {
      this.#settle(x);
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
      return this.#linear(x, gateUp, y, how);
    }
    this.#recording.ahead.delete(y.buffer);
    const both = this.#rows("gate and up", rows, gateUp.n);
    this.#linear(x, gateUp, both, { norm, epilogue: "store" });
    this.#swiglu(gateUp, both, y);
    return y;
  }

  /** Records an MLP, whose results are then pending for `residual`. */
  #feedForward(
    { x, norm, gateUp, choice: { constants, adders, reason } }: Ungated,
    down: Matrix<Tensor>,
    residual: Tensor,
  ): Tensor {
    const recording = this.#recording;
    recording.ungated.clear();
    const pending = {
      sums: this.#sums(recording.turn, down.n),
      constants: pendingConstants(adders),
    };
    recording.turn = 1 - recording.turn;
    const cleared = this.#sums(recording.turn, down.n);
    const matrices = { w: gateUp, down };
    const sums = { pending: pending.sums, cleared };
    this.plan.add(feedForward, { ...matrices, x, norm, ...sums }, {
      label: gateUp.label.replace(/gate_up_proj$/, "mlp"),
      reason,
      constants: { ...constants, ...pending.constants },
      uniforms: { eps: this.config.rmsNormEps },
    });
    this.#forget(residual);
    recording.pending.set(residual.buffer, pending);
    return residual;
  }

  /** Where sums of `n` elements are pending, in one of two buffers. */
  #sums(turn: number, n: number): Tensor {
    const words = pendingWords(n);
    return this.#scratch(`pending ${turn}`, "u32", 1, words).view(words);
  }

  /** Where `x` is written with what is pending. */
  #added(x: Tensor): Tensor {
    const [m, k] = x.shape, one = this.#rows("x", m, k);
    const y = one.buffer === x.buffer ? this.#rows("x in turn", m, k) : one;
    this.#forget(y);
    this.#recording.pending.delete(x.buffer);
    this.#recording.whole.set(x.buffer, y);
    return y;
  }

  /** Adds what is pending for `x`, for kernels that do not. */
  #settle(x: Tensor): void {
    const recording = this.#recording,
      pending = recording.pending.get(x.buffer);
    if (!pending) return;
    recording.pending.delete(x.buffer);
    const squares = this.#leaveSquares(x, SETTLED_PARTS);
    const { flags } = recording, { sums } = pending;
    this.plan.add(addPending, { x, pending: sums, flags: flags!, squares }, {
      label: "residual",
      reason: "adds what an MLP left, for a kernel that does not read it",
      constants: pending.constants,
    });
  }

  #swiglu(gateUp: Matrix<Tensor>, both: Tensor, y: Tensor): void {
    this.plan.add(swiglu, { both, y }, {
      label: gateUp.label,
      reason:
        "gate and up are stored in different types, so no kernel reads both at once",
    });
  }

  chooseExperts(scores: Tensor): Tensor {
    const [rows, count] = scores.shape;
    const { used, normalized } = this.config.experts!;
    const chosen = this.#rows("chosen", 2 * rows, used);
    this.plan.add(chooseExperts, { scores, chosen }, {
      label: "choose_experts",
      reason: `the ${used} highest of ${count} scores`,
      constants: {
        ...laneConstants(this.gpu, count),
        NORMALIZED: normalized ? 1 : 0,
      },
    });
    if (groupsRows(rows, { count, used })) this.#group(chosen, count);
    else this.#recording.groups.delete(chosen.buffer);
    return chosen;
  }

  /** Groups pairs of a row and an expert by expert. */
  #group(chosen: Tensor, experts: number): void {
    const pairs = chosen.shape[0] / 2 * chosen.shape[1];
    const tile = groupTile(pairs, experts);
    const tiles = groupTiles(pairs, experts, tile);
    const u32 = (use: string, count: number) =>
      this.#scratch(use, "u32", count, 1).view(count);
    const groups = u32("groups", tiles), order = u32("order", tiles * tile);
    const places = u32("places", pairs);
    this.plan.add(sortExperts, { chosen, groups, order, places }, {
      label: "group_experts",
      reason: "rows are grouped by expert, whose matrix is then read once",
      constants: {
        EXPERTS: experts,
        TILE: tile,
        WORKGROUP: Math.min(256, mostThreads(this.gpu)),
      },
    });
    this.#recording.groups.set(chosen.buffer, { tile, groups, order, places });
  }

  expertsSwiglu(
    x: Tensor,
    norm: Matrix<Tensor>,
    w: Matrix<Tensor>,
    chosen: Tensor,
    next?: Matrix<Tensor>,
  ): Tensor {
    const n = this.config.experts!.intermediateSize;
    const pairs = x.shape[0] * chosen.shape[1];
    const groups = this.#recording.groups.get(chosen.buffer);
    this.#recording.ahead.delete(this.#rows("gated", pairs, n).buffer);
    if (groups) {
      const both = this.#grouped(x, w, { n, groups, norm });
      const { places } = groups, gated = this.#rows("gated", pairs, n);
      this.plan.add(swiglu, { both, places, y: gated }, {
        label: w.label,
        reason: "gates and ups of an expert are separate matmuls",
        constants: { PLACED: 1 },
      });
      return gated;
    }
    const call = { x, norm, w, chosen, n };
    const y = this.#rows("gated", pairs, n);
    if (w.parts.every(({ twin }) => twin !== undefined)) {
      this.#experts({
        ...{ ...call, y, epilogue: "swiglu" },
        next: next && { w: next },
      });
      return y;
    }
    const both = this.#rows("gate and up", pairs, 2 * n);
    this.#experts({ ...call, y: both, epilogue: "store" });
    this.#swiglu(w, both, y);
    return y;
  }

  expertsAdd(
    x: Tensor,
    w: Matrix<Tensor>,
    chosen: Tensor,
    residual: Tensor,
    after?: readonly [norm: Matrix<Tensor>, w: Matrix<Tensor>],
  ): Tensor {
    const n = residual.shape[1],
      groups = this.#recording.groups.get(chosen.buffer);
    if (!groups) {
      const next = after && { norm: after[0], w: after[1] };
      this.#experts({ x, w, chosen, y: residual, n, epilogue: "add", next });
      return residual;
    }
    const partial = this.#grouped(x, w, { n, groups }), { places } = groups;
    this.#forget(residual);
    this.plan.add(sumExperts, { partial, places, chosen, y: residual }, {
      label: w.label,
      reason: "sums the experts of a row, in order",
    });
    return residual;
  }

  /**
   * Multiplies rows that are grouped by expert. `n` is how many rows an expert has in w,
   * or in each half of it if that has gates and ups, which then follow one another in the
   * result.
   */
  #grouped(
    x: Tensor,
    w: Matrix<Tensor>,
    { n, groups: { tile, groups, order }, norm }: {
      n: number;
      groups: Groups;
      norm?: Matrix<Tensor>;
    },
  ): Tensor {
    const { count: experts, used } = this.config.experts!;
    const [padded] = order.shape, pairs = x.shape[0] * (norm ? used : 1);
    const sorted = this.#rows("sorted", padded, w.k);
    this.plan.add(gatherRows, { x, order, y: sorted }, {
      label: w.label,
      reason: "rows of an expert follow one another",
      constants: { USED: norm ? used : 1 },
    });
    const stride = w.n / experts, all = experts * n;
    const c = this.#rows(`${stride} of experts`, padded, stride);
    let normed: Tensor | undefined;
    let halves: { of: number; made: [Tensor, Tensor] } | undefined;
    for (const part of w.parts) {
      const { kernel, constants, headroom, reason } = chooseExpertGemm({
        ...{ pairs, experts, n, k: w.k },
        ...{ format: part.format, largest: w.largest },
      }, this.gpu);
      if (headroom && headroom !== halves?.of) {
        const made = this.#half(sorted, norm, headroom);
        halves = { of: headroom, made };
      }
      const [a, scales] = headroom
        ? halves!.made
        : [normed ??= norm ? this.#normed(sorted, norm) : sorted, sorted];
      for (const [i, begin] of [part.begin, part.twin].entries()) {
        if (begin === undefined) continue;
        const column = begin < all ? 0 : n;
        const byMatrix = kernel === "expertGemmMatrix";
        this.plan.add(byMatrix ? expertGemmMatrix : expertGemm, {
          ...{ a, b: { matrix: w, part }, scales, groups, c },
        }, {
          label: w.label,
          reason,
          constants: {
            ...constants,
            EXPERTS: part.rows / n,
            C_FOURS: n % 4 === 0 ? 1 : 0,
            PAIRS: pairs,
            COLUMNS: n,
          },
          uniforms: {
            ...{ n, column, ...(byMatrix ? {} : { m: tile }) },
            first: begin % all / n,
            base: i * part.rows,
          },
        });
      }
    }
    return c;
  }

  /**
   * Records a Linear layer of experts, for each part of their matrix. If each part adds to
   * the rows of y, the last leaves the sums of squares of the result.
   */
  #experts({ x, norm, w, chosen, y, epilogue, n, next }: ExpertCall): void {
    const { count } = this.config.experts!, used = chosen.shape[1];
    const swiglu = epilogue === "swiglu";
    const all = count * n; // rows of all gates, or of all ups
    const before = this.#recording.ahead.get(x.buffer);
    // Weights of experts in another part would not be theirs.
    const apart = w.parts.length > 1 ||
      epilogue === "swiglu" && next !== undefined && next.w.parts.length > 1;
    let normed: Tensor | undefined;
    const input = () => norm ? normed ??= this.#normed(x, norm) : x;
    for (const part of w.parts) {
      const { kernel, constants, reason, leaves } = chooseExpertGemv({
        ...{ m: chosen.shape[0] / 2, used, n, k: w.k, epilogue },
        ...{ format: part.format, largest: w.largest },
        rounded: before !== undefined && before.norm === norm,
        next: next && !apart ? nextShape(next.w) : undefined,
      }, this.gpu);
      const [run, parts] = BY_EXPERTS[kernel];
      const left = leaves
        ? swiglu
          ? this.#leaveRounded(y.view(1, used * n), epilogue)
          : this.#leaveRounded(y, epilogue, next?.norm)
        : undefined;
      const sums = epilogue === "add" && !left
        ? this.#leaveSquares(y, parts(n, constants))
        : undefined;
      this.plan.add(run, {
        w: { matrix: w, part },
        x: constants.ROUNDED ? before!.row : input(),
        chosen,
        y,
        ...(sums ? { squares: sums } : {}),
        ...(left ? { left } : {}),
        ...(next?.norm ? { nextNorm: next.norm } : {}),
      }, {
        label: w.label,
        reason,
        constants: {
          ...constants,
          EXPERTS: part.rows / n,
          WHOLE: part.rows === all ? 1 : 0,
        },
        uniforms: {
          n: swiglu ? 2 * n : n,
          first: part.begin % all / n,
          stride: y.shape[1],
          column: swiglu || part.begin < all ? 0 : n,
          ...(kernel === "expertGemvInt8"
            ? { eps: this.config.rmsNormEps }
            : {}),
        },
      });
    }
  }

  attend(
    qkv: Tensor,
    qNorm: Matrix<Tensor>,
    kNorm: Matrix<Tensor>,
    cache: GpuKvCache,
    layer: number,
    next?: readonly Matrix<Tensor>[],
  ): Tensor {
    this.#recording.flags = cache.flags;
    const step = { qkv, qNorm, kNorm, cache, layer };
    return cache.pass.tokens === 1
      ? this.#attendDecode(step, next)
      : this.#attendPrefill(step);
  }

  /** The operands of the kernels that normalize and rotate heads. */
  #headOperands({ qkv, qNorm, kNorm, cache, layer }: Attend) {
    const { k, v } = cache.layers[layer], { positions, state } = cache;
    return { qkv, qNorm, kNorm, k, v, positions, state };
  }

  #attendDecode(step: Attend, next: readonly Matrix<Tensor>[] = []): Tensor {
    const { qkv, cache, layer } = step;
    const { headDim, numAttentionHeads, numKeyValueHeads } = this.config;
    const heads = numAttentionHeads, group = heads / numKeyValueHeads;
    const rows = qkv.shape[0], { first: firstSequence } = cache.pass;
    const label = `layers.${layer}.attention`;
    const splits = mostSplits(cache.context, rows);
    const width = heads * headDim, all = rows * (1 + splits);
    const [oProj, ...others] = next;
    const kvHeads = numKeyValueHeads;
    const shape = { headDim, group, kvHeads, rows, cache: cache.dtype };
    const choices = chooseDecodeAttention({
      ...shape,
      next: oProj && { ...nextShape(oProj), k: width },
      bytesAfter: bytesOf(others),
    }, this.gpu);
    const y = this.#rows("attention", 1, all * width).view(all, width);
    this.#recording.ahead.delete(y.buffer);
    const leaves = choices.every(({ leaves }) => leaves);
    const operands = {
      ...this.#headOperands(step),
      y,
      ...(leaves ? { left: this.#leaveRounded(y, "attend") } : {}),
    };
    const eps = this.config.rmsNormEps, scale = headDim ** -0.5;
    const whole = others.length === 2 &&
      others.every(({ parts }) => parts.length === 1);
    const [after, last] = others.map(({ parts }) => parts[0].planes[0]);
    const projection = this.joins && oProj
      ? chooseProjection({ ...shape, w: oProj }, this.gpu)
      : undefined;
    const from = typeof projection === "object" ? projection.from : 0;
    this.#recording.unprojected.delete(y.buffer);
    for (const choice of choices) {
      const { constants, splits, shares, to } = choice;
      if (to <= from) continue; // it would never run
      const reason = typeof projection === "string"
        ? `${choice.reason}; o_proj has a dispatch of its own: ${projection}`
        : choice.reason;
      const ahead = whole ? choice.ahead : undefined;
      const fetched = ahead && { next: after, after: last };
      this.plan.add(attendDecode, { ...operands, ...fetched }, {
        label,
        reason: ahead
          ? `${reason}; ${ahead.FETCHERS} more workgroups prefetch the next weights into the cache`
          : reason,
        constants: { ...constants, ...ahead, ...cache.constants },
        uniforms: { firstSequence, eps, scale },
        gridAt: ({ length }) =>
          length >= from && splits(length)
            ? decodeGrid(
              splits(length),
              kvHeads * shares,
              rows,
              ahead?.FETCHERS ?? 0,
            )
            : undefined,
      });
    }
    if (typeof projection === "object") {
      const record = this.#projector(step, projection, label);
      this.#recording.unprojected.set(y.buffer, { from, record });
    }
    const attended = y.rows(rows); // the others are results of splits
    if (choices.every(({ merges }) => merges)) return attended;
    this.#mergeSplits(
      label,
      cache.state,
      y,
      rows * heads,
      ({ length }) =>
        length >= from && choices.some(({ splits }) => splits(length) > 1),
    );
    return attended;
  }

  /** Records attention of few keys with the matmul of its result. */
  #projector(
    step: Attend,
    { constants, from, reason }: ProjectionChoice,
    label: string,
  ): Unprojected["record"] {
    const { headDim, numKeyValueHeads: groups, rmsNormEps: eps } = this.config;
    const rows = Number(constants.PROJECT);
    const { constants: cached, pass: { first: firstSequence } } = step.cache;
    return (w, residual) => {
      const words = pieceWords(w.n, groups, rows);
      const pieces = this.#scratch("pieces of o_proj", "u32", 1, words);
      const given = { ...this.#headOperands(step), w, y: residual, pieces };
      // It leaves what o_proj by itself does.
      const rounded = this.#recording.ahead.get(residual.buffer);
      const left: Operands = rounded
        ? { left: rounded.row, nextNorm: rounded.norm! }
        : { squares: this.#recording.squares.get(residual.buffer)! };
      this.plan.add(attendDecode, { ...given, ...left }, {
        label: `${label}_o_proj`,
        reason,
        constants: { ...constants, LEAVES: rounded ? 1 : 0, ...cached },
        uniforms: { firstSequence, eps, scale: headDim ** -0.5 },
        gridAt: ({ length }) =>
          length < from
            ? decodeGrid(Math.ceil(w.n / rows), groups, 1, 0)
            : undefined,
      });
    };
  }

  #attendPrefill(step: Attend): Tensor {
    const { qkv, cache, layer } = step;
    const { headDim, numAttentionHeads: heads } = this.config;
    const group = heads / this.config.numKeyValueHeads;
    const { first, tokens } = cache.pass;
    const eps = this.config.rmsNormEps, scale = headDim ** -0.5;
    const [m] = qkv.shape, width = heads * headDim;
    const q = this.#rows("q", m, width);
    this.plan.add(qkNormRope, { ...this.#headOperands(step), q }, {
      label: `layers.${layer}.qk_norm_rope`,
      reason: "many tokens: q is normed once, then read by every tile of keys",
      constants: {
        ...headConstants(headDim, this.gpu),
        ...cacheConstant(cache.dtype),
        ...cache.constants,
      },
      uniforms: { heads, first, tokens, eps },
    });
    const rows = tokens * group;
    const { kernel, constants, multiplies } = this.#prefillKernel(step, rows);
    const sizes = { m, tokens, group, kvHeads: heads / group };
    const grid = (splits: number) => prefillGrid(sizes, constants.ROWS, splits);
    const { splits, most, reason } = kernel === attendPrefillMatrix
      ? WHOLE
      : choosePrefillSplits({
        workgroups: grid(1).reduce((a, b) => a * b),
        ...{ tokens, context: cache.context },
      }, this.gpu);
    const y = this.#rows("attention", m * (most > 1 ? 1 + most : 1), width);
    const state = most > 1
      ? this.#scratch(
        "splits of attention",
        "u32",
        splitsEnd(m * heads, most),
        1,
      )
      : undefined;
    const label = `layers.${layer}.attention`;
    const { k, v } = cache.layers[layer];
    this.plan.add(kernel, {
      ...{ q, lengths: cache.placesOnDevice, k, v, y },
      ...(state ? { state } : {}),
    }, {
      label,
      reason:
        `many tokens: rows of a kv head share each tile of keys; ${multiplies}; ${reason}`,
      constants: {
        HEAD_DIM: headDim,
        ...constants,
        ...(state ? { SPLIT: 1 } : {}),
        ...cacheConstant(cache.dtype),
        ...cache.constants,
      },
      uniforms: { first, tokens, group, scale },
      gridAt: state && (({ length }) => grid(splits(length))),
    });
    if (state) {
      this.#mergeSplits(
        label,
        state,
        y,
        m * heads,
        ({ length }) => splits(length) > 1,
      );
    }
    return y.rows(m);
  }

  /** The kernel of prefill attention for `rows` rows per kv head, and why it multiplies so. */
  #prefillKernel({ qNorm, kNorm, cache }: Attend, rows: number) {
    const { headDim } = this.config;
    const { dtype, reason } = chooseAttentionDtype({
      cacheDtype: cache.dtype,
      headDim,
      largestQ: qNorm.largest,
      largestK: kNorm.largest,
      room: this.gpu.limits.maxComputeWorkgroupStorageSize,
    });
    const half = dtype === "f16";
    const matrices = half
      ? chooseMatrixAttention({ rows, headDim }, this.gpu)
      : undefined;
    if (typeof matrices === "object") {
      return {
        kernel: attendPrefillMatrix,
        constants: matrices.constants,
        multiplies: `${reason}, tensor cores multiply f16 and sum in f32`,
      };
    }
    return {
      kernel: half ? attendPrefillF16 : attendPrefill,
      constants: {
        ...exactLanes(this.gpu, 16),
        ...choosePrefillRows(rows, this.gpu, half),
      },
      multiplies: matrices === undefined
        ? reason
        : `${reason}; not by tensor cores: ${matrices}`,
    };
  }

  /** Records the merge of the splits of `heads` heads, where `isSplit` says there are some. */
  #mergeSplits(
    label: string,
    state: Tensor,
    y: Tensor,
    heads: number,
    isSplit: (state: StepState) => boolean,
  ): void {
    const { headDim } = this.config;
    this.plan.add(mergeSplits, { state, y }, {
      label,
      reason:
        "many keys: their splits run in separate workgroups, which cannot see each other's results",
      constants: {
        HEAD_DIM: headDim,
        VEC: headVector(headDim),
        ...laneConstants(this.gpu),
      },
      uniforms: { heads },
      gridAt: (state) => isSplit(state) ? splitGrid(heads) : undefined,
    });
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
    this.#settle(x);
    return this.#normed(this.#gather(x, rows), norm);
  }

  /** The rows of `x` that `index` names. */
  #gather(x: Tensor, index: Tensor): Tensor {
    const y = this.#rows("last", index.shape[0], x.shape[1]);
    const squares = this.#leaveSquares(y, EMBED_PARTS);
    this.plan.add(embed, { table: x, tokens: index, x: y, squares }, {
      label: "last_row",
      reason: "rows by index",
      uniforms: { begin: 0 },
    });
    return y;
  }

  #linear(
    x: Tensor,
    w: Matrix<Tensor>,
    y: Tensor,
    { norm, epilogue, next, note }: {
      norm?: Matrix<Tensor>;
      epilogue: Epilogue;
      next?: Next;
      /** Added to the reason. */
      note?: string;
    },
  ): Tensor {
    const [m, k] = x.shape, before = this.#recording.ahead.get(x.buffer);
    this.#recording.ahead.delete(y.buffer);
    this.#recording.halved.delete(y.buffer);
    let normed: Tensor | undefined;
    const input = () => norm ? normed ??= this.#normed(x, norm) : x;
    const integers = new Map<number, [Tensor, Tensor]>();
    const rounded = (unit: number) => {
      let made = integers.get(unit);
      if (!made) integers.set(unit, made = this.#rounded(x, norm, input, unit));
      return made;
    };
    let taken = 0;
    const pending = this.#recording.pending.get(x.buffer);
    for (const [i, part] of w.parts.entries()) {
      if (i < taken) continue;
      const following = w.parts[i + 1];
      const other = epilogue === "store" &&
          following?.begin === part.begin + rowsHeld(part)
        ? following
        : undefined;
      const chosen = chooseLinear({
        m,
        pending: pending !== undefined,
        n: rowsHeld(part),
        k,
        format: part.format,
        norm: norm !== undefined,
        swiglu: epilogue === "swiglu",
        largest: w.largest,
        exact: w.exact,
        fixed: true,
        rounded: before !== undefined && before.norm === norm,
        other: other && { n: rowsHeld(other), format: other.format },
        next: next && w.parts.length === 1 ? nextShape(next.w) : undefined,
      }, this.gpu);
      const choice = note
        ? { ...chosen, reason: `${chosen.reason}; ${note}` }
        : chosen;
      taken = i + (choice.two ? 2 : 1);
      const call = {
        ...{ x, norm, input, rounded, w, part, y, epilogue, choice, next },
        pending,
        other: choice.two ? other : undefined,
      };
      if (choice.kernel === "gemm") this.#gemm(call, gemm);
      else if (choice.kernel === "gemmMatrix") this.#gemm(call, gemmMatrix);
      else if (choice.kernel === "gemvRowsInt8") this.#gemvRowsInt8(call);
      else this.#gemv(call, choice.kernel);
    }
    return y;
  }

  /** Records a matmul of one or a few rows. */
  #gemv(
    {
      x,
      norm,
      pending,
      input,
      w,
      part,
      other,
      y,
      epilogue,
      choice,
      next,
    }: LinearCall,
    by: keyof typeof BY_ROWS,
  ): void {
    const { constants, reason } = choice, [kernel, sums] = BY_ROWS[by];
    const fours = by !== "gemvRows" && constants.SPREAD !== "rows";
    const before = constants.ROUNDED
      ? this.#recording.ahead.get(x.buffer)
      : undefined;
    const squares = this.#recording.squares.get(x.buffer);
    const fused = pending || norm && choice.fusedNorm && squares &&
        // One row's are read four at a time, except where each lane has its own rows.
        !(fours && squares.shape[1] % 4);
    const left = choice.leaves
      ? this.#leaveRounded(y, epilogue, next?.norm)
      : undefined;
    const leaves = epilogue === "add" && !left
      ? this.#leaveSquares(y, sums(part.rows, constants))
      : undefined;
    this.plan.add(kernel, {
      w: { matrix: w, part },
      ...(other ? { v: { matrix: w, part: other } } : {}),
      x: before?.row ?? (fused ? x : input()),
      y,
      ...(fused ? { norm: norm! } : {}),
      ...(pending
        ? {
          pending: pending.sums,
          added: this.#added(x),
          flags: this.#recording.flags!,
        }
        : fused
        ? { squares: squares! }
        : {}),
      ...(leaves ? { squares: leaves } : {}),
      ...(left ? { left } : {}),
      ...(next?.norm ? { nextNorm: next.norm } : {}),
    }, {
      label: w.label,
      reason,
      constants: {
        ...constants,
        EPILOGUE: epilogue,
        NORM: fused ? 1 : 0,
        ...pending?.constants,
      },
      uniforms: {
        stride: y.shape[1],
        column: part.begin,
        eps: this.config.rmsNormEps,
      },
    });
    // Each part writes only the sums of its own rows.
    if (leaves && w.parts.length > 1) this.#recording.squares.delete(y.buffer);
  }

  /** Records a matmul of a few rows, rounded to integers. */
  #gemvRowsInt8(
    { rounded, w, part, other, y, epilogue, choice }: LinearCall,
  ): void {
    const { constants, reason } = choice;
    const [planes, scales] = rounded(part.format.loads[0]);
    const leaves = epilogue === "add"
      ? this.#leaveSquares(y, rowParts(part.rows, constants))
      : undefined;
    this.plan.add(gemvRowsInt8, {
      w: { matrix: w, part },
      ...(other ? { v: { matrix: w, part: other } } : {}),
      x: planes,
      scales,
      y,
      ...(leaves ? { squares: leaves } : {}),
    }, {
      label: w.label,
      reason,
      constants: { ...constants, EPILOGUE: epilogue },
      uniforms: { stride: y.shape[1], column: part.begin },
    });
    // Each part writes only the sums of its own rows.
    if (leaves && w.parts.length > 1) this.#recording.squares.delete(y.buffer);
  }

  /** Records a matmul of many rows. */
  #gemm(
    { x, norm, input, w, part, y, epilogue, choice, next }: LinearCall,
    kernel: Kernel,
  ): void {
    const { constants, reason, splits, headroom } = choice, { label } = w;
    if (epilogue === "add") this.#recording.squares.delete(y.buffer);
    const [a, scales] = headroom ? this.#half(x, norm, headroom) : [input(), x];
    const column = part.begin, n = rowsHeld(part);
    const stored = { matrix: w, part };
    const b = choice.unpacks ? this.#unpacked(stored, n) : stored;
    const stride = y.shape[1];
    // Parts of different formats can end at any row.
    const whole = column % 4 === 0 && n % 4 === 0 ? 1 : 0;
    if (splits === 1) {
      this.plan.add(kernel, { a, b, scales, c: y }, {
        label,
        reason,
        constants: { ...constants, EPILOGUE: epilogue, C_FOURS: whole },
        uniforms: { stride, column },
      });
      return;
    }
    const m = x.shape[0], partial = this.#rows("splits", splits * m, n);
    this.plan.add(kernel, { a, b, scales, c: partial }, {
      label,
      reason,
      constants,
      uniforms: { stride: n, column: 0 },
    });
    // A router multiplies in f32, and rows of experts are gathered first.
    const goesOn = w.parts.length === 1 && !this.config.experts;
    const after = epilogue === "add" && goesOn ? next?.norm : undefined;
    const room = after && this.#headroomFor(m, next!.w);
    if (after && room) {
      const made = this.#toHalf(y, after, room, partial);
      this.#recording.halved.set(y.buffer, {
        norm: after,
        headroom: room,
        made,
      });
      return;
    }
    this.plan.add(sumSplits, { partial, y }, {
      label,
      reason: "sums the splits of k",
      constants: {
        SPLITS: splits,
        ADD: epilogue === "add" ? 1 : 0,
        Y_FOURS: whole,
      },
      uniforms: { stride, column },
    });
  }

  /** What tensor cores want `m` rows to be scaled to that `w` multiplies; undefined if others do. */
  #headroomFor(m: number, { parts, k, largest }: Matrix<Tensor>) {
    const rooms = parts.map((part) => {
      const shape = { m, n: rowsHeld(part), k, format: part.format, largest };
      const given = { ...shape, norm: true, swiglu: false };
      const { kernel, headroom } = chooseLinear(given, this.gpu);
      return kernel === "gemmMatrix" ? headroom : undefined;
    });
    return rooms.every((room) => room === rooms[0]) ? rooms[0] : undefined;
  }

  /** Allocates partial sums of squares of `x`'s rows, to be looked up by its buffer. */
  #leaveSquares(x: Tensor, parts: number): Tensor {
    const squares = this.#rows(`squares of ${parts}`, x.shape[0], parts);
    this.#forget(x);
    this.#recording.squares.set(x.buffer, squares);
    return squares;
  }

  /** Allocates the row that the kernel which makes `y` rounds for the next one. */
  #leaveRounded(
    y: Tensor,
    epilogue: Epilogue | "attend",
    norm?: Matrix<Tensor>,
  ): Tensor {
    const { squares, words } = roundedSizes(y.shape[1]);
    // A kernel may read such a row and leave another one of the same size.
    const row = this.#scratch(`rounded by ${epilogue}`, "u32", 1, words);
    if (epilogue === "add") {
      const { gpu, buffer } = row, shape = [1, 4 * squares];
      this.#recording.squares.set(
        y.buffer,
        new Tensor(gpu, "f32", shape, buffer, "squares"),
      );
    }
    this.#recording.ahead.set(y.buffer, { row, norm });
    return row;
  }

  /** Forgets what kernels have left about the rows of `x`, which change. */
  #forget(x: Tensor): void {
    this.#recording.squares.delete(x.buffer);
    this.#recording.ahead.delete(x.buffer);
    this.#recording.halved.delete(x.buffer);
  }

  #normed(x: Tensor, norm: Matrix<Tensor>): Tensor {
    const [m, k] = x.shape;
    const y = this.#rows("normed", m, k);
    this.plan.add(rmsNorm, { x, norm, y }, {
      label: norm.label,
      reason: "rows are normed once, then read by every tile",
      constants: laneConstants(this.gpu),
      uniforms: { eps: this.config.rmsNormEps },
    });
    return y;
  }

  /** Converts the rows of `x` to f16, normed if `norm` is given, with a scale per row. */
  #half(
    x: Tensor,
    norm: Matrix<Tensor> | undefined,
    headroom: number,
  ): [Tensor, Tensor] {
    const known = this.#recording.halved.get(x.buffer);
    if (known && known.norm === norm && known.headroom === headroom) {
      return known.made;
    }
    return this.#toHalf(x, norm, headroom);
  }

  /** Records {@linkcode #half}, after adding the splits of k in `partial` to the rows of `x`. */
  #toHalf(
    x: Tensor,
    norm: Matrix<Tensor> | undefined,
    headroom: number,
    partial?: Tensor,
  ): [Tensor, Tensor] {
    const [m, k] = x.shape, of = partial ? " of a sum" : "";
    const y = this.#scratch(`half${of}`, "f16", m, k);
    const scales = this.#scratch(`scales${of}`, "f32", m, 1).view(m);
    const operands = { ...(partial ? { partial } : {}), x, norm: norm ?? x };
    this.plan.add(toF16, { ...operands, y, scales }, {
      label: norm?.label ?? "to_f16",
      reason: `${
        partial ? "sums the splits of k; f16 matmul follows" : "f16 matmul"
      }: each row is scaled into range`,
      constants: {
        NORM: norm ? 1 : 0,
        SPLITS: partial ? partial.shape[0] / m : 0,
        WORKGROUP: rowThreads(m, k, this.gpu),
        ...laneConstants(this.gpu),
      },
      uniforms: { eps: this.config.rmsNormEps, headroom },
    });
    return [y, scales];
  }

  /** Unpacks `n` rows of weights to f16; only the next matmul may read them. */
  #unpacked(w: WeightOperand, n: number): Tensor {
    const { k, label } = w.matrix, use = "unpacked";
    let held = this.#buffers.get(use);
    if (!held || held.bytes < 2 * n * k) {
      // Passes that were recorded before go on using the smaller one.
      if (held) this.#buffers.set(`${use} ${held.bytes}`, held);
      held = Tensor.create(this.gpu, "f16", [n, k], undefined, use);
      this.#buffers.set(use, held);
    }
    const y = new Tensor(this.gpu, "f16", [n, k], held.buffer, use);
    this.plan.add(unpack, { w, y }, {
      label,
      reason: "f16 matmul of many rows: tiles read unpacked weights",
    });
    return y;
  }

  /** Rounds the rows of `x`, normed if `norm` is given, to integers with scales. */
  #rounded(
    x: Tensor,
    norm: Matrix<Tensor> | undefined,
    input: () => Tensor,
    unit: number,
  ): [Tensor, Tensor] {
    const [m, k] = x.shape, { words, numbers } = int8Sizes(k);
    const squares = this.#recording.squares.get(x.buffer),
      fused = norm && squares;
    const y = this.#scratch(`integers by ${unit}`, "u32", m, words);
    const scales = this.#rows(`scales by ${unit}`, m, numbers);
    this.plan.add(toInt8, {
      x: fused ? x : input(),
      ...(fused ? { norm, squares } : {}),
      y,
      scales,
    }, {
      label: norm?.label ?? "to_int8",
      reason: "quantised blocks: rows are rounded once, then read by all lanes",
      constants: {
        NORM: fused ? 1 : 0,
        UNIT: unit,
        ...laneConstants(this.gpu),
      },
      uniforms: { eps: this.config.rmsNormEps },
    });
    return [y, scales];
  }

  /** f32 scratch memory `[rows, width]` for a given use; all layers share it. */
  #rows(use: string, rows: number, width: number): Tensor {
    return this.#scratch(use, "f32", rows, width);
  }

  #scratch(
    use: string,
    dtype: "f32" | "f16" | "u32",
    rows: number,
    width: number,
  ): Tensor {
    const capacity = 2 ** Math.ceil(Math.log2(rows));
    const key = `${use} ${capacity} × ${width}`;
    let tensor = this.#buffers.get(key);
    if (!tensor) {
      tensor = Tensor.create(
        this.gpu,
        dtype,
        [capacity, width],
        undefined,
        use,
      );
      this.#buffers.set(key, tensor);
    }
    return tensor.rows(rows);
  }

  /** Frees the scratch memory; plans that use it must not run again. */
  [Symbol.dispose](): void {
    for (const tensor of this.#buffers.values()) tensor[Symbol.dispose]();
    this.#buffers.clear();
  }
}
