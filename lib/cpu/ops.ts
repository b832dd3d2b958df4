/**
 * The verbs of a model on the CPU: the reference that the GPU is checked against, and the
 * fallback if there is no GPU.
 *
 * @module
 */
import type { Qwen3Config } from "../checkpoint/config.ts";
import type { CachePass, KvCache, Paging } from "../model/kv_cache.ts";
import { CHUNK_ROWS } from "./jobs.ts";
import type { Ops } from "../model/ops.ts";
import { type Dtype, elements } from "../dtype.ts";
import { storedAs } from "../formats/cached.ts";
import type { Matrix, MatrixPart } from "../formats/matrix.ts";
import type {
  CpuInfo,
  CpuKernels,
  Finish,
  Heads,
  Norm,
  Rows,
  Work,
} from "./kernels.ts";
import { choose, chosenOf, multiplyExperts } from "./experts.ts";
import { type CpuCacheDtype, CpuKvCache } from "./kv_cache.ts";
import { PlainKernels } from "./plain.ts";
import { RopeTable } from "./rope.ts";
import { type CpuTensor, f32, unpackRow } from "../formats/tensor.ts";
import { chooseWasm, WasmCpuKernels } from "./wasm.ts";

export type { CpuInfo, CpuTensor };

/**
 * The most threads. Not measured: no machine known to us has more cores, and the work
 * space of each takes 1.2 MB.
 */
export const MOST_THREADS = 256;

/** Options of {@link CpuOps}. */
export interface CpuOptions {
  /**
   * Threads that share the work, including the caller's; at most {@link MOST_THREADS}, one
   * per core by default.
   */
  threads?: number;
  /** False selects plain TypeScript, the reference; true by default. */
  simd?: boolean;
  /**
   * Whether few rows are rounded to 16 bits to multiply quants as integers, except
   * where that would lose what is small beside an outlier; false by default.
   */
  integers?: boolean;
}

/**
 * {@link Ops} in f32 on the CPU. Weights stay in their stored format and are unpacked as
 * they are read.
 *
 * The result of a verb is valid until the same verb is called for rows of the same width;
 * copy it to keep it longer. A verb is done when it returns, except in a pass that
 * {@link CpuOps.inSlices} runs.
 */
export class CpuOps implements Ops<CpuTensor>, Disposable {
  readonly #config: Qwen3Config;
  readonly #kernels: CpuKernels;
  readonly #rope: RopeTable;
  readonly #results: Results;
  /** Weights of norms as f32. */
  readonly #weights = new WeakMap<Matrix<CpuTensor>, Float32Array>();
  /** The work of the last verb, in a pass that runs in slices. */
  #work?: Work;
  #slicing = false;

  constructor(config: Qwen3Config, options: CpuOptions = {}) {
    const { numAttentionHeads: heads, numKeyValueHeads: kvHeads, headDim } =
      config;
    if (heads % kvHeads !== 0) {
      throw new Error(
        `Cannot share ${kvHeads} key/value heads among ${heads} query heads: ${heads} must be a multiple of ${kvHeads}`,
      );
    }
    this.#config = config;
    this.#kernels = chooseKernels({ heads, kvHeads, headDim }, options);
    this.#results = new Results(this.#kernels);
    this.#rope = new RopeTable(config);
  }

  /** Which kernels run, and why. */
  get info(): CpuInfo {
    return this.#kernels.info;
  }

  /** Bytes of all tensors, results, angles and of the kernels' work space. */
  get memoryBytes(): number {
    return this.#kernels.memoryBytes + this.#rope.byteLength;
  }

  /** Allocates a tensor of zeros. */
  tensor(dtype: Dtype, shape: readonly number[]): CpuTensor {
    return this.#kernels.allocate(dtype, shape);
  }

  /**
   * Moves each part of a matrix into one memory, as verbs need it. Allocating its planes
   * one by one may have begun another memory between two of them.
   */
  together({ parts }: Matrix<CpuTensor>): void {
    for (const { planes } of parts) this.#kernels.together(planes);
  }

  /**
   * Puts rows of a matrix in the order that is read fastest, in place; returns the matrix as it
   * then is.
   */
  *interleave(
    matrix: Matrix<CpuTensor>,
  ): Generator<void, Matrix<CpuTensor>> {
    const { experts, hiddenSize } = this.#config;
    const apart = experts ? [hiddenSize, experts.intermediateSize] : [];
    const parts: MatrixPart<CpuTensor>[] = [];
    for (const part of matrix.parts) {
      parts.push(yield* this.#kernels.interleave(part, matrix.k, apart));
    }
    return { ...matrix, parts };
  }

  /**
   * Allocates a cache for `sequences` texts of up to `context` tokens each. One whose
   * layers are `shared` holds a layer at a time, so each text must fit one pass.
   *
   * @throws {Error} if pages are not whole chunks of the kernels, {@linkcode CHUNK_ROWS}.
   * @throws {MemoryError} if there is too little memory.
   */
  createCache(
    sequences: number,
    context: number,
    kept: CpuCacheDtype = "f32",
    { shared = false, paging }: { shared?: boolean; paging?: Paging } = {},
  ): CpuKvCache {
    if (paging && paging.page % CHUNK_ROWS !== 0) {
      throw new Error(
        `Cannot allocate a cache: its pages have ${paging.page} positions, must be a multiple of ${CHUNK_ROWS}`,
      );
    }
    const { numHiddenLayers, numKeyValueHeads, headDim } = this.#config;
    const { dtype, width } = storedAs(kept, headDim);
    const shape = [
      paging?.pages ?? sequences,
      numKeyValueHeads,
      paging?.page ?? context,
      width,
    ];
    const half = elements(shape);
    const stored: CpuTensor[] = [];
    const free = () => {
      for (const both of stored.splice(0)) this.#kernels.release(both);
    };
    using unfinished = new DisposableStack();
    unfinished.defer(free);
    while (stored.length < (shared ? 1 : numHiddenLayers)) {
      stored.push(this.tensor(dtype, [2, ...shape]));
    }
    unfinished.move();
    const layers = Array.from({ length: numHiddenLayers }, (_, i) => {
      const both = stored[i % stored.length];
      const [k, v] = [0, half].map((begin): CpuTensor => ({
        dtype,
        shape,
        data: both.data.subarray(begin, begin + half),
      }));
      return { k, v };
    });
    const size = { sequences, context, dtype: kept };
    const release = () => {
      layers.length = 0;
      free();
    };
    return new CpuKvCache(layers, size, this.#config, release, paging);
  }

  /** Runs a forward pass on these verbs as it is iterated, in slices of work. */
  *inSlices<R>(
    pass: Generator<CpuTensor, R, CpuTensor>,
  ): Generator<void, R> {
    this.#slicing = true;
    try {
      for (let next = pass.next();; next = pass.next(next.value)) {
        if (this.#work) yield* this.#work;
        this.#work = undefined;
        if (next.done) return next.value;
      }
    } finally {
      this.#slicing = false;
      this.#work = undefined;
    }
  }

  /** Does the work of a verb now, or leaves it to {@linkcode inSlices}. */
  #do(work: Work): void {
    this.#finish(); // of a verb that the pass did not wait for
    if (this.#slicing) this.#work = work;
    else for (const _ of work);
  }

  #finish(): void {
    for (const _ of this.#work ?? []);
    this.#work = undefined;
  }

  embed(table: Matrix<CpuTensor>, tokens: CpuTensor): CpuTensor {
    const { n: vocab, k: hidden } = table;
    const rows = elements(tokens.shape);
    const out = this.#results.tensor("embed", [rows, hidden]);
    for (let r = 0; r < rows; r++) {
      const token = tokens.data[r];
      if (!(token < vocab)) {
        throw new Error(
          `Cannot embed token ${token}: ids must be less than ${vocab}`,
        );
      }
      const into = f32(out).subarray(r * hidden, (r + 1) * hidden);
      unpackRow(table, token, into);
    }
    return out;
  }

  normMatmul(
    x: CpuTensor,
    norm: Matrix<CpuTensor>,
    w: Matrix<CpuTensor>,
  ): CpuTensor {
    const y = this.#results.tensor("normMatmul", [x.shape[0], w.n]);
    return this.#matmul(x, w, y, "store", this.#normOf(norm, w.k));
  }

  normSwiglu(
    x: CpuTensor,
    norm: Matrix<CpuTensor>,
    gateUp: Matrix<CpuTensor>,
  ): CpuTensor {
    const n = gateUp.n / 2, by = this.#normOf(norm, gateUp.k);
    const y = this.#results.tensor("gated", [x.shape[0], n]);
    if (gateUp.parts.every(({ twin }) => twin !== undefined)) {
      return this.#matmul(x, gateUp, y, "swiglu", by);
    }
    // Gate and up are stored in different formats, so no part holds rows of both.
    const both = this.#results.tensor("gateUp", [x.shape[0], 2 * n]);
    this.#matmul(x, gateUp, both, "store", by);
    this.#finish();
    gate(f32(both), n, f32(y));
    return y;
  }

  chooseExperts(scores: CpuTensor): CpuTensor {
    const [rows, count] = scores.shape;
    const { used, normalized } = this.#config.experts!;
    const chosen = this.#results.tensor("chosen", [2 * rows, used]);
    this.#finish();
    choose(f32(scores), count, normalized, f32(chosen), used);
    return chosen;
  }

  expertsSwiglu(
    x: CpuTensor,
    norm: Matrix<CpuTensor>,
    gateUp: Matrix<CpuTensor>,
    chosen: CpuTensor,
  ): CpuTensor {
    const { count, intermediateSize: n } = this.#config.experts!;
    const normed = f32(this.#rmsNorm(x, norm)), pairs = chosenOf(chosen);
    const kernels = this.#kernels, all = pairs.rows * pairs.used;
    const out = f32(this.#results.tensor("gateUp", [all, 2 * n]));
    const y = this.#results.tensor("gated", [all, n]);
    this.#do(function* () {
      for (const [i, column] of [0, n].entries()) {
        yield* multiplyExperts(kernels, normed, gateUp, pairs, {
          begin: i * count * n,
          n,
          apart: false,
          out,
          stride: 2 * n,
          column,
        });
      }
      gate(out, n, f32(y));
    }());
    return y;
  }

  expertsAdd(
    gated: CpuTensor,
    down: Matrix<CpuTensor>,
    chosen: CpuTensor,
    residual: CpuTensor,
  ): CpuTensor {
    const pairs = chosenOf(chosen), { rows, used } = pairs;
    const n = residual.shape[1], kernels = this.#kernels;
    requireShape("add to residual", residual, [rows, n]);
    const out = f32(this.#results.tensor("expertsAdd", [rows * used, n]));
    const sum = f32(residual), x = f32(gated);
    this.#do(function* () {
      const place = { begin: 0, n, apart: true, out, stride: n, column: 0 };
      yield* multiplyExperts(kernels, x, down, pairs, place);
      for (let r = 0; r < rows; r++) {
        for (let s = 0; s < used; s++) {
          const weight = pairs.weight(r, s), from = (r * used + s) * n;
          for (let c = 0; c < n; c++) sum[r * n + c] += weight * out[from + c];
        }
      }
    }());
    return residual;
  }

  matmulAdd(
    x: CpuTensor,
    w: Matrix<CpuTensor>,
    residual: CpuTensor,
  ): CpuTensor {
    requireShape("add to residual", residual, [x.shape[0], w.n]);
    return this.#matmul(x, w, residual, "add");
  }

  attend(
    qkv: CpuTensor,
    qNorm: Matrix<CpuTensor>,
    kNorm: Matrix<CpuTensor>,
    cache: KvCache<CpuTensor>,
    layer: number,
  ): CpuTensor {
    const {
      numAttentionHeads: heads,
      numKeyValueHeads: kvHeads,
      headDim,
    } = this.#config;
    const rows = qkv.shape[0];
    const width = (heads + 2 * kvHeads) * headDim;
    requireShape("attend to qkv", qkv, [rows, width]);
    requireRows(cache.pass, rows);
    const { k, v } = cache.layers[layer];
    const out = this.#results.tensor("attend", [rows, heads * headDim]);
    this.#do(
      this.#kernels.attention({
        ...{ qkv: f32(qkv), k, v, cache, out: f32(out) },
        qNorm: this.#normOf(qNorm, headDim),
        kNorm: this.#normOf(kNorm, headDim),
        angles: (position) => this.#rope.angles(position),
      }),
    );
    return out;
  }

  lastRow(
    x: CpuTensor,
    { pass: { tokens } }: KvCache<CpuTensor>,
    ends?: CpuTensor,
  ): CpuTensor {
    if (ends) return this.#picked(x, ends);
    const [rows, n] = x.shape;
    const out = this.#results.tensor("lastRow", [rows / tokens, n]);
    for (let s = 0; s < rows / tokens; s++) {
      const begin = ((s + 1) * tokens - 1) * n;
      f32(out).set(f32(x).subarray(begin, begin + n), s * n);
    }
    return out;
  }

  normRows(
    x: CpuTensor,
    rows: CpuTensor,
    norm: Matrix<CpuTensor>,
  ): CpuTensor {
    return this.#rmsNorm(this.#picked(x, rows), norm);
  }

  /** The rows of `x` that are named. */
  #picked(x: CpuTensor, rows: CpuTensor): CpuTensor {
    const [most, n] = x.shape, count = elements(rows.shape);
    const out = this.#results.tensor("picked", [count, n]);
    for (let i = 0; i < count; i++) {
      const row = rows.data[i];
      if (!(row < most)) {
        throw new Error(
          `Cannot take row ${row} of ${show(x)}: must be less than ${most}`,
        );
      }
      f32(out).set(f32(x).subarray(row * n, (row + 1) * n), i * n);
    }
    return out;
  }

  /** Stops the threads. Tensors keep their values; verbs must not be called again. */
  [Symbol.dispose](): void {
    this.#kernels[Symbol.dispose]();
  }

  #matmul(
    x: CpuTensor,
    w: Matrix<CpuTensor>,
    y: CpuTensor,
    finish: Finish,
    norm?: Norm,
  ): CpuTensor {
    const [rows, k] = x.shape;
    if (k !== w.k) {
      throw new Error(
        `Cannot multiply: x is ${
          show(x)
        }, w is [${w.n}, ${w.k}]; their columns must match`,
      );
    }
    this.#do(this.#multiply({ data: f32(x), rows, k, norm }, w, y, finish));
    return y;
  }

  *#multiply(
    x: Rows,
    w: Matrix<CpuTensor>,
    y: CpuTensor,
    finish: Finish,
  ): Work {
    const data = f32(y), stride = y.shape[1];
    for (const part of w.parts) {
      const to = { data, stride, column: part.begin };
      yield* this.#kernels.matmul(x, part, to, finish);
    }
  }

  #rmsNorm(x: CpuTensor, by: Matrix<CpuTensor>): CpuTensor {
    const [rows, k] = x.shape, norm = this.#normOf(by, k);
    const y = this.#results.tensor("normed", [rows, k]);
    this.#finish();
    this.#kernels.norm({ data: f32(x), rows, k, norm }, f32(y));
    return y;
  }

  /** The norm of rows of `k` elements by a matrix. */
  #normOf(norm: Matrix<CpuTensor>, k: number): Norm {
    if (norm.k !== k) {
      throw new Error(
        `Cannot norm rows of ${k} with ${norm.label}: it has ${norm.k} elements, must have ${k}`,
      );
    }
    let weight = this.#weights.get(norm);
    if (!weight) {
      weight = unpackRow(norm, 0, new Float32Array(k));
      this.#weights.set(norm, weight);
    }
    return { weight, eps: this.#config.rmsNormEps };
  }
}

function chooseKernels(heads: Heads, options: CpuOptions): CpuKernels {
  const { simd = true, integers = false } = options;
  const threads = options.threads ??
    Math.min(navigator.hardwareConcurrency, MOST_THREADS);
  if (!simd) return new PlainKernels(heads, "simd: false was asked for");
  if (!(Number.isInteger(threads) && threads >= 1 && threads <= MOST_THREADS)) {
    throw new Error(
      `Cannot use ${threads} threads: must be an integer from 1 to ${MOST_THREADS}`,
    );
  }
  const choice = chooseWasm();
  return "refusal" in choice
    ? new PlainKernels(heads, choice.refusal)
    : new WasmCpuKernels(heads, threads, choice, integers);
}

/** `silu(g) · u` of rows `[g, u]`. */
function gate(both: Float32Array, n: number, out: Float32Array): void {
  for (let i = 0; i < out.length; i++) {
    const at = i + Math.floor(i / n) * n, g = both[at];
    out[i] = g / (1 + Math.exp(-g)) * both[at + n];
  }
}

const show = ({ shape }: CpuTensor) => `[${shape.join(", ")}]`;

function requireShape(
  action: string,
  tensor: CpuTensor,
  shape: readonly number[],
): void {
  if (
    tensor.shape.length !== shape.length ||
    tensor.shape.some((n, i) => n !== shape[i])
  ) {
    throw new Error(
      `Cannot ${action}: its shape is ${show(tensor)}, must be [${
        shape.join(", ")
      }]`,
    );
  }
}

function requireRows({ sequences, tokens }: CachePass, rows: number): void {
  if (rows === sequences * tokens) return;
  throw new Error(
    `Cannot attend: there are ${rows} rows, must be ${tokens} tokens × ${sequences} sequences`,
  );
}

/** Results in memory that threads share, by verb and row width. */
class Results {
  /** More elements are left to the garbage collector: the logits of long prompts. */
  static readonly #most = 1 << 22;
  /** All that was allocated, and the part that was handed out last. */
  readonly #known = new Map<string, { all: CpuTensor; last: CpuTensor }>();

  constructor(private readonly kernels: CpuKernels) {}

  /** A tensor whose values are any. */
  tensor(verb: string, shape: readonly [number, number]): CpuTensor {
    const size = elements(shape), name = `${verb} ${shape[1]}`;
    const known = this.#known.get(name);
    if (known?.last.data.length === size) return known.last;
    if (size > Results.#most) {
      return { dtype: "f32", shape, data: new Float32Array(size) };
    }
    let all = known?.all;
    if (!all || all.data.length < size) {
      all = this.kernels.allocate("f32", [size]); // may throw
      if (known) this.kernels.release(known.all);
    }
    const last = { ...all, shape, data: all.data.subarray(0, size) };
    this.#known.set(name, { all, last });
    return last;
  }
}
