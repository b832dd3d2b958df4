/**
 * What `deno task bench` says: one row for each speed target, as data and as lines.
 *
 * @module
 */
import type { Choice } from "../lib/dispatch/choice.ts";
import type { Peaks } from "../lib/tools/profile/report.ts";
import { spread } from "../lib/webgpu/timing.ts";

/** What a measure is counted in; rates, × and % are better the higher. */
export type Unit =
  | "tokens/s"
  | "TFLOP/s"
  | "GB/s"
  | "ms"
  | "MB"
  | "×"
  | "%";

/** One quantity: the middle of several runs, and what an eighth lie below and above. */
export interface Measure {
  /** `generate` is end to end by wall clock, `GPU time` comes from timestamp queries. */
  name: string;
  unit: Unit;
  median: number;
  low: number;
  high: number;
  runs: number;
  /** The peak of this adapter that would limit it if nothing else did. */
  bound?: "memory" | "f32" | "f16";
  /** Of that peak. */
  fraction?: number;
}

/** A program measured beside ours, by bench/peers/run.sh. */
export interface PeerMeasure {
  program: string;
  /** `tg@128x16` and so on, see bench/peers/llama_bench.c. */
  workload: string;
  tokensPerSecond: number;
  low: number;
  high: number;
  runs: number;
  device: string;
  /** The name of our measure that it is compared with. */
  measure: string;
  /** Our rate over its rate, where both are tokens/s. */
  factor?: number;
}

/** What a row gave. */
export interface Measured {
  measures: Measure[];
  /** What a reader of the numbers must know. */
  notes?: string[];
}

/** One row of the table. */
export interface Row extends Measured {
  row: string;
  /** What is measured. */
  what: string;
  /** Why there are no measures: this machine or model cannot have them. */
  unmeasured?: string;
  /** What went wrong. */
  failed?: string;
  /** What the project aims at, by the name of the measure. */
  targets?: Record<string, string>;
  peers: PeerMeasure[];
}

/** The line of JSON. */
export interface BenchReport {
  model: string;
  adapter: string;
  software: boolean;
  /** What was chosen when the device was opened, with reasons; tuned constants too. */
  choices: readonly Choice[];
  deno: string;
  peaks: Peaks;
  runs: number;
  maxTokens: number;
  rows: Row[];
  /** Programs that were asked for and could not run. */
  peersFailed: string[];
  seconds: number;
}

/** Thrown by a row that this machine or model cannot have. */
export class Unmeasurable extends Error {}

/** The middle of `values`, and its spread. */
export function measure(
  name: string,
  unit: Unit,
  values: readonly number[],
): Measure {
  return { name, unit, ...spread(values), runs: values.length };
}

/** The fraction of a peak that `perUnit` units of work (bytes, FLOPs) each make of a rate. */
export function withBound(
  measured: Measure,
  peaks: Peaks,
  bound: NonNullable<Measure["bound"]>,
  perUnit: number,
): Measure {
  const peak = bound === "memory"
    ? peaks.readGBps * 1e9
    : (bound === "f16" ? peaks.f16TFLOPS : peaks.f32TFLOPS)! * 1e12;
  return { ...measured, bound, fraction: measured.median * perUnit / peak };
}

/** Four significant digits at most, thousands kept whole. */
export function number(value: number): string {
  return Math.abs(value) >= 1000
    ? Math.round(value).toLocaleString("en")
    : String(Number(value.toPrecision(4)));
}

/** The lines of a row, for people. */
export function rowText({ row, what, unmeasured, failed, ...found }: Row) {
  const lines = [`${row}: ${what}`];
  if (unmeasured !== undefined) lines.push(`  not measured: ${unmeasured}`);
  if (failed !== undefined) lines.push(`  failed: ${failed}`);
  lines.push(...found.measures.map((one) => `  ${measureText(one)}`));
  for (const note of found.notes ?? []) lines.push(`  (${note})`);
  return lines.join("\n");
}

function measureText(
  { name, unit, median, low, high, runs, bound, fraction }: Measure,
) {
  const range = runs > 1
    ? ` (${number(low)}–${number(high)}, ${runs} runs)`
    : " (1 run)";
  const part = fraction === undefined
    ? ""
    : `  ${(100 * fraction).toFixed(1)}% of the ${bound} peak`;
  return `${name.padEnd(26)} ${
    `${number(median)} ${unit}`.padStart(16)
  }${range}${part}`;
}

/** The lines of what ran beside a row, for people. */
export function peersText({ row, peers }: Row): string {
  return peers.map((
    { program, workload, tokensPerSecond, low, high, runs, factor },
  ) =>
    `${row.padEnd(14)} ${`${program}, ${workload}`.padEnd(50)} ${
      number(tokensPerSecond)
    } tokens/s (${number(low)}–${number(high)}, ${runs} runs)${
      factor === undefined ? "" : `, ours is ${factor.toFixed(2)} × it`
    }`
  ).join("\n");
}

/** The peaks, for people. */
export function peaksText({ readGBps, f32TFLOPS, f16TFLOPS }: Peaks): string {
  return `peaks measured here: ${number(readGBps)} GB/s read, ${
    number(f32TFLOPS)
  } TFLOP/s in f32, ${
    f16TFLOPS === undefined ? "no f16" : `${number(f16TFLOPS)} in f16`
  }`;
}
