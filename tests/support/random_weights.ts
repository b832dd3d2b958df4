/** Random weights of a small model, for passes that are compared with the CPU. */
import type { Qwen3Config } from "../../lib/checkpoint/config.ts";
import { type Matrix, matrixOf } from "../../lib/formats/matrix.ts";
import type { CpuTensor } from "../../lib/formats/tensor.ts";
import {
  mapWeights,
  stackedShape,
  type Weights,
} from "../../lib/model/family.ts";
import { qwen3 } from "../../lib/model/qwen3.ts";
import type { Random } from "./random.ts";

/**
 * Makes weights of about `scale(label)` over the root of a row's elements, in `format(label)`;
 * gates and ups are one part, as they are loaded.
 */
export const randomWeights = (
  random: Random,
  config: Qwen3Config,
  { format, scale = () => 1.5 }: {
    format: (label: string) => string;
    scale?: (label: string) => number;
  },
): Weights<Matrix<CpuTensor>> =>
  mapWeights(qwen3.weights(config), (spec) => {
    const [rows, columns] = stackedShape(spec), { label } = spec;
    if (columns === undefined) {
      return matrixOf(random.tensor("f32", [rows], 0.3, 1), label);
    }
    const size = scale(label) / Math.sqrt(columns);
    const made = random.matrix(format(label), [rows, columns], size);
    const half = { rows: rows / 2, twin: rows / 2 }; // gates, then ups
    const parts = spec.split === "pairs"
      ? made.parts.map((part) => ({ ...part, ...half }))
      : made.parts;
    return { ...made, parts, label, largest: 1 };
  });
