/**
 * What the project aims at for quantised models, beside llama.cpp on the same file.
 *
 * @module
 */
import type { Checkpoint } from "../lib/checkpoint/checkpoint.ts";
import { elements } from "../lib/dtype.ts";
import type { Format } from "../lib/formats/format.ts";

/** What the targets of a model depend on. */
export interface ModelKind {
  /** The format of most weights. */
  format: Pick<Format, "name" | "elements">;
  weights: number;
  hasExperts: boolean;
}

/** Describes the model of a checkpoint. */
export function kindOf({ tensors, config }: Checkpoint): ModelKind {
  const counts = new Map<Format, number>();
  for (const { shape, format } of tensors.values()) {
    counts.set(format, (counts.get(format) ?? 0) + elements(shape));
  }
  const [[format]] = [...counts].sort(([, a], [, b]) => b - a);
  const weights = counts.values().reduce((sum, count) => sum + count, 0);
  return { format, weights, hasExperts: config.experts !== undefined };
}

/** The measure that has a target, and the target. */
type Target = readonly [measure: string, target: string];

const times = (
  least: string,
  better: string,
  measure = "generate",
  what = "llama.cpp",
): Target => [measure, `${least} × ${what}, better ${better}`];

/** Weights from which a model counts as large: between 4B and 8B. */
const LARGE = 6e9;

/** Targets by row, of models by the type of most of their weights. */
const TARGETS: Readonly<Record<string, Readonly<Record<string, Target>>>> = {
  "q4_k": {
    "decode-128": times("2.2", "2.8"),
    "batch-16": times("2.5", "3.5", "generateBatch"),
    cpu: times("0.5", "0.8"),
  },
  "q8_0": { cpu: times("0.7", "1.0") },
  "q4_k large": {
    "decode-128": times("2.0", "2.6"),
    "decode-2048": times("1.9", "2.4"),
    "batch-16": times("1.8", "3", "generateBatch"),
    "prefill-512": times(
      ...["1.3", "1.6", "generate, to first token"] as const,
      "llama.cpp without tensor cores",
    ),
    load: ["loadQwen3", "1.5 × llama.cpp's time, better the same"],
  },
  "q8_0 large": { "decode-128": times("1.5", "1.8") },
  "q4_k experts": { "decode-128": times("1.5", "2.5") },
};
/** Rows whose targets depend on the model. */
const ROWS = new Set(
  ["decode-128", "decode-2048", "prefill-512", "prefill-2048", "batch-16"]
    .concat("load", "cpu"),
);

/** The targets of a row; `plain` are those of models that are not quantised. */
export function targetsOf(
  row: string,
  { format: { name, elements }, weights, hasExperts }: ModelKind,
  plain?: Record<string, string>,
): Record<string, string> | undefined {
  if (elements === 1 || !ROWS.has(row)) return plain;
  const kind = hasExperts ? " experts" : weights >= LARGE ? " large" : "";
  const target = TARGETS[name + kind]?.[row];
  return target && Object.fromEntries([target]);
}
