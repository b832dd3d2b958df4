/**
 * Attention on the GPU: of one token of each text, over splits of its keys, or of prompts.
 *
 * @module
 */
import { attendDecode, decodeGrid } from "../../kernels/attend_decode.ts";
import { pieceWords } from "../../kernels/attend_project.ts";
import { attendPrefill } from "../../kernels/attend_prefill.ts";
import { attendPrefillF16 } from "../../kernels/attend_prefill_f16.ts";
import { attendPrefillMatrix } from "../../kernels/attend_prefill_matrix.ts";
import { prefillGrid, splitsEnd } from "../../kernels/heads.ts";
import { mergeSplits } from "../../kernels/merge_splits.ts";
import { qkNormRope } from "../../kernels/qk_norm_rope.ts";
import type { Matrix } from "../formats/matrix.ts";
import {
  exactLanes,
  laneConstants,
  mostBuffers,
} from "../dispatch/capabilities.ts";
import {
  cacheConstant,
  chooseDecodeAttention,
  choosePrefillRows,
  choosePrefillSplits,
  chooseProjection,
  headConstants,
  LEAVING_BUFFERS,
  mostSplits,
  type PrefillSplits,
  type ProjectionChoice,
} from "../dispatch/attention.ts";
import { chooseMatrixAttention } from "../dispatch/matrices.ts";
import { chooseAttentionDtype, headVector } from "../dispatch/precision.ts";
import { type Operands, splitGrid } from "../webgpu/kernel.ts";
import type { GpuKvCache } from "./kv_cache.ts";
import type { LinearLayers } from "./linear_layers.ts";
import type { StepState } from "../webgpu/plan.ts";
import type { Tensor } from "../webgpu/tensor.ts";
import { nextShape, type Recorder, type Unprojected } from "./recorder.ts";

/** Prefill attention by tensor cores. */
const WHOLE: PrefillSplits = {
  splits: () => 1,
  most: 1,
  reason: "keys are not split: the kernel for tensor cores cannot",
};

/** Bytes of matrices on the device. */
const bytesOf = (matrices: readonly Matrix<Tensor>[]): number =>
  matrices.flatMap(({ parts }) => parts.flatMap(({ planes }) => planes))
    .reduce((sum, { bytes }) => sum + bytes, 0);

/** The arguments of attention in one layer. */
interface Attend {
  qkv: Tensor;
  /** What adds up to `qkv`, if a kernel is to do that. */
  parts?: Tensor;
  qNorm: Matrix<Tensor>;
  kNorm: Matrix<Tensor>;
  cache: GpuKvCache;
  layer: number;
}

/** Added to the reason where results are stored as f16 only. */
const LEFT_HALF = "; its results are f16 for the next kernel";

/** How many splits of qkv_proj attention adds up. */
const splitsOf = ({ parts }: Attend): number => parts?.shape[0] ?? 0;

/** Records attention: decode, also with the matmul of its result, and prefill. */
export class AttentionLayers {
  constructor(
    private readonly recorder: Recorder,
    private readonly linears: LinearLayers,
  ) {}

  /** See {@linkcode Ops.attend}; `next` are the matrices that follow. */
  attend(
    qkv: Tensor,
    qNorm: Matrix<Tensor>,
    kNorm: Matrix<Tensor>,
    cache: GpuKvCache,
    layer: number,
    next?: readonly Matrix<Tensor>[],
  ): Tensor {
    const { recording } = this.recorder;
    recording.flags = cache.flags;
    const parts = recording.unsummed.get(qkv.buffer);
    recording.unsummed.delete(qkv.buffer);
    const step = { qkv, parts, qNorm, kNorm, cache, layer };
    return cache.pass.tokens === 1
      ? this.#attendDecode(step, next)
      : this.#attendPrefill(step, next?.[0]);
  }

  /** The operands of the kernels that normalize and rotate heads. */
  #headOperands({ qkv, parts = qkv, qNorm, kNorm, cache, layer }: Attend) {
    const { k, v } = cache.layers[layer], { positions, state } = cache;
    return { qkv: parts, qNorm, kNorm, k, v, positions, state };
  }

  #attendDecode(step: Attend, next: readonly Matrix<Tensor>[] = []): Tensor {
    const { gpu, config, recording } = this.recorder;
    const { qkv, parts, cache, layer } = step;
    const { headDim, numAttentionHeads, numKeyValueHeads } = config;
    const heads = numAttentionHeads, kvHeads = numKeyValueHeads;
    const [rows] = qkv.shape, { first: firstSequence } = cache.pass;
    const label = `layers.${layer}.attention`;
    const splits = mostSplits(cache.context, rows);
    const width = heads * headDim, all = rows * (1 + splits);
    const [oProj, ...others] = next;
    const group = heads / kvHeads;
    const shape = { headDim, group, kvHeads, rows, cache: cache.dtype };
    const choices = chooseDecodeAttention({
      ...shape,
      next: oProj && { ...nextShape(oProj), k: width },
      bytesAfter: bytesOf(others),
    }, gpu);
    const y = this.recorder.rows("attention", 1, all * width).view(all, width);
    recording.ahead.delete(y.buffer);
    const leaves = choices.every(({ leaves }) => leaves);
    const fits = mostBuffers(gpu) >= LEAVING_BUFFERS;
    const half = this.#leaveHalf(step, y, fits ? oProj : undefined);
    const operands = {
      ...this.#headOperands(step),
      y,
      ...(leaves ? { left: this.recorder.leaveRounded(y, "attend") } : {}),
      ...half,
    };
    const given = {
      QKV_SPLITS: splitsOf(step),
      HALF_Y: half ? 1 : 0,
      ...cache.constants,
    };
    const eps = config.rmsNormEps, scale = headDim ** -0.5;
    const whole = others.length === 2 &&
      others.every(({ parts }) => parts.length === 1);
    const [after, last] = others.map(({ parts }) => parts[0].planes[0]);
    const projection = this.recorder.joins && oProj
      ? chooseProjection({ ...shape, w: oProj }, gpu)
      : undefined;
    const from = typeof projection === "object" ? projection.from : 0;
    const apart = typeof projection === "string"
      ? `; o_proj has a dispatch of its own: ${projection}`
      : "";
    recording.unprojected.delete(y.buffer);
    for (const choice of choices) {
      const { constants, splits, shares, to } = choice;
      if (to <= from) continue; // it would never run
      const ahead = whole ? choice.ahead : undefined;
      const fetchers = ahead?.FETCHERS ?? 0;
      const fetched = ahead && { next: after, after: last };
      this.recorder.plan.add(attendDecode, { ...operands, ...fetched }, {
        label,
        reason: choice.reason + apart +
          (parts ? "; it adds up the splits of qkv_proj" : "") +
          (half ? LEFT_HALF : "") +
          (ahead
            ? `; ${fetchers} more workgroups prefetch the next weights into the cache`
            : ""),
        constants: { ...constants, ...ahead, ...given },
        uniforms: { firstSequence, eps, scale },
        gridAt: ({ length }) =>
          length >= from && splits(length)
            ? decodeGrid(splits(length), kvHeads * shares, rows, fetchers)
            : undefined,
      });
    }
    if (typeof projection === "object") {
      const record = this.#projector(step, projection, label);
      recording.unprojected.set(y.buffer, { from, record });
    }
    const attended = y.rows(rows); // the others are results of splits
    if (choices.every(({ merges }) => merges)) return attended;
    const isSplit = ({ length }: StepState) =>
      length >= from && choices.some(({ splits }) => splits(length) > 1);
    const merged = { state: cache.state, y, ...half };
    this.#mergeSplits(label, merged, rows * heads, isSplit);
    return attended;
  }

  /**
   * Allocates rows of f16 instead of `y`, if `w`, which multiplies them, reads them so: averages
   * of cached values that are f16 need no scale.
   */
  #leaveHalf(
    { qkv, cache }: Attend,
    y: Tensor,
    w?: Matrix<Tensor>,
  ): { halfY: Tensor } | undefined {
    const { halves, recording } = this.recorder;
    recording.halved.delete(y.buffer);
    const [rows] = qkv.shape, [, width] = y.shape;
    const headroom = halves && w && cache.dtype === "f16" &&
      this.linears.headroomFor(rows, w);
    if (!headroom) return undefined;
    const halfY = this.recorder.scratch(
      "half of attention",
      "f16",
      rows,
      width,
    );
    recording.halved.set(y.buffer, { headroom, rows: halfY, by: 1 });
    return { halfY };
  }

  /** Records attention of few keys with the matmul of its result. */
  #projector(
    step: Attend,
    { constants, from, reason }: ProjectionChoice,
    label: string,
  ): Unprojected["record"] {
    const { headDim, numKeyValueHeads: groups, rmsNormEps: eps } =
      this.recorder.config;
    const rows = Number(constants.PROJECT);
    const { constants: cached, pass: { first: firstSequence } } = step.cache;
    return (w, residual) => {
      const words = pieceWords(w.n, groups, rows);
      const pieces = this.recorder.scratch("pieces of o_proj", "u32", 1, words);
      const given = { ...this.#headOperands(step), w, y: residual, pieces };
      // It leaves what o_proj by itself does.
      const rounded = this.recorder.recording.ahead.get(residual.buffer);
      const left: Operands = rounded
        ? { left: rounded.row, nextNorm: rounded.norm! }
        : { squares: this.recorder.recording.squares.get(residual.buffer)! };
      this.recorder.plan.add(attendDecode, { ...given, ...left }, {
        label: `${label}_o_proj`,
        reason,
        constants: {
          ...{ ...constants, LEAVES: rounded ? 1 : 0 },
          ...{ QKV_SPLITS: splitsOf(step), ...cached },
        },
        uniforms: { firstSequence, eps, scale: headDim ** -0.5 },
        gridAt: ({ length }) =>
          length < from
            ? decodeGrid(Math.ceil(w.n / rows), groups, 1, 0)
            : undefined,
      });
    };
  }

  #attendPrefill(step: Attend, oProj?: Matrix<Tensor>): Tensor {
    const { gpu, config } = this.recorder;
    const { qkv, cache, layer } = step;
    const { headDim, numAttentionHeads: heads } = config;
    const group = heads / config.numKeyValueHeads;
    const { first, tokens } = cache.pass;
    const eps = config.rmsNormEps, scale = headDim ** -0.5;
    const [m] = qkv.shape, width = heads * headDim;
    const q = this.recorder.rows("q", m, width);
    this.recorder.plan.add(qkNormRope, { ...this.#headOperands(step), q }, {
      label: `layers.${layer}.qk_norm_rope`,
      reason: "many tokens: q is normed once, then read by every tile of keys",
      constants: {
        ...headConstants(headDim, gpu),
        ...cacheConstant(cache.dtype),
        ...{ QKV_SPLITS: splitsOf(step), ...cache.constants },
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
      }, gpu);
    const y = this.recorder.rows(
      "attention",
      m * (most > 1 ? 1 + most : 1),
      width,
    );
    const state = most > 1
      ? this.recorder.scratch(
        "splits of attention",
        "u32",
        splitsEnd(m * heads, most),
        1,
      )
      : undefined;
    const label = `layers.${layer}.attention`;
    const { k, v } = cache.layers[layer], lengths = cache.placesOnDevice;
    const byMatrix = kernel === attendPrefillMatrix;
    const half = this.#leaveHalf(step, y, byMatrix ? oProj : undefined);
    this.recorder.plan.add(kernel, {
      ...{ q, lengths, k, v, y: half?.halfY ?? y },
      ...(state ? { state } : {}),
    }, {
      label,
      reason:
        `many tokens: rows of a kv head share each tile of keys; ${multiplies}; ${reason}${
          half ? LEFT_HALF : ""
        }`,
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
        { state, y },
        m * heads,
        ({ length }) => splits(length) > 1,
      );
    }
    return y.rows(m);
  }

  /** The kernel of prefill attention for `rows` rows per kv head, and why it multiplies so. */
  #prefillKernel({ qNorm, kNorm, cache }: Attend, rows: number) {
    const { gpu, config } = this.recorder;
    const { headDim } = config;
    const { dtype, reason } = chooseAttentionDtype({
      cacheDtype: cache.dtype,
      headDim,
      largestQ: qNorm.largest,
      largestK: kNorm.largest,
      room: gpu.limits.maxComputeWorkgroupStorageSize,
    });
    const half = dtype === "f16";
    const matrices = half
      ? chooseMatrixAttention({ rows, headDim }, gpu)
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
        ...exactLanes(gpu, 16),
        ...choosePrefillRows(rows, gpu, half),
      },
      multiplies: matrices === undefined
        ? reason
        : `${reason}; not by tensor cores: ${matrices}`,
    };
  }

  /** Records the merge of the splits of `heads` heads, where `isSplit` says there are some. */
  #mergeSplits(
    label: string,
    operands: { state: Tensor; y: Tensor; halfY?: Tensor },
    heads: number,
    isSplit: (state: StepState) => boolean,
  ): void {
    const { headDim } = this.recorder.config;
    this.recorder.plan.add(mergeSplits, operands, {
      label,
      reason:
        "many keys: their splits run in separate workgroups, which cannot see each other's results",
      constants: {
        HEAD_DIM: headDim,
        VEC: headVector(headDim),
        HALF_Y: operands.halfY ? 1 : 0,
        ...laneConstants(this.recorder.gpu),
      },
      uniforms: { heads },
      gridAt: (state) => isSplit(state) ? splitGrid(heads) : undefined,
    });
  }
}
