/** Small mixtures of experts with random weights, for tests. */
import type { CaseRandom } from "../../kernels/case.ts";
import type { Qwen3Config } from "../../lib/checkpoint/config.ts";
import type { Matrix } from "../../lib/formats/matrix.ts";
import { matrixOf } from "../../lib/formats/matrix.ts";
import type { CpuTensor } from "../../lib/formats/tensor.ts";
import type { Ops } from "../../lib/model/ops.ts";
import { stackedMatrix } from "./matrix.ts";

/** Sizes and formats of a mixture, and how it is divided. */
export interface Mixture {
  hidden: number;
  inner: number;
  count: number;
  used: number;
  /** Formats of gates, ups and down projections; several take turns. */
  gate: string[];
  up: string[];
  down: string[];
  /** The most bytes of a plane. */
  most?: number;
}

/** Mixtures of odd sizes, of formats that differ, and in several parts. */
export const MIXTURES: Record<string, Mixture> = {
  "bf16": {
    ...{ hidden: 80, inner: 24, count: 7, used: 3 },
    ...{ gate: ["bf16"], up: ["bf16"], down: ["bf16"] },
  },
  "odd sizes": {
    ...{ hidden: 45, inner: 33, count: 5, used: 2 },
    ...{ gate: ["f16"], up: ["f16"], down: ["f16"] },
  },
  "blocks of different formats": {
    ...{ hidden: 256, inner: 64, count: 6, used: 2 },
    ...{ gate: ["q4_k"], up: ["q6_k"], down: ["q8_0"] },
  },
  "formats that take turns": {
    ...{ hidden: 64, inner: 32, count: 6, used: 3 },
    ...{ gate: ["q8_0", "q5_0"], up: ["q5_0"], down: ["bf16", "q4_0"] },
  },
  "several buffers": {
    ...{
      hidden: 64,
      inner: 32,
      count: 7,
      used: 3,
      most: 2 * 3 * 32 * 64 + 100,
    },
    ...{ gate: ["q8_0"], up: ["q8_0"], down: ["q8_0"] },
  },
};

/** The configuration of a model with such a mixture in its only layer. */
export function mixtureConfig(
  { hidden, inner, count, used }: Mixture,
  normalized = true,
): Qwen3Config {
  return {
    modelType: "qwen3_moe",
    vocabSize: 100,
    hiddenSize: hidden,
    intermediateSize: inner,
    experts: {
      ...{ count, used, normalized },
      intermediateSize: inner,
      denseLayers: [],
    },
    numHiddenLayers: 1,
    numAttentionHeads: 2,
    numKeyValueHeads: 1,
    headDim: 16,
    maxPositionEmbeddings: 256,
    rmsNormEps: 1e-6,
    ropeTheta: 1e4,
    ropeScaling: null,
    tieWordEmbeddings: true,
    bosTokenId: null,
    eosTokenIds: [],
  };
}

/** The weights of a mixture. */
export interface MixtureWeights<T> {
  norm: Matrix<T>;
  router: Matrix<T>;
  gateUp: Matrix<T>;
  down: Matrix<T>;
}

/** Random weights of a mixture. */
export function randomMixture(
  random: CaseRandom,
  { hidden, inner, count, gate, up, down, most }: Mixture,
): MixtureWeights<CpuTensor> {
  const each = (formats: readonly string[], rows: number, k: number) =>
    Array.from({ length: count }, (_, e) => {
      const format = formats[e % formats.length];
      return { rows, format, scale: 1.5 / Math.sqrt(k) };
    });
  return {
    norm: matrixOf(random.tensor("bf16", [hidden], 0.3, 1), "norm"),
    router: matrixOf(random.tensor("f32", [count, hidden], 0.3), "router"),
    gateUp: stackedMatrix(
      random,
      [...each(gate, inner, hidden), ...each(up, inner, hidden)],
      hidden,
      { pairs: true, together: inner, most },
    ),
    down: stackedMatrix(
      random,
      each(down, hidden, inner),
      inner,
      { together: hidden, most },
    ),
  };
}

/** The verbs of a mixture, each with the results of those before it. */
export function mixtureVerbs<T>(
  { norm, router, gateUp, down }: MixtureWeights<T>,
): Record<string, (ops: Ops<T>, x: T, before: readonly T[]) => T> {
  return {
    scores: (ops, x) => ops.normMatmul(x, norm, router),
    chosen: (ops, _, [scores]) => ops.chooseExperts(scores),
    gated: (ops, x, [, chosen]) => ops.expertsSwiglu(x, norm, gateUp, chosen),
    sum: (ops, x, [, chosen, gated]) => ops.expertsAdd(gated, down, chosen, x),
    // Reads the sums of squares that were left with the sum.
    after: (ops, _, [, , , sum]) => ops.normMatmul(sum, norm, router),
  };
}

/** Runs the verbs of a mixture; returns the result of each. */
export function runMixture<T>(
  ops: Ops<T>,
  weights: MixtureWeights<T>,
  x: T,
): T[] {
  const results: T[] = [];
  for (const verb of Object.values(mixtureVerbs(weights))) {
    results.push(verb(ops, x, results));
  }
  return results;
}
