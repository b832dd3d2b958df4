/**
 * A few layers of a model on the GPU, and one of them on the CPU, in which candidates are
 * timed and checked.
 *
 * @module
 */
import { cachedToF32, type CacheDtype } from "../../formats/cached.ts";
import { type Matrix, matrixOf } from "../../formats/matrix.ts";
import { errorText } from "../../errors.ts";
import type { LoadOptions } from "../../model/weights.ts";
import type { Checkpoint, TensorInfo } from "../../checkpoint/checkpoint.ts";
import { contextLimit } from "../../checkpoint/config.ts";
import {
  type CacheRequest,
  chooseCacheDtype,
  chooseMatmulDtype,
} from "../../dispatch/precision.ts";
import { ROW_CLASSES } from "../../dispatch/shapes.ts";
import { type CpuTensor, f32 } from "../../formats/tensor.ts";
import type { Gpu } from "../../webgpu/device.ts";
import { quantizedCache, Random } from "../../check/reference.ts";
import { GpuKvCache } from "../../gpu/kv_cache.ts";
import { GpuOps } from "../../gpu/ops.ts";
import { Plan } from "../../webgpu/plan.ts";
import { familyOf } from "../../model/families.ts";
import {
  finish,
  tensorShapes,
  type Weights,
  type WeightSpec,
} from "../../model/family.ts";
import { differenceText, rowDifference } from "../../check/row_difference.ts";
import { CpuRunner } from "../../cpu/runner.ts";
import { GpuRunner } from "../../gpu/runner.ts";
import { Tensor } from "../../webgpu/tensor.ts";
import type { Candidate } from "../../dispatch/limits.ts";
import type { Given, TuneCase } from "./cases.ts";

/**
 * More bytes of layers than any cache holds, so that weights come from memory as in a
 * model.
 */
const BEYOND_CACHES = 160e6;
/** Layers of a prompt's pass, which is limited by arithmetic. */
const PROMPT_LAYERS = 2;
/** Most positions in timed passes; checks use fewer. */
const CONTEXT = 4608;
const CHECK_CONTEXT = 3600;

/** A case's random inputs and, for each check, the CPU's results with their row width. */
interface Reference {
  /** Positions of the cache. */
  positions: number;
  cache: { k: CpuTensor; v: CpuTensor };
  inputs: Inputs[];
  results: { data: Float32Array; width: number }[][];
}

type Inputs =
  & Omit<Given<CpuTensor>, "layer" | "norm" | "lmHead" | "table" | "cache">
  & { table: CpuTensor };

/** A few layers of a model for tuning. Disposing it frees their memory. */
export class Bench implements Disposable {
  readonly context: number;
  readonly weights: Weights<Matrix<Tensor>>;
  readonly #cache: GpuKvCache;
  readonly #ops: GpuOps;
  readonly #references = new Map<TuneCase, Reference>();

  private constructor(
    readonly gpu: Gpu,
    readonly runner: GpuRunner,
    /** The first layers, of which each stores its weights differently. */
    readonly cpu: CpuRunner,
    readonly cacheDtype: CacheDtype,
  ) {
    const { config } = runner;
    this.weights = runner.weights;
    this.context = Math.min(CONTEXT, contextLimit(config).tokens);
    this.#cache = new GpuKvCache(gpu, config, 1, this.context, cacheDtype);
    this.#ops = new GpuOps(gpu, config);
    this.#ops.joins = this.#ops.halves = false; // kernels of single matrices are timed
  }

  get kinds(): number {
    return this.cpu.config.numHiddenLayers;
  }

  get config() {
    return this.runner.config;
  }

  /** The number of layers, in words. */
  get layersText(): string {
    const { numHiddenLayers: layers } = this.config;
    return layers === 1 ? "1 layer" : `${layers} layers`;
  }

  /** Most rows in a pass of a prompt. */
  get mostRows(): number {
    return Math.min(
      ROW_CLASSES.at(-1)!,
      this.context,
      this.runner.prefillRows,
    );
  }

  /** Loads the layers that tuning needs. */
  static async load(
    gpu: Gpu,
    checkpoint: Checkpoint,
    loading: LoadOptions = {},
    kv?: CacheRequest,
  ): Promise<Bench> {
    const { kinds, others, layerBytes } = layersOf(checkpoint);
    const layers = gpu.software ? kinds.length : Math.min(
      checkpoint.config.numHiddenLayers,
      Math.max(kinds.length, Math.ceil(BEYOND_CACHES / layerBytes)),
    );
    const { headDim } = checkpoint.config;
    const { dtype: cacheDtype } = chooseCacheDtype(headDim, { kv });
    const options = { ...loading, context: 1, cacheDtype } as const;
    const cpu = await CpuRunner.load(withLayers(checkpoint, kinds), {
      ...loading,
      context: 1,
    });
    try {
      const runner = await GpuRunner.load(
        gpu,
        withLayers(checkpoint, [...kinds, ...others].slice(0, layers)),
        { ...options, f16Matmuls: chooseMatmulDtype(gpu).dtype === "f16" },
      );
      return new Bench(gpu, runner, cpu, cacheDtype);
    } catch (error) {
      cpu[Symbol.dispose]();
      throw error;
    }
  }

  /**
   * Records the pass that a case is timed in, with `constants` for its key.
   *
   * @throws {Error} if the device refuses to compile them, with its message.
   */
  async record(
    { key, rows, head }: TuneCase,
    constants?: Candidate,
  ): Promise<Plan> {
    const plan = new Plan(this.gpu, this.#cache.literals(rows));
    const { weights } = this;
    await this.#with(key, constants, () => {
      this.#ops.plan = plan;
      this.#cache.record({ first: 0, sequences: 1, tokens: rows });
      const tokens = Tensor.create(
        this.gpu,
        "u32",
        [rows],
        undefined,
        "tokens",
      );
      plan.own(tokens);
      // A pass that does not time the LM head ends with a smaller matrix.
      const last = head ? weights.lmHead : weights.layers[0].qkvProj;
      const layers = weights.layers.slice(
        0,
        rows > 1 ? Math.max(PROMPT_LAYERS, this.kinds) : Infinity,
      );
      const some = { ...weights, layers, lmHead: last };
      const { forward } = familyOf(this.config);
      finish(forward(this.#ops, some, tokens, this.#cache));
      plan.seal();
    });
    return plan;
  }

  /** Sets how many tokens the cache holds in timed passes. */
  setLength(length: number): void {
    this.#cache.reset([length]);
  }

  /** What is wrong with the results of a candidate; undefined if nothing. */
  async check(
    one: TuneCase,
    constants?: Candidate,
  ): Promise<string | undefined> {
    const { gpu, config } = this;
    let reference = this.#references.get(one);
    if (!reference) {
      this.#references.set(one, reference = this.#reference(one));
    }
    using owned = new DisposableStack();
    const up = ({ dtype, shape, data }: CpuTensor) =>
      owned.use(
        Tensor.create(gpu, dtype, shape, data as Float32Array<ArrayBuffer>),
      );
    using ops = new GpuOps(gpu, config); // with scratch memory that holds no earlier results
    using cache = new GpuKvCache(
      gpu,
      { ...config, numHiddenLayers: 1 },
      1,
      reference.positions,
      this.cacheDtype,
    );
    for (const name of ["k", "v"] as const) {
      const { data } = reference.cache[name];
      cache.layers[0][name].write(0, data as Uint32Array<ArrayBuffer>);
    }
    const { weights: { layers, norm, lmHead } } = this;
    for (const [i, check] of one.checks.entries()) {
      const own = reference.inputs[i];
      using plan = new Plan(gpu);
      let results: Tensor[] = [];
      await this.#with(one.key, constants, () => {
        ops.plan = plan;
        cache.reset([check.length]);
        cache.record({ first: 0, sequences: 1, tokens: check.rows });
        results = check.run(ops, {
          layer: layers[check.layer],
          norm,
          lmHead,
          cache,
          table: matrixOf(up(own.table)),
          ids: up(own.ids),
          attended: up(own.attended),
          gated: up(own.gated),
          qkv: up(own.qkv),
          scores: up(own.scores),
          parted: up(own.parted),
        });
        plan.seal();
      });
      plan.run({ length: check.length });
      for (const [j, result] of results.entries()) {
        const { data, width } = reference.results[i][j];
        const actual = await result.read();
        const found = rowDifference(
          actual,
          data,
          width,
          check.rounded,
        );
        if (found) return `${check.label} ${differenceText(found)}`;
      }
      gpu.check();
    }
    return undefined;
  }

  #reference(one: TuneCase): Reference {
    const { ops, weights: { layers, norm, lmHead } } = this.cpu;
    const random = new Random(), { config, cacheDtype } = this;
    const { numAttentionHeads: heads, numKeyValueHeads: kvHeads } = config;
    const { headDim, hiddenSize, intermediateSize, experts } = config;
    const { count = 1, used = 1, intermediateSize: width = 1 } = experts ?? {};
    const attends = "headDim" in one.target;
    const positions = attends
      ? CHECK_CONTEXT
      : Math.max(...one.checks.map(({ length, rows }) => length + rows));
    const shape = [1, kvHeads, positions, headDim];
    const stored = () =>
      cacheDtype === "q8_0"
        ? quantizedCache(random, shape)
        : random.tensor(cacheDtype, shape);
    const kept = { k: stored(), v: stored() };
    using cache = ops.createCache(1, positions);
    for (const name of ["k", "v"] as const) {
      f32(cache.layers[0][name]).set(cachedToF32(kept[name], headDim));
    }
    const inputs: Inputs[] = [], results: Reference["results"] = [];
    for (const check of one.checks) {
      const { rows, length } = check;
      const values = (width: number) => random.tensor("f32", [rows, width]);
      const own: Inputs = {
        table: values(hiddenSize),
        ids: {
          dtype: "u32",
          shape: [rows],
          data: Uint32Array.from({ length: rows }, (_, i) => i),
        },
        attended: values(heads * headDim),
        gated: values(intermediateSize),
        qkv: values((heads + 2 * kvHeads) * headDim),
        scores: values(count),
        parted: random.tensor("f32", [rows * used, width]),
      };
      cache.reset([length]);
      cache.begin({ first: 0, sequences: 1, tokens: rows });
      const given: Given<CpuTensor> = {
        ...own,
        ...{ layer: layers[check.layer], norm, lmHead, cache },
        table: matrixOf(own.table),
      };
      inputs.push(own);
      // Results are valid until the next embedding.
      results.push(
        check.run(ops, given).map((result) => ({
          data: f32(result).slice(),
          width: result.shape[1],
        })),
      );
    }
    return { positions, cache: kept, inputs, results };
  }

  /** Records with `constants` instead of those tuned for `key`. */
  async #with(
    key: string,
    constants: Candidate | undefined,
    record: () => void,
  ): Promise<void> {
    const { tuned, device } = this.gpu, before = tuned.get(key);
    if (constants) tuned.set(key, constants);
    device.pushErrorScope("validation");
    let refused: GPUError | null;
    try {
      record();
    } finally {
      if (constants) tuned.delete(key);
      if (before) tuned.set(key, before);
      refused = await device.popErrorScope();
    }
    if (refused) throw new Error(errorText(refused.message));
  }

  [Symbol.dispose](): void {
    this.#ops[Symbol.dispose]();
    this.#cache[Symbol.dispose]();
    this.cpu[Symbol.dispose]();
    this.runner[Symbol.dispose]();
  }
}

/**
 * The layers of a checkpoint: the first of each kind, by the formats of its weights, and
 * the others; with the bytes that a token reads of the first.
 */
function layersOf({ config, tensors }: Checkpoint) {
  const { layers } = familyOf(config).weights(config), { experts } = config;
  const kinds = new Map<string, number>(), others: number[] = [];
  const infos = layers.map((layer) =>
    Object.values<WeightSpec>({ ...layer }).flatMap((spec) =>
      spec.tensors.map(({ name }) => tensors.get(name)!)
    )
  );
  infos.forEach((own, i) => {
    const kind = own.map(({ format }) => format.name).join();
    if (kinds.has(kind)) others.push(i);
    else kinds.set(kind, i);
  });
  const read = experts ? experts.used / experts.count : 1;
  const layerBytes = infos[0].reduce(
    (sum, { name, byteLength }) =>
      sum + byteLength * (/\.experts\./.test(name) ? read : 1),
    0,
  );
  return { kinds: [...kinds.values()], others, layerBytes };
}

/** A checkpoint cut down to some of its layers, in the given order. */
function withLayers(
  checkpoint: Checkpoint,
  layers: readonly number[],
): Checkpoint {
  const { experts } = checkpoint.config;
  const isDense = (layer: number) => experts?.denseLayers.includes(layer);
  const config = {
    ...checkpoint.config,
    numHiddenLayers: layers.length,
    experts: experts && {
      ...experts,
      denseLayers: [...layers.keys()].filter((i) => isDense(layers[i])),
    },
  };
  const stored = (name: string) =>
    name.replace(/(?<=\blayers\.)\d+/, (i) => `${layers[+i]}`);
  const tensors = new Map<string, TensorInfo>();
  for (const name of tensorShapes(familyOf(config).weights(config)).keys()) {
    tensors.set(name, { ...checkpoint.tensors.get(stored(name))!, name });
  }
  return {
    ...checkpoint,
    config,
    tensors,
    // The rule of synthetic weights is by name.
    synthetic: layers.every((layer, i) => layer === i)
      ? checkpoint.synthetic
      : undefined,
    read: (name, begin, into) => checkpoint.read(stored(name), begin, into),
  };
}
