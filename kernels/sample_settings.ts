/**
 * The sampling settings of a sequence: a row of words in a buffer, so that one recorded
 * plan serves sequences that are sampled differently, and the host changes them between
 * runs.
 *
 * @module
 */
import { LOW } from "../lib/webgpu/wgsl.ts";
import { BINS } from "./sample_scores.ts";

/** The words of a row by name, in their order. */
const FIELDS = {
  /** Divides the scores; 1 for a greedy sequence. */
  temperature: "f32",
  /** Multiplies the noise: 1, or 0 for a greedy sequence. */
  noise: "f32",
  /** Top-k; 0 keeps all. */
  k: "u32",
  /** Top-p; 1 keeps all. */
  p: "f32",
  /** The lowest score that min-p keeps, relative to the highest. */
  lowest: "f32",
  /** The width of a histogram's bin. */
  width: "f32",
  seed: "u32",
  /** 1 if penalties, biases or a mask change the logits; 0 leaves them alone. */
  adjusts: "u32",
  repetition: "f32",
  presence: "f32",
  frequency: "f32",
  /** The number of biases. */
  biases: "u32",
  /** 1 if only some tokens are allowed. */
  masked: "u32",
  /** The alternatives to report. */
  alternatives: "u32",
  /** 1 if the sequence is not sampled: its state stays as it is. */
  idle: "u32",
} as const;

/** A row's settings by name. */
export type Settings = Record<keyof typeof FIELDS, number>;

/** Words per row; the last ones are unused. */
export const SETTING_WORDS = 16;

const NEUTRAL: Settings = {
  temperature: 1,
  noise: 1,
  k: 0,
  p: 1,
  lowest: LOW,
  width: 32 / BINS,
  seed: 0,
  adjusts: 0,
  repetition: 1,
  presence: 0,
  frequency: 0,
  biases: 0,
  masked: 0,
  alternatives: 0,
  idle: 0,
};

/** The row for `settings`; what is missing has no effect. */
export function settingsRow(
  settings: Partial<Settings>,
): Uint32Array<ArrayBuffer> {
  const row = new Uint32Array(SETTING_WORDS);
  const view = new DataView(row.buffer), all = { ...NEUTRAL, ...settings };
  Object.entries(FIELDS).forEach(([name, type], i) => {
    const value = all[name as keyof Settings];
    if (type === "f32") view.setFloat32(4 * i, value, true);
    else view.setUint32(4 * i, value, true);
  });
  return row;
}

/** The width of bins in which scores below e⁻³² of the highest share the last. */
export const binWidth = (temperature: number): number =>
  32 * Math.max(temperature, 1) / BINS;

/** Declares `NAME_of(sequence)` for each of `names`. */
export const settingsOf = (...names: (keyof Settings)[]): string =>
  names.map((name) => {
    const at = Object.keys(FIELDS).indexOf(name), type = FIELDS[name];
    const word = `settings[sequence * ${SETTING_WORDS}u + ${at}u]`;
    const value = type === "u32" ? word : `bitcast<f32>(${word})`;
    return `fn ${name}_of(sequence: u32) -> ${type} { return ${value}; }`;
  }).join("\n");

/** The buffer that {@linkcode settingsOf} reads. */
export const SETTINGS_CONTRACT = { settings: "sequences any" } as const;
