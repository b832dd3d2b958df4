/**
 * Layers of experts on the GPU: one dispatch for all chosen experts of a few rows, or rows
 * grouped by expert.
 *
 * @module
 */
import { chooseExperts } from "../../kernels/choose_experts.ts";
import { expertGemm } from "../../kernels/expert_gemm.ts";
import { expertGemmMatrix } from "../../kernels/expert_gemm_matrix.ts";
import { expertGemv, expertSquareParts } from "../../kernels/expert_gemv.ts";
import { expertGemvInt8 } from "../../kernels/expert_gemv_int8.ts";
import { gatherRows } from "../../kernels/gather_rows.ts";
import { int8Parts } from "../../kernels/gemv_int8.ts";
import { sortExperts } from "../../kernels/sort_experts.ts";
import { sumExperts } from "../../kernels/sum_experts.ts";
import { swiglu } from "../../kernels/swiglu.ts";
import type { Matrix } from "../formats/matrix.ts";
import { laneConstants, mostThreads } from "../dispatch/capabilities.ts";
import type { Epilogue } from "../dispatch/shapes.ts";
import {
  chooseExpertGemm,
  chooseExpertGemv,
  groupsRows,
  groupTile,
  groupTiles,
} from "../dispatch/experts.ts";
import type { Tensor } from "../webgpu/tensor.ts";
import {
  type Groups,
  type Next,
  nextShape,
  type Recorder,
} from "./recorder.ts";
import type { LinearLayers } from "./linear_layers.ts";

/** The kernels of rows by their experts, and the sums of squares that they leave. */
const BY_EXPERTS = {
  expertGemv: [expertGemv, expertSquareParts],
  expertGemvInt8: [expertGemvInt8, int8Parts],
} as const;

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

/** Records the layers of experts: each row takes a few of them. */
export class ExpertLayers {
  constructor(
    private readonly recorder: Recorder,
    private readonly linears: LinearLayers,
  ) {}

  /** See {@linkcode Ops.chooseExperts}. */
  chooseExperts(scores: Tensor): Tensor {
    const { gpu, config, recording } = this.recorder;
    const [rows, count] = scores.shape;
    const { used, normalized } = config.experts!;
    const chosen = this.recorder.rows("chosen", 2 * rows, used);
    this.recorder.plan.add(chooseExperts, { scores, chosen }, {
      label: "choose_experts",
      reason: `the ${used} highest of ${count} scores`,
      constants: {
        ...laneConstants(gpu, count),
        NORMALIZED: normalized ? 1 : 0,
      },
    });
    if (groupsRows(rows, { count, used })) this.#group(chosen, count);
    else recording.groups.delete(chosen.buffer);
    return chosen;
  }

  /** Groups pairs of a row and an expert by expert. */
  #group(chosen: Tensor, experts: number): void {
    const pairs = chosen.shape[0] / 2 * chosen.shape[1];
    const tile = groupTile(pairs, experts);
    const tiles = groupTiles(pairs, experts, tile);
    const u32 = (use: string, count: number) =>
      this.recorder.scratch(use, "u32", count, 1).view(count);
    const groups = u32("groups", tiles), order = u32("order", tiles * tile);
    const places = u32("places", pairs);
    this.recorder.plan.add(sortExperts, { chosen, groups, order, places }, {
      label: "group_experts",
      reason: "rows are grouped by expert, whose matrix is then read once",
      constants: {
        EXPERTS: experts,
        TILE: tile,
        WORKGROUP: Math.min(256, mostThreads(this.recorder.gpu)),
      },
    });
    this.recorder.recording.groups.set(chosen.buffer, {
      tile,
      groups,
      order,
      places,
    });
  }

  /** See {@linkcode Ops.expertsSwiglu}; `next` is the matrix that follows. */
  expertsSwiglu(
    x: Tensor,
    norm: Matrix<Tensor>,
    w: Matrix<Tensor>,
    chosen: Tensor,
    next?: Matrix<Tensor>,
  ): Tensor {
    const { config, recording } = this.recorder;
    const n = config.experts!.intermediateSize;
    const pairs = x.shape[0] * chosen.shape[1];
    const groups = recording.groups.get(chosen.buffer);
    recording.ahead.delete(
      this.recorder.rows("gated", pairs, n).buffer,
    );
    if (groups) {
      const both = this.#grouped(x, w, { n, groups, norm });
      const { places } = groups, gated = this.recorder.rows("gated", pairs, n);
      this.recorder.plan.add(swiglu, { both, places, y: gated }, {
        label: w.label,
        reason: "gates and ups of an expert are separate matmuls",
        constants: { PLACED: 1 },
      });
      return gated;
    }
    const call = { x, norm, w, chosen, n };
    const y = this.recorder.rows("gated", pairs, n);
    if (w.parts.every(({ twin }) => twin !== undefined)) {
      this.#experts({
        ...{ ...call, y, epilogue: "swiglu" },
        next: next && { w: next },
      });
      return y;
    }
    const both = this.recorder.rows("gate and up", pairs, 2 * n);
    this.#experts({ ...call, y: both, epilogue: "store" });
    this.linears.swiglu(w, both, y);
    return y;
  }

  /** See {@linkcode Ops.expertsAdd}; `after` is what follows. */
  expertsAdd(
    x: Tensor,
    w: Matrix<Tensor>,
    chosen: Tensor,
    residual: Tensor,
    after?: readonly [norm: Matrix<Tensor>, w: Matrix<Tensor>],
  ): Tensor {
    const n = residual.shape[1],
      groups = this.recorder.recording.groups.get(chosen.buffer);
    if (!groups) {
      const next = after && { norm: after[0], w: after[1] };
      this.#experts({ x, w, chosen, y: residual, n, epilogue: "add", next });
      return residual;
    }
    const partial = this.#grouped(x, w, { n, groups }), { places } = groups;
    this.recorder.forget(residual);
    this.recorder.plan.add(
      sumExperts,
      { partial, places, chosen, y: residual },
      {
        label: w.label,
        reason: "sums the experts of a row, in order",
      },
    );
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
    const { count: experts, used } = this.recorder.config.experts!;
    const [padded] = order.shape, pairs = x.shape[0] * (norm ? used : 1);
    const sorted = this.recorder.rows("sorted", padded, w.k);
    this.recorder.plan.add(gatherRows, { x, order, y: sorted }, {
      label: w.label,
      reason: "rows of an expert follow one another",
      constants: { USED: norm ? used : 1 },
    });
    const stride = w.n / experts, all = experts * n;
    const c = this.recorder.rows(`${stride} of experts`, padded, stride);
    let normed: Tensor | undefined;
    let halves: { of: number; rows: Tensor; by: Tensor } | undefined;
    for (const part of w.parts) {
      const { kernel, constants, headroom, reason } = chooseExpertGemm({
        ...{ pairs, experts, n, k: w.k },
        ...{ format: part.format, largest: w.largest },
      }, this.recorder.gpu);
      if (headroom && headroom !== halves?.of) {
        const made = this.linears.toHalf(sorted, norm, headroom);
        halves = { of: headroom, ...made };
      }
      const { rows: a, by: scales } = headroom ? halves! : {
        rows: normed ??= norm ? this.linears.normed(sorted, norm) : sorted,
        by: sorted,
      };
      for (const [i, begin] of [part.begin, part.twin].entries()) {
        if (begin === undefined) continue;
        const column = begin < all ? 0 : n;
        const byMatrix = kernel === "expertGemmMatrix";
        this.recorder.plan.add(byMatrix ? expertGemmMatrix : expertGemm, {
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
    const { gpu, config, recording } = this.recorder;
    const { count } = config.experts!, used = chosen.shape[1];
    const swiglu = epilogue === "swiglu";
    const all = count * n; // rows of all gates, or of all ups
    const before = recording.ahead.get(x.buffer);
    // Weights of experts in another part would not be theirs.
    const apart = w.parts.length > 1 ||
      epilogue === "swiglu" && next !== undefined && next.w.parts.length > 1;
    let normed: Tensor | undefined;
    const input = () => norm ? normed ??= this.linears.normed(x, norm) : x;
    for (const part of w.parts) {
      const { kernel, constants, reason, leaves } = chooseExpertGemv({
        ...{ m: chosen.shape[0] / 2, used, n, k: w.k, epilogue },
        ...{ format: part.format, largest: w.largest },
        rounded: before !== undefined && before.norm === norm,
        next: next && !apart ? nextShape(next.w) : undefined,
      }, gpu);
      const [run, parts] = BY_EXPERTS[kernel];
      const left = leaves
        ? swiglu
          ? this.recorder.leaveRounded(y.view(1, used * n), epilogue)
          : this.recorder.leaveRounded(y, epilogue, next?.norm)
        : undefined;
      const sums = epilogue === "add" && !left
        ? this.recorder.leaveSquares(y, parts(n, constants))
        : undefined;
      this.recorder.plan.add(run, {
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
          ...(kernel === "expertGemvInt8" ? { eps: config.rmsNormEps } : {}),
        },
      });
    }
  }
}
