/**
 * `config.json` of a Qwen3 checkpoint, in both forms that are published.
 *
 * @module
 */

/** YaRN (https://arxiv.org/abs/2309.00071) as transformers reads it. */
export interface YarnScaling {
  factor: number;
  originalMaxPositionEmbeddings: number;
  /** Multiplies cos and sin; 0.1·ln(factor)+1 unless the checkpoint says otherwise. */
  attentionFactor: number;
  betaFast: number;
  betaSlow: number;
  truncate: boolean;
}

/** The sizes of a dense Qwen3, named as in transformers. */
export interface Qwen3Config {
  vocabSize: number;
  hiddenSize: number;
  intermediateSize: number;
  numHiddenLayers: number;
  numAttentionHeads: number;
  numKeyValueHeads: number;
  headDim: number;
  maxPositionEmbeddings: number;
  rmsNormEps: number;
  ropeTheta: number;
  ropeScaling: YarnScaling | null;
  tieWordEmbeddings: boolean;
  bosTokenId: number | null;
  /** Every id that ends a text; may be empty. */
  eosTokenIds: number[];
}
