/**
 * Results of `deno task bench` as data and as text: a row for each speed target.
 *
 * @module
 */
import type { Choice } from "../lib/dispatch/choice.ts";
import type { Peaks } from "../lib/tools/profile/report.ts";
import { spread } from "../lib/webgpu/timing.ts";

/** Units of measures. For rates, × and %, higher is better. */
export type Unit =
  | "tokens/s"
  | "TFLOP/s"
  | "GB/s"
  | "ms"
  | "MB"
  | "×"
  | "%";

/** One quantity: the median of several runs, and the values an eighth from each end. */
export interface Measure {
  /** `generate…` is wall time end to end, `GPU time…` comes from timestamp queries. */
  name: string;
  unit: Unit;
  median: number;
  low: number;
  high: number;
  runs: number;
  /** The adapter's peak that would limit it if nothing else did. */
  bound?: "memory" | "f32" | "f16";
  /** Fraction of that peak. */
  fraction?: number;
}

/** Another program's result, measured by bench/peers/run.sh. */
export interface PeerMeasure {
  program: string;
  /** `tg@128x16` and the like, see bench/peers/llama_bench.c. */
  workload: string;
  tokensPerSecond: number;
  low: number;
  high: number;
  runs: number;
  device: string;
  /** The name of our measure to compare it with. */
  measure: string;
  /** Our rate over its rate, where both are tokens/s. */
  factor?: number;
}

/** Results of one row. */
export interface Measured {
  measures: Measure[];
  /** What to know when reading the numbers. */
  notes?: string[];
}

/** One row of the report. */
export interface Row extends Measured {
  row: string;
  /** What is measured. */
  what: string;
  /** Why this machine or model has no measures. */
  unmeasured?: string;
  /** The error, if measuring failed. */
  failed?: string;
  /** What the project aims at, by the name of the measure. */
  targets?: Record<string, string>;
  peers: PeerMeasure[];
}

/** Everything that one run of the bench measured. */
export interface BenchReport {
  model: string;
  adapter: string;
  software: boolean;
  /** Choices made when the device was opened, with reasons. */
  choices: readonly Choice[];
  deno: string;
  peaks: Peaks;
  runs: number;
  maxTokens: number;
  rows: Row[];
  /** Failures of other programs. */
  peersFailed: string[];
  seconds: number;
}

/** Thrown by a row that this machine or model cannot run. */
export class Unmeasurable extends Error {}

/** The median of `values` and their spread. */
export function measure(
  name: string,
  unit: Unit,
  values: readonly number[],
): Measure {
  return { name, unit, ...spread(values), runs: values.length };
}

/** Adds the fraction of a peak; each unit of the rate takes `perUnit` bytes or FLOPs. */
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

/** Up to four significant digits; integers from 1,000 up. */
export function number(value: number): string {
  return Math.abs(value) >= 1000
    ? Math.round(value).toLocaleString("en")
    : String(Number(value.toPrecision(4)));
}

/** A row as text. */
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

/** Other programs' results for a row, as text. */
export function peersText({ row, peers }: Row): string {
  return peers.map((
    { program, workload, tokensPerSecond, low, high, runs, factor },
  ) =>
    `${row.padEnd(14)} ${`${program}, ${workload}`.padEnd(50)} ${
      number(tokensPerSecond)
    } tokens/s (${number(low)}–${number(high)}, ${runs} runs)${
      factor === undefined ? "" : `, ours is ${factor.toFixed(2)} ×`
    }`
  ).join("\n");
}

/** The peaks as text. */
export function peaksText({ readGBps, f32TFLOPS, f16TFLOPS }: Peaks): string {
  return `peaks measured here: ${number(readGBps)} GB/s read, ${
    number(f32TFLOPS)
  } TFLOP/s in f32, ${
    f16TFLOPS === undefined ? "no f16" : `${number(f16TFLOPS)} in f16`
  }`;
}
