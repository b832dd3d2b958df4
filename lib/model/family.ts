/**
 * A model family: how its config.json is read, one table of its weights, and its
 * forward pass. Loading, memory estimates, labels, checks and synthetic checkpoints all
 * walk the table, so names and shapes are defined in one place.
 *
 * @module
 */
import type { ConfigFields, Qwen3Config } from "../checkpoint/config.ts";
import type { Matrix } from "../formats/matrix.ts";
import type { KvCache } from "./kv_cache.ts";
import type { Ops } from "./ops.ts";

/**
 * One value per weight of a model, by role. `T` is a matrix or something that describes
 * one.
 */
export interface Weights<T> {
  /** `[vocab, hidden]` */
  embedTokens: T;
  layers: Layer<T>[];
  /** `[hidden]` */
  norm: T;
  /** `[vocab, hidden]`; `embedTokens` itself if the checkpoint ties them. */
  lmHead: T;
}

/** One decoder layer. Projections are stored by output row. */
export interface Layer<T> {
  inputNorm: T;
  /** q_proj, k_proj and v_proj, stacked. */
  qkvProj: T;
  qNorm: T;
  kNorm: T;
  oProj: T;
  postNorm: T;
  /** Scores the experts; absent if the layer has one MLP. */
  router?: T;
  /** gate_proj, then up_proj; of experts, gate_proj of all, then up_proj of all. */
  gateUpProj: T;
  /** Of experts, down_proj of all. */
  downProj: T;
}

/** One entry of a weight table: a weight and the checkpoint tensors it is made from. */
export interface WeightSpec {
  /** Its name in dispatches and reports, such as `layers.3.qkv_proj`. */
  readonly label: string;
  /**
   * Norms are vectors, the others are matrices. Synthetic checkpoints fill each kind
   * differently. A router stays as exact as it is stored: a rounding error may choose
   * another expert.
   */
  readonly kind: "embedding" | "projection" | "router" | "norm";
  /** The checkpoint's tensors; their rows are stacked in this order. */
  readonly tensors: readonly {
    readonly name: string;
    readonly shape: readonly number[];
  }[];
  /**
   * How to split a matrix too large for one binding; `pairs` keeps row i of both halves
   * together.
   */
  readonly split?: "rows" | "pairs";
  /** Rows that must not be split, such as those of an expert. */
  readonly together?: number;
  /**
   * Whether to measure its largest absolute value, which f16 matmuls and attention need
   * as a bound.
   */
  readonly measured: boolean;
  /** Whether many rows multiply by it in f32, even where f16 is allowed. */
  readonly exact?: boolean;
}

/** What the metadata of a GGUF file does not say by the family's own keys. */
export interface GgufFacts {
  /** Rows of the embedding table. */
  vocabSize: number;
  /** Whether there is no LM head in the file. */
  tieWordEmbeddings: boolean;
  bosTokenId: number | null;
  eosTokenIds: number[];
}

/** A family's names in GGUF files. */
export interface GgufFamily {
  /** `general.architecture`, which also begins the family's keys. */
  readonly architecture: string;
  /** The tensors of the embedding table and of the LM head. */
  readonly embedding: string;
  readonly head: string;
  /**
   * Reads the configuration.
   *
   * @param fields the family's keys, without the architecture in front
   * @throws {Error} if a key is invalid or not supported; the message names it.
   */
  parseConfig(fields: ConfigFields, facts: GgufFacts): Qwen3Config;
  /** The name of the tensor that has a tensor of the weight table. */
  tensor(name: string): string;
  /** The tensor that may hold all of an entry's, stacked; undefined if none may. */
  stacked(spec: WeightSpec): string | undefined;
  /**
   * Which of those in its tensor a tensor of the weight table is, one after another in
   * the outermost of three dimensions; undefined if it has one of its own.
   */
  within?(
    name: string,
    config: Qwen3Config,
  ): { index: number; count: number } | undefined;
}

/** The interface of a family to the rest of the project. */
export interface Family {
  /** The `model_type` in config.json that selects this family. */
  readonly modelType: string;
  /** The display name. */
  readonly name: string;
  /**
   * Reads a config.json whose `model_type` is this family's.
   *
   * @throws {Error} if a field is invalid or not supported; the message names it.
   */
  parseConfig(fields: ConfigFields): Qwen3Config;
  /** How GGUF files hold models of this family. */
  readonly gguf: GgufFamily;
  /** Returns the weight table. */
  weights(config: Qwen3Config): Weights<WeightSpec>;
  /**
   * Computes the logits after the last of `tokens`, `[sequences, vocab]`, or what else is
   * `wanted`. Prefill and decode use the same function, because the cache knows the
   * positions of the tokens. Yields the result of every verb and is sent it back, so that
   * a runner can do other things between two verbs; if that is not needed,
   * {@linkcode finish} returns what is wanted.
   */
  forward<T>(
    ops: Ops<T>,
    weights: Weights<Matrix<T>>,
    tokens: T,
    cache: KvCache<T>,
    wanted?: Wanted<T>,
  ): Generator<T, T, T>;
}

/** What a forward pass computes. */
export interface Wanted<T> {
  /** Logits after each token, `[tokens, vocab]`. */
  all?: boolean;
  /** The rows of the last tokens, u32 `[sequences]`, if they are not those at the end. */
  ends?: T;
  /** The normed states of `ends` instead of logits, `[ends, hidden]`, without the LM head. */
  states?: boolean;
}

/** Runs a forward pass to its end. */
export function finish<T>(pass: Generator<T, T, T>): T {
  let next = pass.next();
  while (!next.done) next = pass.next(next.value);
  return next.value;
}

/**
 * Returns a function that creates entries whose label and tensor names start with the
 * given prefixes.
 */
export function specsAt(
  label: string,
  tensor: string,
): (
  kind: WeightSpec["kind"],
  name: string,
  shapes: Readonly<Record<string, readonly number[]>>,
  more?: Partial<Pick<WeightSpec, "split" | "together" | "measured" | "exact">>,
) => WeightSpec {
  return (kind, name, shapes, more) => ({
    label: label + name,
    kind,
    tensors: Object.entries(shapes).map(([name, shape]) => ({
      name: `${tensor}${name}.weight`,
      shape,
    })),
    split: kind === "norm" ? undefined : "rows",
    measured: kind === "projection",
    ...more,
  });
}

/** The shape of an entry's stacked tensors. */
export function stackedShape({ tensors }: WeightSpec): number[] {
  const [, ...columns] = tensors[0].shape;
  return [tensors.reduce((rows, { shape }) => rows + shape[0], 0), ...columns];
}

/**
 * Applies `change` to each weight in the order of the forward pass. A weight that two
 * roles share is changed once.
 */
export function mapWeights<A, B>(
  weights: Weights<A>,
  change: (weight: A) => B,
): Weights<B> {
  const changed = new Map<A, B>();
  for (const weight of listWeights(weights)) {
    changed.set(weight, change(weight));
  }
  const of = (weight: A) => changed.get(weight)!;
  return {
    embedTokens: of(weights.embedTokens),
    layers: weights.layers.map((layer) =>
      Object.fromEntries(
        Object.entries<A>({ ...layer } as Record<string, A>).map((
          [role, weight],
        ) => [role, of(weight)]),
      ) as unknown as Layer<B>
    ),
    norm: of(weights.norm),
    lmHead: of(weights.lmHead),
  };
}

/**
 * Maps each weight of `a` to the one with the same role in `b`, in the order of the
 * forward pass.
 */
export function pairWeights<A, B>(a: Weights<A>, b: Weights<B>): Map<A, B> {
  const pairs = new Map([[a.embedTokens, b.embedTokens]]);
  a.layers.forEach((layer, i) => {
    for (const role of Object.keys(layer) as (keyof Layer<A>)[]) {
      pairs.set(layer[role]!, b.layers[i][role]!);
    }
  });
  return pairs.set(a.norm, b.norm).set(a.lmHead, b.lmHead);
}

/** Lists every weight once, in the order of the forward pass. */
export function listWeights<T>(weights: Weights<T>): T[] {
  return [...pairWeights(weights, weights).keys()];
}

/** Names and shapes of all tensors that a checkpoint must have. */
export function tensorShapes(
  table: Weights<WeightSpec>,
): Map<string, readonly number[]> {
  return new Map(
    listWeights(table).flatMap(({ tensors }) =>
      tensors.map(({ name, shape }) => [name, shape] as const)
    ),
  );
}
