/**
 * What the verbs of a model on the GPU share while they record a pass: the plan, what each
 * leaves for those that follow, and scratch memory.
 *
 * @module
 */
import { pendingWords } from "../../kernels/pending.ts";
import { roundedSizes } from "../../kernels/rounded_row.ts";
import type { Matrix } from "../formats/matrix.ts";
import type { Constants, Epilogue, NextShape } from "../dispatch/shapes.ts";
import type { FeedForwardChoice } from "../dispatch/feed_forward.ts";
import type { Qwen3Config } from "../checkpoint/config.ts";
import type { Gpu } from "../webgpu/device.ts";
import type { Plan } from "../webgpu/plan.ts";
import { Tensor } from "../webgpu/tensor.ts";

/** The norm, if there is one, and the matrix that results go through next. */
export interface Next {
  norm?: Matrix<Tensor>;
  w: Matrix<Tensor>;
}

/** Rows in f16, and what they are to be multiplied by. */
export interface Halves {
  readonly rows: Tensor;
  /** A scale per row; without them all are counted in the same unit. */
  readonly by: Tensor | number;
  /** Partial sums of squares of rows that are normed but for the factor which these give. */
  readonly squares?: Tensor;
}

/** Rows that the kernel that made them has converted to f16 for the next one. */
export interface Halved extends Halves {
  /** By which they are normed. */
  readonly norm?: Matrix<Tensor>;
  /** What the kernel that reads them wants rows to be scaled to. */
  readonly headroom: number;
}

/** A row that the kernel that made it has rounded for the next one. */
export interface Rounded {
  row: Tensor;
  /** By which it was normed, but for the factor. */
  norm: Matrix<Tensor> | undefined;
}

/** How pairs of a row and an expert are grouped by expert; see kernels/sort_experts.ts. */
export interface Groups {
  tile: number;
  groups: Tensor;
  order: Tensor;
  places: Tensor;
}

/** Attention of few keys, which the matmul of its result is to record together with that. */
export interface Unprojected {
  /** Cached tokens from which on attention runs by itself, and has been recorded. */
  readonly from: number;
  /** Records both, for fewer. */
  record(w: Matrix<Tensor>, residual: Tensor): void;
}

/** Gates and ups of one row, which the matmul of their result is to record together with that. */
export interface Ungated {
  x: Tensor;
  norm: Matrix<Tensor>;
  gateUp: Matrix<Tensor>;
  choice: FeedForwardChoice;
}

/** Sums that are to be added to a row, in fixed point; see kernels/pending.ts. */
export interface Pending {
  sums: Tensor;
  constants: Constants;
}

/** What kernels before it need to know about a matrix. */
export const nextShape = ({ parts, largest }: Matrix<Tensor>): NextShape => ({
  formats: parts.map(({ format }) => format),
  largest,
});

/** What verbs leave for those that follow in a recording, most of it by a tensor's buffer. */
export class Recording {
  /** Partial sums of squares of rows. */
  readonly squares = new Map<GPUBuffer, Tensor>();
  /** Rows that were rounded for the next kernel, by the buffer of the unrounded ones. */
  readonly ahead = new Map<GPUBuffer, Rounded>();
  /** Rows in f16 for the next kernel, by the buffer of those in f32. */
  readonly halved = new Map<GPUBuffer, Halved>();
  /** Parts that a result is still to be added up from, `[parts, rows, columns]`. */
  readonly unsummed = new Map<GPUBuffer, Tensor>();
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

/**
 * What the layers record into: the current {@linkcode Plan}, what they leave for one another,
 * and scratch memory.
 */
export class Recorder implements Disposable {
  /**
   * Whether attention of few keys and the matmul of its result may be one dispatch, and so may
   * the matmuls of an MLP, if that pays off, and whether splits of k may be left to the next
   * kernel. What is between them is then in no buffer.
   */
  joins = true;
  /** Whether rows may be left in f16 for the next matmul. They are then in no f32 buffer. */
  halves = true;
  #plan: Plan;
  #buffers = new Map<string, Tensor>();
  #recording = new Recording(false);
  /** That of each plan: another pass may be recorded between two verbs. */
  #recordings = new WeakMap<Plan, Recording>();

  constructor(readonly gpu: Gpu, readonly config: Qwen3Config, plan: Plan) {
    this.#plan = plan;
  }

  /** The plan that verbs record into. */
  get plan(): Plan {
    return this.#plan;
  }

  set plan(plan: Plan) {
    this.#plan = plan;
    this.#recording = this.#recordings.get(plan) ?? this.#recording;
    this.#recordings.set(plan, this.#recording);
  }

  /** What verbs have left for those that follow. */
  get recording(): Recording {
    return this.#recording;
  }

  /** Begins a pass; see {@linkcode Recording}. */
  begin(clears: boolean): void {
    this.#recording = new Recording(clears);
    this.#recordings.set(this.#plan, this.#recording);
  }

  /** Allocates partial sums of squares of `x`'s rows, to be looked up by its buffer. */
  leaveSquares(x: Tensor, parts: number): Tensor {
    const squares = this.rows(`squares of ${parts}`, x.shape[0], parts);
    this.forget(x);
    this.recording.squares.set(x.buffer, squares);
    return squares;
  }

  /** Allocates the row that the kernel which makes `y` rounds for the next one. */
  leaveRounded(
    y: Tensor,
    epilogue: Epilogue | "attend",
    norm?: Matrix<Tensor>,
  ): Tensor {
    const { squares, words } = roundedSizes(y.shape[1]);
    // A kernel may read such a row and leave another one of the same size.
    const row = this.scratch(`rounded by ${epilogue}`, "u32", 1, words);
    if (epilogue === "add") {
      const { gpu, buffer } = row, shape = [1, 4 * squares];
      this.recording.squares.set(
        y.buffer,
        new Tensor(gpu, "f32", shape, buffer, "squares"),
      );
    }
    this.recording.ahead.set(y.buffer, { row, norm });
    return row;
  }

  /** Forgets what kernels have left about the rows of `x`, which change. */
  forget(x: Tensor): void {
    this.recording.squares.delete(x.buffer);
    this.recording.ahead.delete(x.buffer);
    this.recording.halved.delete(x.buffer);
  }

  /** f32 scratch memory `[rows, width]` for a given use; all layers share it. */
  rows(use: string, rows: number, width: number): Tensor {
    return this.scratch(use, "f32", rows, width);
  }

  /** Scratch memory for a given use, with room for a power of 2 of rows. */
  scratch(
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

  /** Where sums of `n` elements are pending, in one of two buffers. */
  sums(turn: number, n: number): Tensor {
    const words = pendingWords(n);
    return this.scratch(`pending ${turn}`, "u32", 1, words).view(words);
  }

  /**
   * f16 scratch memory `[n, k]` that all shapes share; only the next dispatch may read it.
   */
  shared(use: string, n: number, k: number): Tensor {
    let held = this.#buffers.get(use);
    if (!held || held.bytes < 2 * n * k) {
      // Passes that were recorded before go on using the smaller one.
      if (held) this.#buffers.set(`${use} ${held.bytes}`, held);
      held = Tensor.create(this.gpu, "f16", [n, k], undefined, use);
      this.#buffers.set(use, held);
    }
    return new Tensor(this.gpu, "f16", [n, k], held.buffer, use);
  }

  /** Frees the scratch memory; plans that use it must not run again. */
  [Symbol.dispose](): void {
    for (const tensor of this.#buffers.values()) tensor[Symbol.dispose]();
    this.#buffers.clear();
  }
}
