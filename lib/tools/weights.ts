/**
 * What a model's weights take, by format.
 *
 * @module
 */
import { type Matrix, planeBytes } from "../formats/matrix.ts";
import { listWeights, type Weights } from "../model/family.ts";
import { bytesText } from "../checkpoint/sources.ts";

/** E.g. `weights take 3.86 GB in q4_k, 1.16 GB in q6_k and 1.23 MB in f32`. */
export function weightsText(weights: Weights<Matrix<unknown>>): string {
  const sums = new Map<string, number>();
  for (const { parts, k } of listWeights(weights)) {
    for (const part of parts) {
      const bytes = planeBytes(part, k).reduce((sum, own) => sum + own, 0);
      const { name } = part.format;
      sums.set(name, (sums.get(name) ?? 0) + bytes);
    }
  }
  const shares = [...sums].sort(([, a], [, b]) => b - a)
    .map(([name, bytes]) => `${bytesText(bytes)} in ${name}`);
  const last = shares.pop();
  return `weights take ${
    shares.length > 0 ? `${shares.join(", ")} and ` : ""
  }${last}`;
}
