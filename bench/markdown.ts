/**
 * A bench report as Markdown, in the form that bench/log.md keeps.
 *
 * @module
 */
import { wrap } from "../lib/text/messages.ts";
import {
  type BenchReport,
  type Measure,
  number,
  peaksText,
  type PeerMeasure,
  type Row,
} from "./report.ts";

/** Columns of a paragraph, as `deno fmt` breaks it. */
const WIDTH = 80;

/**
 * A paragraph about the setting and a table of all measurements, formatted like `deno
 * fmt`.
 */
export function reportMarkdown(report: BenchReport): string {
  const { model, adapter, deno, runs, maxTokens, peaks, rows } = report;
  const where = adapter === undefined ? "" : ` on ${adapter}`;
  const setting =
    `\`${model}\`${where}, Deno ${deno}: medians of ${runs} runs (spread in \
brackets), ${maxTokens} tokens per generation.${
      peaks ? ` ${capitalized(peaksText(peaks))}.` : ""
    }`;
  const failures = report.peersFailed.map((failure) =>
    `Failed: ${escaped(failure)}.`
  );
  const paragraphs = [setting, ...failures].map((text) =>
    wrap(text, WIDTH, "", "").join("\n")
  );
  return [...paragraphs, tableOf(rows)].join("\n\n");
}

/** A line per measurement, with columns for peers and targets if there are any. */
function tableOf(rows: readonly Row[]): string {
  const programs = [
    ...new Set(
      rows.flatMap(({ peers }) => peers.map(({ program }) => program)),
    ),
  ];
  const head = [
    ...["row", "measure", "result", "GB/s", "of peak"],
    ...programs,
    "target",
  ];
  const lines = rows.flatMap((row) => {
    const { unmeasured, failed, measures, targets = {}, peers } = row;
    const problem = failed !== undefined
      ? `failed: ${failed}`
      : unmeasured !== undefined
      ? `not measured: ${unmeasured}`
      : undefined;
    if (problem !== undefined) return [[row.row, "", escaped(problem)]];
    return measures.map((measure, i) => [
      i === 0 ? row.row : "",
      measure.name,
      resultText(measure),
      measure.readGBps === undefined ? "" : number(measure.readGBps),
      peakText(measure),
      ...programs.map((program) =>
        peers.filter((peer) =>
          peer.program === program && peer.measure === measure.name
        ).map(peerText).join("; ")
      ),
      targets[measure.name] ?? "",
    ]);
  });
  // Every line has every column; those that are empty in all of them are left out.
  const full = lines.map((line) => head.map((_, i) => line[i] ?? ""));
  const used = head.map((_, i) => i < 3 || full.some((line) => line[i] !== ""));
  return aligned([head, ...full].map((line) => line.filter((_, i) => used[i])));
}

/** Cells padded to columns, the first line being the head. */
export function aligned(lines: readonly string[][]): string {
  const widths = lines[0].map((_, i) =>
    Math.max(3, ...lines.map((line) => line[i].length))
  );
  const join = (cells: string[]) => `| ${cells.join(" | ")} |`;
  const [head, ...body] = lines.map((line) =>
    join(line.map((cell, i) => cell.padEnd(widths[i])))
  );
  return [head, join(widths.map((width) => "-".repeat(width))), ...body]
    .join("\n");
}

/** `927 tokens/s (925–928)`; milliseconds from 1,000 up are seconds. */
export function resultText({ unit, median, low, high, runs }: Measure): string {
  const [scale, name] = unit === "ms" && median >= 1000
    ? [1000, "s"]
    : [1, unit];
  const text = (value: number) => number(value / scale);
  const spread = runs > 1 ? ` (${text(low)}–${text(high)})` : "";
  return `${text(median)} ${name}${spread}`;
}

function peakText({ bound, fraction }: Measure): string {
  return fraction === undefined ? "" : `${number(100 * fraction)} % ${bound}`;
}

/** `453 (446–454): 2.05 ×`; the factor is our rate over theirs. */
function peerText(
  { tokensPerSecond, low, high, runs, factor, workload }: PeerMeasure,
): string {
  const spread = runs > 1 ? ` (${number(low)}–${number(high)})` : "";
  const ours = factor === undefined
    ? ` tokens/s, ${workload}`
    : `: ${factor.toFixed(2)} ×`;
  return `${number(tokensPerSecond)}${spread}${ours}`;
}

/** Text escaped to stay within one cell. */
export const escaped = (text: string) =>
  text.replaceAll(/\s+/g, " ").replaceAll("|", "\\|");

const capitalized = (text: string) => text[0].toUpperCase() + text.slice(1);
