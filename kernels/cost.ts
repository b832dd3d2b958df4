/**
 * What a recorded dispatch computes and moves, for the profile. Each kernel's file gives
 * the cost of its own dispatches; this file has what several of them share.
 *
 * @module
 */
import type { Constants } from "../lib/dispatch/shapes.ts";
import { BYTES } from "../lib/dtype.ts";
import { cachedBytes } from "../lib/formats/cached.ts";
import { FORMATS } from "../lib/formats/mod.ts";
import type { Dims } from "../lib/webgpu/kernel.ts";

/** The pass that a dispatch belongs to. */
export interface CostContext {
  config: {
    readonly numAttentionHeads: number;
    readonly numKeyValueHeads: number;
    readonly headDim: number;
    readonly vocabSize: number;
  };
  sequences: number;
  /** New tokens per sequence. */
  tokens: number;
  /** Tokens in the KV cache before the pass, per sequence. */
  length: number;
}

/** The part of a recorded dispatch that costs depend on. */
export interface Costed {
  label: string;
  kernel: string;
  dims: Dims;
  constants: Constants;
}

/** A model's operation, or the share of it that one dispatch does. */
export interface Cost {
  /** Its name in model code: `qkv_proj`, `attention scores`. */
  name: string;
  group: "linear" | "attention" | "norm" | "embedding" | "sampling" | "other";
  matmul: boolean;
  shape: string;
  dtypes: string;
  flops: number;
  bytes: number;
  /** Share of the dispatch's time. */
  part: number;
  /** Operations that the same dispatch does on the side. */
  fused?: readonly string[];
}

/** A dispatch and its pass, with the quantities that most costs derive from. */
export class CostCall {
  /** The label without its layer. */
  readonly role: string;
  readonly m: number;
  readonly n: number;
  readonly k: number;

  constructor(readonly dispatch: Costed, readonly context: CostContext) {
    const { dims, label } = dispatch;
    this.role = label.replace(/^layers\.\d+\./, "");
    this.m = dims.m ?? context.sequences * context.tokens;
    this.n = dims.n ?? 0;
    this.k = dims.k ?? 0;
  }

  get constants(): Constants {
    return this.dispatch.constants;
  }

  /** How the elements of a buffer are stored. */
  dtype(buffer: string): string {
    const name = `${buffer.toUpperCase()}_DTYPE`;
    return String(this.constants[name] ?? "f32");
  }

  /** Bytes of an element, on average over a block. */
  size(buffer: string): number {
    const dtype = this.dtype(buffer);
    const format = FORMATS.find(({ name }) => name === dtype);
    return format ? format.bytes / format.elements : BYTES.u32;
  }

  /** How keys and values are stored, and the bytes of each. */
  get cached(): { dtype: string; size: number } {
    const { CACHE } = this.constants;
    if (CACHE !== "q8_0") {
      return { dtype: this.dtype("k"), size: this.size("k") };
    }
    const { headDim } = this.context.config;
    return { dtype: CACHE, size: cachedBytes(CACHE, headDim) / headDim };
  }

  /** One operation that takes all of the dispatch. */
  whole(cost: Partial<Cost> & Pick<Cost, "name" | "group">): Cost[] {
    return [{
      matmul: false,
      shape: this.k ? `[${this.m}, ${this.k}]` : `[${this.m}]`,
      dtypes: "f32",
      flops: 0,
      bytes: 0,
      part: 1,
      ...cost,
    }];
  }
}

/** The Linear layer that a dispatch belongs to. A tied head is the embedding's table. */
export const linearName = ({ role }: CostCall): string =>
  role === "embed_tokens" ? "lm_head" : role;

/** Cost of `x · wᵀ` and what is fused around it; `x` and `w` are buffer names. */
export function linearCost(call: CostCall, x: string, w: string): Cost[] {
  const { m, n, k, constants } = call;
  const { EPILOGUE, NORM } = constants;
  const splits = Number(constants.SPLITS ?? 1);
  const written = m * (EPILOGUE === "swiglu" ? n / 2 : n) * splits;
  return call.whole({
    name: linearName(call),
    group: "linear",
    matmul: true,
    shape: `[${m}, ${k}] × [${k}, ${n}]`,
    dtypes: `${call.dtype(x)} × ${call.dtype(w)} → f32`,
    flops: 2 * m * n * k,
    bytes: n * k * call.size(w) + m * k * call.size(x) +
      4 * written * (EPILOGUE === "add" ? 2 : 1),
    fused: [
      ...(NORM === 1 ? ["RMSNorm"] : []),
      ...(EPILOGUE === "add" ? ["residual add"] : []),
      ...(EPILOGUE === "swiglu" ? ["SwiGLU"] : []),
    ],
  });
}

/** Number of query-key pairs that causal attention multiplies, per head. */
export function causalPairs(tokens: number, length: number): number {
  return tokens * length + tokens * (tokens + 1) / 2;
}

/** Costs of scores and values: two operations in one dispatch, split by FLOPs. */
export function attentionCost(
  call: CostCall,
  fused: readonly string[] = [],
): Cost[] {
  const { config, sequences, tokens, length } = call.context;
  const { numAttentionHeads: heads, numKeyValueHeads, headDim } = config;
  const keys = length + tokens;
  const { dtype, size } = call.cached;
  const cached = sequences * numKeyValueHeads * keys * headDim * size;
  const rows = 4 * sequences * tokens * heads * headDim;
  const shape = (q: number[], k: number[]) =>
    `[${q.join(", ")}] × [${k.join(", ")}]`;
  const shared = {
    group: "attention",
    matmul: true,
    dtypes: `f32 × ${dtype} → f32`,
    flops: 2 * sequences * heads * headDim * causalPairs(tokens, length),
    bytes: cached + rows,
    part: 0.5,
    fused,
  } as const;
  return [{
    ...shared,
    name: "attention scores",
    shape: shape(
      [sequences, heads, tokens, headDim],
      [sequences, numKeyValueHeads, headDim, keys],
    ),
  }, {
    ...shared,
    name: "attention values",
    shape: shape(
      [sequences, heads, tokens, keys],
      [sequences, numKeyValueHeads, keys, headDim],
    ),
  }];
}

/** Costs of attention that also multiplies by o_proj, split by their bytes. */
export function projectedCost(call: CostCall, attention: Cost[]): Cost[] {
  const { n, k } = call, bytes = n * k * call.size("w") + 8 * n;
  const all = bytes + attention.reduce((sum, one) => sum + one.bytes, 0);
  const share = bytes / all;
  return [
    ...attention.map((one) => ({ ...one, part: one.part * (1 - share) })),
    ...call.whole({
      name: "o_proj",
      group: "linear",
      matmul: true,
      shape: `[1, ${k}] × [${k}, ${n}]`,
      dtypes: `f32 × ${call.dtype("w")} → f32`,
      flops: 2 * n * k,
      bytes,
      part: share,
      fused: ["residual add"],
    }),
  ];
}

/** Cost of a sampling kernel, which reads all logits unless it only reads records. */
export function samplingCost(call: CostCall, reads = true): Cost[] {
  const { sequences, config: { vocabSize } } = call.context;
  return call.whole({
    name: "sampling",
    group: "sampling",
    shape: `[${sequences}, ${vocabSize}]`,
    dtypes: "f32 → u32",
    flops: reads ? sequences * vocabSize : 0,
    bytes: reads ? 4 * sequences * vocabSize : 0,
  });
}

/** Cost of RMSNorm of whole rows. */
export function normCost(call: CostCall): Cost[] {
  const { role, m, k } = call;
  return call.whole({
    name: role === "norm" ? "final_norm" : role,
    group: "norm",
    flops: 4 * m * k,
    bytes: 8 * m * k,
  });
}
