/**
 * Results of `deno task bench` as data and as text: a row for each speed target.
 *
 * @module
 */
import type { Choice } from "../lib/dispatch/choice.ts";
import type { Peaks } from "../lib/tools/profile/report.ts";
import { WIDTH, wrap } from "../lib/text/messages.ts";
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
  /** GB/s of what a step must read, where memory is the bound. */
  readGBps?: number;
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
  /** The GPU; absent if no row ran on one. */
  adapter?: string;
  software?: boolean;
  /** Choices made when the GPU was opened, with reasons. */
  choices?: readonly Choice[];
  deno: string;
  /** The GPU's peaks. */
  peaks?: Peaks;
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
  const rate = measured.median * perUnit;
  return {
    ...measured,
    bound,
    fraction: rate / peak,
    ...bound === "memory" ? { readGBps: rate / 1e9 } : {},
  };
}

/** Up to four significant digits; integers from 1,000 up. */
export function number(value: number): string {
  return Math.abs(value) >= 1000
    ? Math.round(value).toLocaleString("en")
    : String(Number(value.toPrecision(4)));
}

/** A row as text. */
export function rowText({ row, what, unmeasured, failed, ...found }: Row) {
  const paragraph = (text: string) => wrap(text, WIDTH, "  ", "    ");
  return [
    ...wrap(`${row}: ${what}`, WIDTH, "", "  "),
    ...unmeasured === undefined ? [] : paragraph(`not measured: ${unmeasured}`),
    ...failed === undefined ? [] : paragraph(`failed: ${failed}`),
    ...found.measures.map((one) => `  ${measureText(one)}`),
    ...(found.notes ?? []).flatMap((note) => paragraph(`(${note})`)),
  ].join("\n");
}

function measureText(
  { name, unit, median, low, high, runs, bound, fraction, readGBps }: Measure,
) {
  const range = runs > 1
    ? `(${number(low)}–${number(high)}, ${runs} runs)`
    : "(1 run)";
  const share = `${(100 * (fraction ?? 0)).toFixed(1)}%`;
  const part = fraction === undefined
    ? ""
    : readGBps === undefined
    ? `${share} of ${bound} peak`
    : `${number(readGBps)} GB/s, ${share}`;
  return `${name.padEnd(27)} ${`${number(median)} ${unit}`.padStart(16)} ${
    range.padEnd(28)
  } ${part}`.trimEnd();
}

/** Columns of the table of other programs. */
const PEER_WIDTHS = [11, 37, 11, 8, 17, 6], PEER_TEXTS = 3;

/** Other programs' results as a table; empty without any. */
export function peersText(rows: readonly Row[]): string {
  const lines = rows.flatMap(({ row, peers }) =>
    peers.map(({ program, workload, tokensPerSecond, low, high, factor }) => [
      ...[row, program, workload, number(tokensPerSecond)],
      `(${number(low)}–${number(high)})`,
      factor === undefined ? "" : `${factor.toFixed(2)} ×`,
    ])
  );
  if (lines.length === 0) return "";
  const head = ["row", "program", "workload", "tokens/s", "(spread)", "ours"];
  return [head, ...lines].map((cells) =>
    cells.map((cell, i) =>
      i < PEER_TEXTS
        ? cell.padEnd(PEER_WIDTHS[i])
        : cell.padStart(PEER_WIDTHS[i])
    ).join(" ").trimEnd()
  ).join("\n");
}

/** What was measured, and the GPU's peaks. */
export function headText(
  model: string,
  on?: { gpu: { name: string }; peaks: Peaks },
): string {
  const where = on ? ` on ${on.gpu.name}` : "";
  return [
    `${model}${where}, Deno ${Deno.version.deno}`,
    ...on ? [peaksText(on.peaks)] : [],
  ].flatMap((line) => wrap(line, WIDTH, "", "  ")).join("\n");
}

/** The peaks as text. */
export function peaksText({ readGBps, f32TFLOPS, f16TFLOPS }: Peaks): string {
  return `peaks measured here: ${number(readGBps)} GB/s read, ${
    number(f32TFLOPS)
  } TFLOP/s in f32, ${
    f16TFLOPS === undefined ? "no f16" : `${number(f16TFLOPS)} in f16`
  }`;
}
