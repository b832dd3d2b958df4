/**
 * What a recorded dispatch computes and moves: names, shapes, FLOPs and bytes as
 * pure functions of kernel, sizes and moment.
 *
 * @module
 */
import type { Qwen3Config } from "../../checkpoint/config.ts";
import { BYTES, type Dtype } from "../../dtype.ts";
import type { Dispatch } from "../../webgpu/plan.ts";
import type { Operation } from "./report.ts";

/** What a dispatch's costs depend on beside itself. */
export interface CostContext {
  config: Pick<
    Qwen3Config,
    | "numAttentionHeads"
    | "numKeyValueHeads"
    | "headDim"
    | "vocabSize"
  >;
  /** Sequences, and new tokens of each. */
  sequences: number;
  tokens: number;
  /** Tokens in the KV cache before the pass, of each sequence. */
  length: number;
}

/** The part of {@linkcode Dispatch} that costs depend on. */
export type Costed = Pick<Dispatch, "label" | "kernel" | "dims" | "constants">;

/** One operation's share of a dispatch. */
export interface Cost extends
  Pick<
    Operation,
    "name" | "group" | "matmul" | "shape" | "dtypes" | "flops" | "bytes"
  > {
  /** Of the dispatch's time. */
  part: number;
}

const LINEAR = new Set(["gemv", "gemvRows", "gemm"]);

/** What a dispatch is; a fused attention is two operations, split by their FLOPs. */
export function costsOf(dispatch: Costed, context: CostContext): Cost[] {
  const { kernel, label, dims, constants } = dispatch;
  const role = label.replace(/^layers\.\d+\./, "");
  const size = (buffer: string) => BYTES[dtypeOf(dispatch, buffer)];
  const { m = context.sequences * context.tokens, n = 0, k = 0 } = dims;
  const whole = (
    cost: Partial<Cost> & Pick<Cost, "name" | "group">,
  ): Cost[] => [
    {
      matmul: false,
      shape: k ? `[${m}, ${k}]` : `[${m}]`,
      dtypes: "f32",
      flops: 0,
      bytes: 0,
      part: 1,
      ...cost,
    },
  ];
  if (LINEAR.has(kernel)) {
    const [x, w] = kernel === "gemm" ? ["a", "b"] : ["x", "w"];
    const splits = Number(constants.SPLITS ?? 1);
    const epilogue = constants.EPILOGUE;
    const written = m * (epilogue === "swiglu" ? n / 2 : n) * splits;
    return whole({
      // A tied head is the embedding's table.
      name: role === "embed_tokens" ? "lm_head" : role,
      group: "linear",
      matmul: true,
      shape: `[${m}, ${k}] × [${k}, ${n}]`,
      dtypes: `${dtypeOf(dispatch, x)} × ${dtypeOf(dispatch, w)} → f32`,
      flops: 2 * m * n * k,
      bytes: n * k * size(w) + m * k * size(x) +
        4 * written * (epilogue === "add" ? 2 : 1),
    });
  }
  if (kernel === "sumSplits") {
    const splits = Number(constants.SPLITS);
    return whole({
      name: role === "embed_tokens" ? "lm_head" : role,
      group: "linear",
      shape: `[${splits}, ${m}, ${n}]`,
      flops: (splits - 1) * m * n,
      bytes: 4 * m * n * (splits + 1 + Number(constants.ADD)),
    });
  }
  if (kernel.startsWith("attend")) return attention(dispatch, context);
  if (role === "attention") {
    const { numAttentionHeads, headDim } = context.config;
    return whole({
      name: "attention merge",
      group: "attention",
      shape: `[${m}, ${numAttentionHeads * headDim}]`,
      bytes: 8 * m * numAttentionHeads * headDim,
    });
  }
  if (role === "qk_norm_rope") return whole(rope(dispatch, context));
  if (kernel === "embed") {
    return whole({
      name: role === "embed_tokens" ? "embedding" : role,
      group: "embedding",
      shape: `[${m}] of [${n}, ${k}]`,
      dtypes: `${dtypeOf(dispatch, "table")} → f32`,
      bytes: m * k * (size("table") + 4),
    });
  }
  if (role.startsWith("sampling.")) {
    const { sequences, config: { vocabSize } } = context;
    const reads = kernel !== "sampleFinish";
    return whole({
      name: "sampling",
      group: "sampling",
      shape: `[${sequences}, ${vocabSize}]`,
      dtypes: "f32 → u32",
      flops: reads ? sequences * vocabSize : 0,
      bytes: reads ? 4 * sequences * vocabSize : 0,
    });
  }
  if (kernel === "rmsNorm" || kernel === "toF16") {
    return whole({
      name: role === "norm" ? "final_norm" : role,
      group: "norm",
      dtypes: kernel === "toF16" ? "f32 → f16" : "f32",
      flops: 4 * m * k,
      bytes: m * k * (4 + (kernel === "toF16" ? 2 : 4)),
    });
  }
  return whole({ name: role, group: "other" });
}

/** Pairs of a query and a key that causal attention multiplies, per head. */
export function causalPairs(tokens: number, length: number): number {
  return tokens * length + tokens * (tokens + 1) / 2;
}

function attention(dispatch: Costed, context: CostContext): Cost[] {
  const { config, sequences, tokens, length } = context;
  const { numAttentionHeads: heads, numKeyValueHeads, headDim } = config;
  const keys = length + tokens;
  const flops = 2 * sequences * heads * headDim * causalPairs(tokens, length);
  const dtype = dtypeOf(dispatch, "k");
  const cached = sequences * numKeyValueHeads * keys * headDim *
    BYTES[dtype];
  const rows = 4 * sequences * tokens * heads * headDim;
  const shape = (q: number[], k: number[]) =>
    `[${q.join(", ")}] × [${k.join(", ")}]`;
  const shared = {
    group: "attention",
    matmul: true,
    dtypes: `f32 × ${dtype} → f32`,
    flops,
    bytes: cached + rows,
    part: 0.5,
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

function rope(
  dispatch: Costed,
  { config, sequences, tokens }: CostContext,
): Partial<Cost> & Pick<Cost, "name" | "group"> {
  const { numAttentionHeads: heads, numKeyValueHeads: kv, headDim } = config;
  const rows = sequences * tokens;
  const cached = BYTES[dtypeOf(dispatch, "k")];
  return {
    name: "q_norm, k_norm, rope",
    group: "norm",
    shape: `[${rows}, ${heads} + ${kv}, ${headDim}]`,
    dtypes: `f32 → f32, ${dtypeOf(dispatch, "k")}`,
    flops: 10 * rows * (heads + kv) * headDim,
    bytes: rows * headDim *
      (4 * (heads + 2 * kv) + 4 * heads + 2 * kv * cached),
  };
}

function dtypeOf({ constants }: Costed, buffer: string): Dtype {
  return (constants[`${buffer.toUpperCase()}_DTYPE`] ?? "f32") as Dtype;
}
