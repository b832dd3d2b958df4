/**
 * Runs a model the way a program with only some matmul kernels would: every projection
 * by itself and attention as two matmuls. Each is offered to the allowed kernels, and
 * runs on the CPU if they all refuse it.
 *
 * @module
 */
import { RopeTable } from "../../cpu/rope.ts";
import { BYTES } from "../../dtype.ts";
import { unpackRow } from "../../formats/tensor.ts";
import { type Matrix, matrixOf } from "../../formats/matrix.ts";
import type { Gpu } from "../../webgpu/device.ts";
import { batchedGemm, gemm } from "../../matmul.ts";
import type { CpuKvCache } from "../../cpu/kv_cache.ts";
import { normalize, rotate } from "../../cpu/norm.ts";
import type { CpuTensor } from "../../cpu/ops.ts";
import { type Cost, type CostContext, costsOf } from "./costs.ts";
import {
  add,
  append,
  byHead,
  exact,
  f32,
  rowsOf,
  softmax,
  tensor,
} from "./host.ts";
import { type AllowedKernel, chooseAllowed, type Refused } from "./kernels.ts";
import type { Sample } from "./operations.ts";
import type { Coverage } from "./report.ts";
import type { Layer } from "../../model/family.ts";
import type { Fallback } from "../../model/runner.ts";
import type { CpuRunner } from "../../cpu/runner.ts";
import { Tensor } from "../../webgpu/tensor.ts";

/** A model of separate matmuls; disposing it frees its weights on the GPU. */
export class UnpackedModel implements Disposable {
  readonly samples: Sample[] = [];
  readonly fallbacks: Fallback[] = [];
  readonly coverage: Coverage = {
    calls: { gpu: 0, total: 0 },
    flops: { gpu: 0, total: 0 },
    refusals: [],
  };
  readonly #uploaded = new Map<CpuTensor["data"], Tensor>();
  readonly #slices = new Map<Matrix<CpuTensor>, Map<number, CpuTensor>>();
  readonly #rope: RopeTable;
  #context: CostContext;

  constructor(
    readonly gpu: Gpu,
    readonly runner: CpuRunner,
    readonly allowed: readonly AllowedKernel[],
  ) {
    const { config } = runner;
    this.#rope = new RopeTable(config);
    this.#context = { config, sequences: 1, tokens: 1, length: 0 };
  }

  /** Logits after the last of `ids`, which are appended to `cache`. */
  async forward(
    ids: readonly number[],
    cache: CpuKvCache,
    signal?: AbortSignal,
  ): Promise<Float32Array> {
    const { config, weights, ops } = this.runner;
    const m = ids.length, [length] = cache.lengths;
    this.#context = { config, sequences: 1, tokens: m, length };
    cache.begin({ first: 0, sequences: 1, tokens: m });
    const data = Uint32Array.from(ids);
    let x = ops.embed(weights.embedTokens, { dtype: "u32", shape: [m], data })
      .data as Float32Array;
    for (const [i, layer] of weights.layers.entries()) {
      signal?.throwIfAborted();
      const at = `layers.${i}.`;
      const attended = await this.#attention(x, m, layer, cache, i);
      x = add(
        x,
        await this.#linear(at + "o_proj", attended, m, this.#rows(layer.oProj)),
      );
      const normed = this.#normed(x, m, layer.postNorm);
      const [gate, up] = await this.#split(
        at,
        ["gate_proj", "up_proj"],
        normed,
        m,
        layer.gateUpProj,
        [0.5, 0.5],
      );
      const gated = gate.map((g, j) => g / (1 + Math.exp(-g)) * up[j]);
      x = add(
        x,
        await this.#linear(
          at + "down_proj",
          gated,
          m,
          this.#rows(layer.downProj),
        ),
      );
    }
    const last = x.slice((m - 1) * config.hiddenSize);
    const normed = this.#normed(last, 1, weights.norm);
    const logits = await this.#linear(
      "lm_head",
      normed,
      1,
      this.#rows(weights.lmHead),
    );
    cache.advance();
    return logits;
  }

  /** Discards all samples and counts, as after a warm-up run. */
  reset(): void {
    const { calls, flops, refusals } = this.coverage;
    Object.assign(calls, { gpu: 0, total: 0 });
    Object.assign(flops, { gpu: 0, total: 0 });
    refusals.length = this.samples.length = this.fallbacks.length = 0;
  }

  /** Multiplies `x` with each part of a packed weight. */
  async #split(
    at: string,
    names: string[],
    x: Float32Array,
    m: number,
    w: Matrix<CpuTensor>,
    shares: number[],
  ): Promise<Float32Array[]> {
    const results: Float32Array[] = [];
    let row = 0;
    for (const [i, name] of names.entries()) {
      const rows = w.n * shares[i], slice = this.#rows(w, row, rows);
      results.push(await this.#linear(at + name, x, m, slice));
      row += rows;
    }
    return results;
  }

  /** Rows of a matrix, which are unpacked only once. */
  #rows(w: Matrix<CpuTensor>, begin = 0, rows = w.n): CpuTensor {
    let known = this.#slices.get(w);
    if (!known) this.#slices.set(w, known = new Map());
    let slice = known.get(begin);
    if (!slice) known.set(begin, slice = rowsOf(w, begin, rows));
    return slice;
  }

  async #linear(
    label: string,
    x: Float32Array,
    m: number,
    w: CpuTensor,
  ): Promise<Float32Array> {
    const [n, k] = w.shape, { ops } = this.runner;
    const dims = { m, n, k }, constants = { W_DTYPE: w.dtype };
    const costs = costsOf(
      { label, kernel: "gemv", dims, constants },
      this.#context,
    );
    return await this.#matmul(label, costs, [m, k], [k, n], {
      gpu: async () => {
        using a = Tensor.create(this.gpu, "f32", [m, k], exact(x));
        const b = this.#upload(w);
        using c = gemm(a, b, { transposeB: true });
        return await c.read();
      },
      cpu: () => {
        const out = tensor([m, n], new Float32Array(m * n));
        return f32(ops.matmulAdd(tensor([m, k], x), matrixOf(w), out));
      },
    }, n * k * BYTES[w.dtype]);
  }

  async #attention(
    x: Float32Array,
    m: number,
    layer: Layer<Matrix<CpuTensor>>,
    cache: CpuKvCache,
    index: number,
  ): Promise<Float32Array> {
    const { config } = this.runner;
    const { numAttentionHeads: heads, numKeyValueHeads: kvHeads, headDim } =
      config;
    const at = `layers.${index}.`;
    const normed = this.#normed(x, m, layer.inputNorm);
    const total = heads + 2 * kvHeads;
    const [q, k, v] = await this.#split(
      at,
      ["q_proj", "k_proj", "v_proj"],
      normed,
      m,
      layer.qkvProj,
      [heads / total, kvHeads / total, kvHeads / total],
    );
    const length = cache.lengths[0], keys = length + m;
    const label = `${at}attention`;
    const costs = costsOf(
      {
        label,
        kernel: "attendPrefill",
        dims: {},
        constants: { K_DTYPE: "f32" },
      },
      this.#context,
    );
    const a = [1, heads, m, headDim], kᵀ = [1, kvHeads, headDim, keys];
    const choice = chooseAllowed(a, kᵀ, this.allowed, this.gpu);
    if ("refusals" in choice) {
      // Both matmuls are 4D, so kernels that refuse one refuse the other.
      const p = [1, heads, m, keys], vs = [1, kvHeads, keys, headDim];
      const other = chooseAllowed(p, vs, this.allowed, this.gpu);
      if (!("refusals" in other)) throw new Error("Cannot split attention");
      const [scores, values] = costs;
      this.#refuse(scores, choice.refusals);
      this.#refuse(values, other.refusals);
      const began = performance.now();
      const y = this.#attendOnCpu([q, k, v], m, layer, cache, index);
      this.#note(label, costs, performance.now() - began);
      return y;
    }
    const { qRows, kRows } = this.#rotate(q, k, m, length, layer);
    const stored = cache.layers[index];
    append(f32(stored.k), kRows, m, kvHeads, headDim, cache.context, length);
    append(f32(stored.v), v, m, kvHeads, headDim, cache.context, length);
    return await this.#attendOnGpu(label, costs, qRows, m, cache, index);
  }

  /** Attention by the CPU's fused kernel. */
  #attendOnCpu(
    parts: readonly Float32Array[],
    m: number,
    layer: Layer<Matrix<CpuTensor>>,
    cache: CpuKvCache,
    index: number,
  ): Float32Array {
    const width = parts.reduce((sum, part) => sum + part.length / m, 0);
    const qkv = new Float32Array(m * width);
    for (let r = 0, to = 0; r < m; r++) {
      for (const part of parts) {
        const columns = part.length / m;
        qkv.set(part.subarray(r * columns, (r + 1) * columns), to);
        to += columns;
      }
    }
    return f32(
      this.runner.ops.attend(
        tensor([m, width], qkv),
        layer.qNorm,
        layer.kNorm,
        cache,
        index,
      ),
    );
  }

  /** Attention as two matmuls of the GPU with a softmax between them on the CPU. */
  async #attendOnGpu(
    label: string,
    [scores, values]: Cost[],
    qRows: Float32Array,
    m: number,
    cache: CpuKvCache,
    index: number,
  ): Promise<Float32Array> {
    const { numAttentionHeads: heads, numKeyValueHeads: kvHeads, headDim } =
      this.runner.config;
    const length = cache.lengths[0], keys = length + m;
    const { k, v } = cache.layers[index];
    const shape = [1, kvHeads, keys, headDim];
    const cached = (from: CpuTensor) => {
      const size = keys * headDim;
      const out = new Float32Array(kvHeads * size);
      for (let h = 0; h < kvHeads; h++) {
        const begin = h * cache.context * headDim;
        out.set(f32(from).subarray(begin, begin + size), h * size);
      }
      return out;
    };
    const multiply = (
      cost: Cost,
      a: number[],
      b: number[],
      left: () => Float32Array<ArrayBuffer>,
      right: () => Float32Array<ArrayBuffer>,
      transposeB: boolean,
    ) =>
      this.#matmul(label, [{ ...cost, part: 1 }], a, b, {
        gpu: async () => {
          using x = Tensor.create(this.gpu, "f32", a, left());
          using y = Tensor.create(this.gpu, "f32", shape, right());
          using result = batchedGemm(x, y, { transposeB });
          return await result.read();
        },
        cpu: () => {
          throw new Error("Cannot run one matmul of attention on the CPU");
        },
      });
    const a = [1, heads, m, headDim], kᵀ = [1, kvHeads, headDim, keys];
    const rows = () => byHead(qRows, m, heads, headDim);
    const weights = await multiply(scores, a, kᵀ, rows, () => cached(k), true);
    softmax(weights, m, keys, length, headDim ** -0.5);
    const p = [1, heads, m, keys], exactly = () => exact(weights);
    const y = await multiply(values, p, shape, exactly, () => cached(v), false);
    return byHead(y, heads, m, headDim); // back to rows
  }

  #rotate(
    q: Float32Array,
    k: Float32Array,
    m: number,
    length: number,
    layer: Layer<Matrix<CpuTensor>>,
  ) {
    const { headDim, rmsNormEps } = this.runner.config;
    const each = (rows: Float32Array, norm: Matrix<CpuTensor>) => {
      const weight = unpackRow(norm, 0, new Float32Array(headDim));
      const out = new Float32Array(rows.length);
      const width = rows.length / m;
      for (let at = 0; at < rows.length; at += headDim) {
        normalize(rows, at, weight, rmsNormEps, out, at);
        rotate(out, at, this.#rope.angles(length + Math.floor(at / width)));
      }
      return out;
    };
    return { qRows: each(q, layer.qNorm), kRows: each(k, layer.kNorm) };
  }

  /** Offers a matmul to the allowed kernels; notes where it ran and its time. */
  async #matmul(
    label: string,
    costs: Cost[],
    a: number[],
    b: number[],
    run: {
      gpu: () => Promise<Float32Array>;
      cpu: () => Float32Array;
    },
    bytes?: number,
  ): Promise<Float32Array> {
    const choice = chooseAllowed(a, b, this.allowed, this.gpu, bytes);
    const began = performance.now();
    if ("refusals" in choice) {
      this.#refuse(costs[0], choice.refusals);
      const result = run.cpu();
      this.#note(label, costs, performance.now() - began);
      return result;
    }
    this.#count(costs[0], true);
    const result = await run.gpu();
    this.#note(label, costs, performance.now() - began, choice.kernel);
    return result;
  }

  #refuse(
    cost: Cost,
    refusals: Refused[],
  ): void {
    this.#count(cost, false);
    for (const refusal of refusals) {
      const { line } = refusal;
      let group = this.coverage.refusals.find((group) => group.line === line);
      if (!group) {
        group = { ...refusal, operations: [], count: 0 };
        this.coverage.refusals.push(group);
      }
      group.count++;
      if (!group.operations.includes(cost.name)) {
        group.operations.push(cost.name);
      }
    }
    const reason = refusals.map(({ line }) => line).join("; ");
    const operation = cost.name;
    const known = this.fallbacks.find((fallback) =>
      fallback.operation === operation && fallback.reason === reason
    );
    if (known) known.count++;
    else this.fallbacks.push({ operation, reason, count: 1 });
  }

  #count({ flops }: Cost, gpu: boolean): void {
    const { calls, flops: sums } = this.coverage;
    calls.total++;
    sums.total += flops;
    if (!gpu) return;
    calls.gpu++;
    sums.gpu += flops;
  }

  #note(label: string, costs: Cost[], ms: number, kernel?: string): void {
    const { info } = this.runner.ops;
    this.samples.push({
      dispatch: {
        label,
        kernel: kernel ?? `CPU ${info.kernel}`,
        dims: {},
        constants: {},
        reason: kernel
          ? "allowed; uploads the operands and reads back the result each time"
          : `no allowed kernel (${this.allowed.join(", ")}) takes these shapes`,
      },
      context: this.#context,
      workgroups: 1,
      ms,
      costs,
    });
  }

  #normed(
    x: Float32Array,
    m: number,
    norm: Matrix<CpuTensor>,
  ): Float32Array {
    const k = x.length / m;
    const weight = unpackRow(norm, 0, new Float32Array(k));
    const out = new Float32Array(x.length);
    const { rmsNormEps } = this.runner.config;
    for (let r = 0; r < m; r++) {
      normalize(x, r * k, weight, rmsNormEps, out, r * k);
    }
    return out;
  }

  #upload({ dtype, shape, data }: CpuTensor): Tensor {
    const key = [...this.#uploaded.keys()].find((known) =>
      known.buffer === data.buffer && known.byteOffset === data.byteOffset &&
      known.length === data.length
    );
    if (key) return this.#uploaded.get(key)!;
    const copy = data.slice() as Float32Array<ArrayBuffer>;
    const tensor = Tensor.create(this.gpu, dtype, shape, copy, "weight");
    this.#uploaded.set(data, tensor);
    return tensor;
  }

  [Symbol.dispose](): void {
    for (const tensor of this.#uploaded.values()) tensor[Symbol.dispose]();
  }
}
