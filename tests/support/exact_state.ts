/** A dense Qwen3 in float64, in plain loops: the reference for states and what follows. */
import type { Checkpoint } from "../../lib/checkpoint/checkpoint.ts";
import { matrixToF32, storedMatrix } from "../../lib/formats/tensor.ts";

/** Reads the values of a tensor. */
export async function valuesOf(
  { tensors, read }: Checkpoint,
  name: string,
): Promise<Float32Array> {
  const { format, shape, byteLength } = tensors.get(name)!;
  const stored = new Uint8Array(byteLength);
  await read(name, 0, stored);
  return matrixToF32(storedMatrix(format, stored, shape.at(-1)!));
}

/** The normed state after the last of `ids`, `[hidden]`; without YaRN. */
export async function exactState(
  checkpoint: Checkpoint,
  ids: readonly number[],
): Promise<Float64Array> {
  const { config } = checkpoint, eps = config.rmsNormEps;
  const { hiddenSize, headDim, numAttentionHeads: heads } = config;
  const kvHeads = config.numKeyValueHeads, half = headDim / 2;
  const tensor = (name: string) => valuesOf(checkpoint, `model.${name}.weight`);
  const norm = (x: Float64Array, w: Float32Array) => {
    const squares = x.reduce((sum, value) => sum + value * value, 0);
    const scale = 1 / Math.sqrt(squares / x.length + eps);
    return x.map((value, i) => value * scale * w[i]);
  };
  const times = (x: Float64Array, w: Float32Array) =>
    Float64Array.from({ length: w.length / x.length }, (_, row) => {
      let sum = 0;
      for (let i = 0; i < x.length; i++) sum += x[i] * w[row * x.length + i];
      return sum;
    });
  const head = (x: Float64Array, h: number) =>
    x.subarray(h * headDim, (h + 1) * headDim);
  const turn = (x: Float64Array, position: number) =>
    x.map((value, i) => {
      const pair = i % half, other = i < half ? -x[i + half] : x[i - half];
      const angle = position * config.ropeTheta ** (-pair / half);
      return value * Math.cos(angle) + other * Math.sin(angle);
    });
  const embedding = await tensor("embed_tokens");
  const xs = ids.map((id) =>
    Float64Array.from(
      embedding.subarray(id * hiddenSize, (id + 1) * hiddenSize),
    )
  );
  for (let layer = 0; layer < config.numHiddenLayers; layer++) {
    const own = (name: string) => tensor(`layers.${layer}.${name}`);
    const inputNorm = await own("input_layernorm");
    const qNorm = await own("self_attn.q_norm");
    const kNorm = await own("self_attn.k_norm");
    const [wq, wk, wv, wo] = await Promise.all(
      ["q", "k", "v", "o"].map((name) => own(`self_attn.${name}_proj`)),
    );
    const postNorm = await own("post_attention_layernorm");
    const [gate, up, down] = await Promise.all(
      ["gate", "up", "down"].map((name) => own(`mlp.${name}_proj`)),
    );
    const keys: Float64Array[][] = [], values: Float64Array[] = [];
    for (const [position, x] of xs.entries()) {
      const normed = norm(x, inputNorm), k = times(normed, wk);
      keys.push(Array.from(
        { length: kvHeads },
        (_, h) => turn(norm(head(k, h), kNorm), position),
      ));
      values.push(times(normed, wv));
      const q = times(normed, wq), out = new Float64Array(heads * headDim);
      for (let h = 0; h < heads; h++) {
        const own = turn(norm(head(q, h), qNorm), position);
        const kv = Math.floor(h / (heads / kvHeads));
        const weights = keys.map((key) =>
          Math.exp(
            own.reduce((sum, value, i) => sum + value * key[kv][i], 0) /
              Math.sqrt(headDim),
          )
        );
        const total = weights.reduce((sum, weight) => sum + weight);
        weights.forEach((weight, at) =>
          head(values[at], kv).forEach((value, i) =>
            out[h * headDim + i] += weight / total * value
          )
        );
      }
      times(out, wo).forEach((value, i) => x[i] += value);
      const inner = norm(x, postNorm), u = times(inner, up);
      const gated = times(inner, gate).map((g, i) =>
        g / (1 + Math.exp(-g)) * u[i]
      );
      times(gated, down).forEach((value, i) => x[i] += value);
    }
  }
  return norm(xs.at(-1)!, await tensor("norm"));
}
