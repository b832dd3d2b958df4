/**
 * The verbs of a model on the GPU. Each records dispatches into the current
 * {@linkcode Plan}; nothing runs until the plan does.
 *
 * @module
 */
import { attendDecode, decodeGrid } from "../../kernels/attend_decode.ts";
import { attendPrefill } from "../../kernels/attend_prefill.ts";
import { attendPrefillF16 } from "../../kernels/attend_prefill_f16.ts";
import { embed } from "../../kernels/embed.ts";
import { gemm } from "../../kernels/gemm.ts";
import { gemv, squareParts } from "../../kernels/gemv.ts";
import { gemvRows, rowParts } from "../../kernels/gemv_rows.ts";
import { mergeSplits } from "../../kernels/merge_splits.ts";
import { qkNormRope } from "../../kernels/qk_norm_rope.ts";
import { rmsNorm } from "../../kernels/rms_norm.ts";
import { sumSplits } from "../../kernels/sum_splits.ts";
import { toF16 } from "../../kernels/to_f16.ts";
import { exactLanes, laneConstants } from "../dispatch/capabilities.ts";
import type { KvCache } from "../model/kv_cache.ts";
import type { Epilogue } from "../dispatch/shapes.ts";
import { chooseLinear } from "../dispatch/linear.ts";
import {
  chooseDecodeAttention,
  choosePrefillRows,
  headConstants,
  MOST_SPLITS,
} from "../dispatch/attention.ts";
import { chooseAttentionDtype } from "../dispatch/precision.ts";
import type { Qwen3Config } from "../checkpoint/config.ts";
import type { Gpu } from "../webgpu/device.ts";
import { splitGrid } from "../webgpu/kernel.ts";
import type { GpuKvCache } from "./kv_cache.ts";
import type { Ops } from "../model/ops.ts";
import { Plan } from "../webgpu/plan.ts";
import { Tensor } from "../webgpu/tensor.ts";

/** {@linkcode Ops} on the GPU, with scratch memory of its own. */
export class GpuOps implements Ops<Tensor>, Disposable {
  /** Where the verbs record; set it before each forward pass. */
  plan: Plan;
  #buffers = new Map<string, Tensor>();
  /** By the buffer of a tensor: partial sums of its rows' squares. */
  #squares = new Map<GPUBuffer, Tensor>();

  constructor(
    readonly gpu: Gpu,
    readonly config: Qwen3Config,
    plan: Plan = new Plan(gpu),
  ) {
    this.plan = plan;
  }

  embed(table: Tensor, tokens: Tensor): Tensor {
    const x = this.#rows("x", tokens.shape[0], table.shape[1]);
    return this.#gather(table, tokens, x, "embed_tokens");
  }

  normMatmul(x: Tensor, norm: Tensor, w: Tensor): Tensor {
    const y = this.#rows("projected", x.shape[0], w.shape[0]);
    return this.#linear(x, w, y, { norm, epilogue: "store" });
  }

  matmulAdd(x: Tensor, w: Tensor, residual: Tensor): Tensor {
    return this.#linear(x, w, residual, { epilogue: "add" });
  }

  normSwiglu(x: Tensor, norm: Tensor, gateUp: Tensor): Tensor {
    const y = this.#rows("gated", x.shape[0], gateUp.shape[0] / 2);
    return this.#linear(x, gateUp, y, { norm, epilogue: "swiglu" });
  }

  attend(
    qkv: Tensor,
    qNorm: Tensor,
    kNorm: Tensor,
    cache: GpuKvCache,
    layer: number,
    next?: readonly [Tensor, Tensor],
  ): Tensor {
    const { k, v } = cache.layers[layer];
    const { first, tokens } = cache.pass;
    const { headDim, numAttentionHeads, numKeyValueHeads } = this.config;
    const rows = qkv.shape[0];
    const heads = numAttentionHeads, group = heads / numKeyValueHeads;
    const y = this.#rows("attention", rows, heads * headDim);
    const shared = { qkv, qNorm, kNorm, k, v, flags: cache.flags };
    const state = { angles: cache.angles, lengths: cache.lengthsOnDevice };
    const eps = this.config.rmsNormEps, scale = headDim ** -0.5;
    const label = `layers.${layer}.attention`;
    if (tokens === 1) {
      const choices = chooseDecodeAttention(
        { headDim, group, rows },
        this.gpu,
      );
      const runs = rows * Math.ceil(MOST_SPLITS / rows);
      const partial = this.#rows("partial", runs, heads * headDim);
      const stats = this.#scratch("stats", "u32", runs, heads * 2);
      const arrived = this.#scratch("arrived", "u32", rows, heads);
      const whole = next?.every(({ parts }) => parts.length === 1);
      for (const choice of choices) {
        const { constants, splits, shares, reason } = choice;
        const ahead = whole ? choice.ahead : undefined;
        const operands = { ...shared, ...state, y, partial, stats, arrived };
        const fetched = ahead && { next: next![0], after: next![1] };
        this.plan.add(attendDecode, { ...operands, ...fetched }, {
          label,
          reason: ahead
            ? `${reason}; ${ahead.FETCHERS} workgroups beside it bring the next weights into the cache`
            : reason,
          constants: { ...constants, ...ahead },
          uniforms: { first, eps, scale },
          gridAt: ({ length }) =>
            splits(length)
              ? decodeGrid(
                splits(length),
                numKeyValueHeads * shares,
                rows,
                ahead?.FETCHERS ?? 0,
              )
              : undefined,
        });
      }
      if (choices.every(({ merges }) => merges)) return y;
      this.plan.add(mergeSplits, { partial, stats, flags: cache.flags, y }, {
        label,
        reason:
          "many keys: their splits went to different workgroups, which cannot see each other's results",
        constants: {
          HEAD_DIM: headDim,
          VEC: choices[0].constants.VEC,
          ...laneConstants(this.gpu),
        },
        uniforms: { heads },
        gridAt: ({ length }) =>
          choices.some(({ splits }) => splits(length) > 1)
            ? splitGrid(rows * heads)
            : undefined,
      });
      return y;
    }
    const q = this.#rows("q", rows, heads * headDim);
    this.plan.add(qkNormRope, { ...shared, ...state, q }, {
      label: `layers.${layer}.qk_norm_rope`,
      reason: "many tokens: q is normed once, then read by every tile of keys",
      constants: {
        ...headConstants(headDim, this.gpu),
      },
      uniforms: { heads, first, tokens, eps },
    });
    const products = chooseAttentionDtype({
      cacheDtype: cache.dtype,
      headDim,
      largestQ: qNorm.largest,
      largestK: kNorm.largest,
    });
    const half = products.dtype === "f16";
    this.plan.add(half ? attendPrefillF16 : attendPrefill, {
      q,
      lengths: state.lengths,
      k,
      v,
      y,
    }, {
      label,
      reason:
        `many tokens: rows of a kv head share each tile of keys; ${products.reason}`,
      constants: {
        HEAD_DIM: headDim,
        ...exactLanes(this.gpu, 16),
        ...(half ? choosePrefillRows(tokens * group, this.gpu) : {}),
      },
      uniforms: { first, tokens, group, scale },
    });
    return y;
  }

  lastRow(x: Tensor, { pass: { tokens } }: KvCache<Tensor>): Tensor {
    if (tokens === 1) return x;
    const [rows, width] = x.shape;
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
    const y = this.#rows("last", last.length, width);
    return this.#gather(x, index, y, "last_row");
  }

  #gather(table: Tensor, tokens: Tensor, x: Tensor, label: string): Tensor {
    const squares = this.#leaveSquares(x, Number(embed.constants.WORKGROUP));
    for (const part of table.parts) {
      const operands = { table: { tensor: table, part }, tokens, x, squares };
      this.plan.add(embed, operands, {
        label,
        reason: "rows by index",
        uniforms: { begin: part.begin },
      });
    }
    return x;
  }

  #linear(
    x: Tensor,
    w: Tensor,
    y: Tensor,
    { norm, epilogue }: { norm?: Tensor; epilogue: Epilogue },
  ): Tensor {
    const [m, k] = x.shape, stride = y.shape[1];
    const eps = this.config.rmsNormEps, { label } = w;
    for (const part of w.parts) {
      const weight = { tensor: w, part };
      const choice = chooseLinear({
        m,
        n: part.rows,
        k,
        dtype: w.dtype,
        norm: norm !== undefined,
        swiglu: epilogue === "swiglu",
        largest: w.largest,
        fixed: true,
      }, this.gpu);
      const { constants, reason, splits } = choice;
      const column = part.begin;
      if (choice.kernel !== "gemm") {
        const one = choice.kernel === "gemv";
        const squares = this.#squares.get(x.part.buffer);
        const fused = norm && choice.fusedNorm && squares &&
          // gemv reads them four at a time, unless each lane has rows of its own.
          !(one && constants.SPREAD !== "rows" && squares.shape[1] % 4);
        const input = norm && !fused ? this.#normed(x, norm) : x;
        const leaves = epilogue === "add"
          ? this.#leaveSquares(
            y,
            (one ? squareParts : rowParts)(part.rows, constants),
          )
          : undefined;
        this.plan.add(one ? gemv : gemvRows, {
          w: weight,
          x: input,
          y,
          ...(fused ? { norm, squares } : {}),
          ...(leaves ? { squares: leaves } : {}),
        }, {
          label,
          reason,
          constants: {
            ...constants,
            EPILOGUE: epilogue,
            NORM: fused ? 1 : 0,
          },
          uniforms: { stride, column, eps },
        });
        // A split weight leaves sums of its own rows only.
        if (leaves && w.parts.length > 1) this.#squares.delete(y.part.buffer);
        continue;
      }
      if (epilogue === "add") this.#squares.delete(y.part.buffer);
      const [a, scales] = choice.headroom
        ? this.#half(x, norm, choice.headroom)
        : [norm ? this.#normed(x, norm) : x, x];
      if (splits === 1) {
        this.plan.add(gemm, { a, b: weight, scales, c: y }, {
          label,
          reason,
          constants: { ...constants, EPILOGUE: epilogue },
          uniforms: { stride, column },
        });
        continue;
      }
      const n = part.rows;
      const partial = this.#rows("splits", splits * m, n);
      this.plan.add(gemm, { a, b: weight, scales, c: partial }, {
        label,
        reason,
        constants,
        uniforms: { stride: n, column: 0 },
      });
      this.plan.add(sumSplits, { partial, y }, {
        label,
        reason: "sums the splits of k",
        constants: { SPLITS: splits, ADD: epilogue === "add" ? 1 : 0 },
        uniforms: { stride, column },
      });
    }
    return y;
  }

  /** Room for partial sums of the squares of `x`'s rows, found again by its buffer. */
  #leaveSquares(x: Tensor, parts: number): Tensor {
    const squares = this.#rows(`squares of ${parts}`, x.shape[0], parts);
    this.#squares.set(x.part.buffer, squares);
    return squares;
  }

  #normed(x: Tensor, norm: Tensor): Tensor {
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

  /** Rows of `x`, normed if `norm` is given, as f16 with a factor for each. */
  #half(
    x: Tensor,
    norm: Tensor | undefined,
    headroom: number,
  ): [Tensor, Tensor] {
    const [m, k] = x.shape;
    const y = this.#scratch("half", "f16", m, k);
    const scales = this.#scratch("scales", "f32", m, 1).view(m);
    this.plan.add(toF16, { x, norm: norm ?? x, y, scales }, {
      label: norm?.label ?? "to_f16",
      reason: "f16 matmul: each row is scaled into range",
      constants: { NORM: norm ? 1 : 0, ...laneConstants(this.gpu) },
      uniforms: { eps: this.config.rmsNormEps, headroom },
    });
    return [y, scales];
  }

  /** Scratch memory by use, as `[rows, width]`; one buffer serves every layer. */
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

  /** Frees the scratch memory; plans recorded before must not run again. */
  [Symbol.dispose](): void {
    for (const tensor of this.#buffers.values()) tensor[Symbol.dispose]();
    this.#buffers.clear();
  }
}
