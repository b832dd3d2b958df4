/**
 * Frequencies and angles of rotary position embeddings
 * (https://arxiv.org/abs/2104.09864), plain or stretched by YaRN
 * (https://arxiv.org/abs/2309.00071).
 *
 * @module
 */
import type { Qwen3Config } from "../checkpoint/config.ts";

/**
 * RoPE frequencies: the angle of pair `i` at position `p` is `p · inverse[i]` radians.
 */
export interface RopeFrequencies {
  /** Radians per position, `[headDim / 2]`, computed in f64 and rounded once. */
  inverse: Float32Array<ArrayBuffer>;
  /** Multiplies cos and sin: 1, or YaRN's attention factor. */
  scale: number;
}

/**
 * Computes a checkpoint's RoPE frequencies, which all layers share.
 *
 * ```ts
 * import { ropeFrequencies } from "./rope.ts";
 *
 * const { inverse } = ropeFrequencies({ headDim: 128, ropeTheta: 1e6, ropeScaling: null });
 * console.log(inverse.length, inverse[0]); // 64 1
 * ```
 */
export function ropeFrequencies(
  { headDim, ropeTheta, ropeScaling }: Pick<
    Qwen3Config,
    "headDim" | "ropeTheta" | "ropeScaling"
  >,
): RopeFrequencies {
  const plain = Array.from(
    { length: headDim / 2 },
    (_, i) => ropeTheta ** (-2 * i / headDim),
  );
  if (ropeScaling === null) {
    return { inverse: new Float32Array(plain), scale: 1 };
  }

  // YaRN: pairs that turn often within the trained context keep their frequency,
  // pairs that rarely turn are slowed by `factor`, and those in between are blended.
  const { factor, attentionFactor, betaFast, betaSlow, truncate } = ropeScaling;
  const pairThatTurns = (times: number) =>
    headDim * Math.log(
      ropeScaling.originalMaxPositionEmbeddings / (times * 2 * Math.PI),
    ) / (2 * Math.log(ropeTheta));
  let first = pairThatTurns(betaFast);
  let last = pairThatTurns(betaSlow);
  if (truncate) [first, last] = [Math.floor(first), Math.ceil(last)];
  first = Math.max(first, 0);
  last = Math.min(last, headDim - 1);
  if (first === last) last += 0.001; // makes the ramp a step instead of dividing by zero

  const inverse = Float32Array.from(plain, (frequency, i) => {
    const slowed = Math.min(Math.max((i - first) / (last - first), 0), 1);
    return frequency / factor * slowed + frequency * (1 - slowed);
  });
  return { inverse, scale: attentionFactor };
}

/**
 * Fills `table` `[positions, headDim]` from position `begin` on: for each position
 * `headDim / 2` cosines, then as many sines. The angle is rounded to f32 as in
 * transformers. This runs on the CPU because a GPU's cos and sin lose all precision at
 * the large angles of late positions.
 */
export function fillAngles(
  { inverse, scale }: RopeFrequencies,
  table: Float32Array,
  begin = 0,
): void {
  const half = inverse.length;
  for (let at = begin * 2 * half, p = begin; at < table.length; p++) {
    for (let i = 0; i < half; i++, at++) {
      const angle = Math.fround(p * inverse[i]);
      table[at] = Math.cos(angle) * scale;
      table[at + half] = Math.sin(angle) * scale;
    }
    at += half;
  }
}
