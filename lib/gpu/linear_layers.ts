/**
 * Linear layers on the GPU: which kernel multiplies, from which form of the rows, and what it
 * leaves for the next one.
 *
 * @module
 */
import { addPending } from "../../kernels/add_pending.ts";
import { gemm } from "../../kernels/gemm.ts";
import { gemmMatrix } from "../../kernels/gemm_matrix.ts";
import { gemv, squareParts } from "../../kernels/gemv.ts";
import { gemvInt8, int8Parts } from "../../kernels/gemv_int8.ts";
import { gemvRows, rowParts } from "../../kernels/gemv_rows.ts";
import { gemvRowsInt8 } from "../../kernels/gemv_rows_int8.ts";
import { int8Sizes } from "../../kernels/int8_case.ts";
import { rmsNorm } from "../../kernels/rms_norm.ts";
import { sumSplits } from "../../kernels/sum_splits.ts";
import { swiglu } from "../../kernels/swiglu.ts";
import { toF16 } from "../../kernels/to_f16.ts";
import { toInt8 } from "../../kernels/to_int8.ts";
import { unpack } from "../../kernels/unpack.ts";
import { f32Bits } from "../dtype.ts";
import { type Matrix, type MatrixPart, rowsHeld } from "../formats/matrix.ts";
import {
  laneConstants,
  mostBuffers,
  rowThreads,
} from "../dispatch/capabilities.ts";
import { type Constants, type Epilogue, FEW_ROWS } from "../dispatch/shapes.ts";
import {
  HALF_UNIT,
  MATRIX,
  MATRIX_BUFFERS,
  MOST_HALF_GAIN,
  normsFit,
} from "../dispatch/matrices.ts";
import { chooseLinear, type LinearChoice } from "../dispatch/linear.ts";
import type { Kernel, Operands, WeightOperand } from "../webgpu/kernel.ts";
import type { Tensor } from "../webgpu/tensor.ts";
import {
  type Halves,
  type Next,
  nextShape,
  type Pending,
  type Recorder,
} from "./recorder.ts";

/** The number that addPending writes. */
const SETTLED_PARTS = Number(addPending.constants.WORKGROUP);

/** The kernels of one or a few rows, and the sums of squares that they leave. */
const BY_ROWS = {
  gemv: [gemv, squareParts],
  gemvInt8: [gemvInt8, int8Parts],
  gemvRows: [gemvRows, rowParts],
} as const;

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
  /** Whether the next kernel can add up parts of `y`. */
  parts: boolean;
  /** The next part of the matrix, if the kernel takes both. */
  other?: MatrixPart<Tensor>;
}

/** Records Linear layers, and what converts rows for them. */
export class LinearLayers {
  constructor(private readonly recorder: Recorder) {}

  /** Records `y = x · wᵀ`, from `x` normed if `norm` is given; returns `y`. */
  linear(
    x: Tensor,
    w: Matrix<Tensor>,
    y: Tensor,
    { norm, epilogue, next, parts = false, note }: {
      norm?: Matrix<Tensor>;
      epilogue: Epilogue;
      next?: Next;
      /** Whether the next kernel can add up parts of the result. */
      parts?: boolean;
      /** Added to the reason. */
      note?: string;
    },
  ): Tensor {
    const [m, k] = x.shape, { gpu, recording } = this.recorder;
    const before = recording.ahead.get(x.buffer);
    recording.ahead.delete(y.buffer);
    recording.halved.delete(y.buffer);
    recording.unsummed.delete(y.buffer);
    let normed: Tensor | undefined;
    const input = () => norm ? normed ??= this.normed(x, norm) : x;
    const integers = new Map<number, [Tensor, Tensor]>();
    const rounded = (unit: number) => {
      let made = integers.get(unit);
      if (!made) integers.set(unit, made = this.#rounded(x, norm, input, unit));
      return made;
    };
    let taken = 0;
    const pending = recording.pending.get(x.buffer);
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
      }, gpu);
      const choice = note
        ? { ...chosen, reason: `${chosen.reason}; ${note}` }
        : chosen;
      taken = i + (choice.two ? 2 : 1);
      const call = {
        ...{ x, norm, input, rounded, w, part, y, epilogue, choice, next },
        ...{ pending, parts },
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
    const { config, recording } = this.recorder;
    const { constants, reason } = choice, [kernel, sums] = BY_ROWS[by];
    const fours = by !== "gemvRows" && constants.SPREAD !== "rows";
    const before = constants.ROUNDED
      ? recording.ahead.get(x.buffer)
      : undefined;
    const squares = recording.squares.get(x.buffer);
    const fused = pending || norm && choice.fusedNorm && squares &&
        // One row's are read four at a time, except where each lane has its own rows.
        !(fours && squares.shape[1] % 4);
    const left = choice.leaves
      ? this.recorder.leaveRounded(y, epilogue, next?.norm)
      : undefined;
    const leaves = epilogue === "add" && !left
      ? this.recorder.leaveSquares(y, sums(part.rows, constants))
      : undefined;
    this.recorder.plan.add(kernel, {
      w: { matrix: w, part },
      ...(other ? { v: { matrix: w, part: other } } : {}),
      x: before?.row ?? (fused ? x : input()),
      y,
      ...(fused ? { norm: norm! } : {}),
      ...(pending
        ? {
          pending: pending.sums,
          added: this.#added(x),
          flags: recording.flags!,
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
        eps: config.rmsNormEps,
      },
    });
    // Each part writes only the sums of its own rows.
    if (leaves && w.parts.length > 1) {
      recording.squares.delete(y.buffer);
    }
  }

  /** Records a matmul of a few rows, rounded to integers. */
  #gemvRowsInt8(
    { rounded, w, part, other, y, epilogue, choice }: LinearCall,
  ): void {
    const { constants, reason } = choice;
    const [planes, scales] = rounded(part.format.loads[0]);
    const leaves = epilogue === "add"
      ? this.recorder.leaveSquares(y, rowParts(part.rows, constants))
      : undefined;
    this.recorder.plan.add(gemvRowsInt8, {
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
    if (leaves && w.parts.length > 1) {
      this.recorder.recording.squares.delete(y.buffer);
    }
  }

  /** Records a matmul of many rows. */
  #gemm(call: LinearCall, kernel: Kernel): void {
    const { x, norm, input, w, part, y, epilogue, choice } = call;
    const { config, recording } = this.recorder;
    const { constants, reason, splits, headroom } = choice, { label } = w;
    if (epilogue === "add") recording.squares.delete(y.buffer);
    const { rows: a, by, squares } = headroom
      ? this.#half(x, norm, headroom)
      : { rows: input(), by: x, squares: undefined };
    const column = part.begin, n = rowsHeld(part);
    const stored = { matrix: w, part };
    const b = choice.unpacks ? this.#unpacked(stored, n) : stored;
    const operands = {
      ...{ a, b },
      ...(typeof by === "number" ? {} : { scales: by }),
      ...(squares ? { normSquares: squares, flags: recording.flags! } : {}),
    };
    const given: Constants = {
      ...constants,
      ...(typeof by === "number" ? { SCALED: 0, ROW_UNIT: by } : {}),
      ...(squares ? { NORM: 1, EPS: f32Bits(config.rmsNormEps) } : {}),
    };
    if (splits > 1) {
      const m = x.shape[0];
      const partial = this.recorder.rows("splits", splits * m, n);
      this.recorder.plan.add(kernel, { ...operands, c: partial }, {
        label,
        reason,
        constants: given,
        uniforms: { stride: n, column: 0 },
      });
      this.#sum(call, partial);
      return;
    }
    // Parts of different formats can end at any row.
    const whole = column % 4 === 0 && n % 4 === 0 ? 1 : 0;
    const left = this.#leaveHalf(call);
    this.recorder.plan.add(kernel, { ...operands, c: y, ...left }, {
      label,
      reason: left
        ? `${reason}; results are f16 in units of ${HALF_UNIT} for the next kernel`
        : reason,
      constants: {
        ...given,
        EPILOGUE: epilogue,
        C_FOURS: whole,
        ...(left ? { RESULT_UNIT: HALF_UNIT } : {}),
      },
      uniforms: { stride: y.shape[1], column },
    });
  }

  /**
   * Allocates what a matmul by tensor cores leaves in f16 for the next one: instead of gated
   * rows, or beside a residual, normed; undefined if it leaves nothing.
   */
  #leaveHalf(
    { x, w, y, epilogue, choice, next }: LinearCall,
  ): Operands | undefined {
    const { halves, gpu, recording, config } = this.recorder;
    const { flags } = recording, [part, ...more] = w.parts;
    const [m] = x.shape, [, width] = y.shape;
    const leaves = halves && choice.kernel === "gemmMatrix" &&
      more.length === 0 && width % MATRIX === 0 &&
      mostBuffers(gpu) >= part.planes.length + MATRIX_BUFFERS;
    if (!leaves || !next || !flags) return undefined;
    const { norm } = next, by = HALF_UNIT;
    if (epilogue === "swiglu" && !norm) {
      const headroom = this.headroomFor(m, next.w), { largest } = next.w;
      if (!headroom || !(largest! <= MOST_HALF_GAIN)) return undefined;
      const rows = this.recorder.scratch("half of gates", "f16", m, width);
      recording.halved.set(y.buffer, { headroom, rows, by });
      return { c: rows, flags };
    }
    // Every tile of the next matmul adds up the squares of its rows.
    const adds = epilogue === "add" && norm && m <= FEW_ROWS &&
      !config.experts && normsFit(choice.constants, gpu);
    const headroom = adds && this.headroomFor(m, next.w, norm, true);
    if (!headroom) return undefined;
    const rows = this.recorder.scratch("half of a sum", "f16", m, width);
    // Of the rows, and of those times the norm's weights.
    const parts = 2 * width / MATRIX;
    const squares = this.recorder.rows("squares by tiles", m, parts);
    recording.halved.set(y.buffer, { norm, headroom, rows, by, squares });
    return { nextRows: rows, nextNorm: norm, squares, flags };
  }

  /** Records what adds up the splits of k in `partial`, or leaves that to the next kernel. */
  #sum(
    { x, w, part, y, epilogue, next, parts }: LinearCall,
    partial: Tensor,
  ): void {
    const { config, recording } = this.recorder, [m] = x.shape;
    const splits = partial.shape[0] / m, n = rowsHeld(part);
    const one = w.parts.length === 1;
    // A router multiplies in f32, and rows of experts are gathered first.
    const after = epilogue === "add" && one && !config.experts
      ? next?.norm
      : undefined;
    const headroom = after && this.headroomFor(m, next!.w, after);
    if (headroom) {
      const made = this.toHalf(y, after, headroom, partial);
      recording.halved.set(y.buffer, { norm: after, headroom, ...made });
      return;
    }
    if (parts && one) {
      recording.unsummed.set(y.buffer, partial.view(splits, m, n));
      return;
    }
    this.recorder.plan.add(sumSplits, { partial, y }, {
      label: w.label,
      reason: "sums the splits of k",
      constants: {
        SPLITS: splits,
        ADD: epilogue === "add" ? 1 : 0,
        Y_FOURS: part.begin % 4 === 0 && n % 4 === 0 ? 1 : 0,
      },
      uniforms: { stride: y.shape[1], column: part.begin },
    });
  }

  /**
   * What tensor cores want `m` rows to be scaled to that `w` multiplies; undefined if others do,
   * or there is no room for the factors of rows that are left `normed`.
   */
  headroomFor(
    m: number,
    { parts, k, largest }: Matrix<Tensor>,
    norm?: Matrix<Tensor>,
    normed = false,
  ): number | undefined {
    const rooms = parts.map((part) => {
      const shape = { m, n: rowsHeld(part), k, format: part.format, largest };
      const swiglu = part.twin !== undefined, { gpu } = this.recorder;
      const given = { ...shape, norm: norm !== undefined, swiglu };
      const { kernel, headroom, constants } = chooseLinear(given, gpu);
      const fits = kernel === "gemmMatrix" &&
        (!normed || normsFit(constants, gpu));
      return fits ? headroom : undefined;
    });
    return rooms.every((room) => room === rooms[0]) ? rooms[0] : undefined;
  }

  /** Norms the rows of `x`. */
  normed(x: Tensor, norm: Matrix<Tensor>): Tensor {
    const [m, k] = x.shape;
    const y = this.recorder.rows("normed", m, k);
    this.recorder.plan.add(rmsNorm, { x, norm, y }, {
      label: norm.label,
      reason: "rows are normed once, then read by every tile",
      constants: laneConstants(this.recorder.gpu),
      uniforms: { eps: this.recorder.config.rmsNormEps },
    });
    return y;
  }

  /** The rows of `x` in f16, normed if `norm` is given. */
  #half(
    x: Tensor,
    norm: Matrix<Tensor> | undefined,
    headroom: number,
  ): Halves {
    const known = this.recorder.recording.halved.get(x.buffer);
    return known && known.norm === norm && known.headroom === headroom
      ? known
      : this.toHalf(x, norm, headroom);
  }

  /**
   * Converts the rows of `x` to f16, normed if `norm` is given, with a scale per row, after
   * adding the splits of k in `partial` to them.
   */
  toHalf(
    x: Tensor,
    norm: Matrix<Tensor> | undefined,
    headroom: number,
    partial?: Tensor,
  ): Halves & { by: Tensor } {
    const { gpu, config } = this.recorder;
    const [m, k] = x.shape, of = partial ? " of a sum" : "";
    const y = this.recorder.scratch(`half${of}`, "f16", m, k);
    const scales = this.recorder.scratch(`scales${of}`, "f32", m, 1).view(m);
    const operands = { ...(partial ? { partial } : {}), x, norm: norm ?? x };
    this.recorder.plan.add(toF16, { ...operands, y, scales }, {
      label: norm?.label ?? "to_f16",
      reason: `${
        partial ? "sums the splits of k; f16 matmul follows" : "f16 matmul"
      }: each row is scaled into range`,
      constants: {
        NORM: norm ? 1 : 0,
        SPLITS: partial ? partial.shape[0] / m : 0,
        WORKGROUP: rowThreads(m, k, gpu),
        ...laneConstants(gpu),
      },
      uniforms: { eps: config.rmsNormEps, headroom },
    });
    return { rows: y, by: scales };
  }

  /** Unpacks `n` rows of weights to f16; only the next matmul may read them. */
  #unpacked(w: WeightOperand, n: number): Tensor {
    const { k, label } = w.matrix;
    const y = this.recorder.shared("unpacked", n, k);
    this.recorder.plan.add(unpack, { w, y }, {
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
    const { gpu, config, recording } = this.recorder;
    const [m, k] = x.shape, { words, numbers } = int8Sizes(k);
    const squares = recording.squares.get(x.buffer),
      fused = norm && squares;
    const y = this.recorder.scratch(`integers by ${unit}`, "u32", m, words);
    const scales = this.recorder.rows(`scales by ${unit}`, m, numbers);
    this.recorder.plan.add(toInt8, {
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
        ...laneConstants(gpu),
      },
      uniforms: { eps: config.rmsNormEps },
    });
    return [y, scales];
  }

  /** Where `x` is written with what is pending. */
  #added(x: Tensor): Tensor {
    const [m, k] = x.shape, one = this.recorder.rows("x", m, k);
    const y = one.buffer === x.buffer
      ? this.recorder.rows("x in turn", m, k)
      : one;
    this.recorder.forget(y);
    this.recorder.recording.pending.delete(x.buffer);
    this.recorder.recording.whole.set(x.buffer, y);
    return y;
  }

  /** Adds what is pending for `x`, for kernels that do not. */
  settle(x: Tensor): void {
    const recording = this.recorder.recording,
      pending = recording.pending.get(x.buffer);
    if (!pending) return;
    recording.pending.delete(x.buffer);
    const squares = this.recorder.leaveSquares(x, SETTLED_PARTS);
    const { flags } = recording, { sums } = pending;
    this.recorder.plan.add(addPending, {
      x,
      pending: sums,
      flags: flags!,
      squares,
    }, {
      label: "residual",
      reason: "adds what an MLP left, for a kernel that does not read it",
      constants: pending.constants,
    });
  }

  /** Computes what gates and ups in separate parts of a matrix give. */
  swiglu(gateUp: Matrix<Tensor>, both: Tensor, y: Tensor): void {
    this.recorder.forget(y);
    this.recorder.plan.add(swiglu, { both, y }, {
      label: gateUp.label,
      reason:
        "gate and up are stored in different types, so no kernel reads both at once",
    });
  }
}
