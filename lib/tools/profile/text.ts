/**
 * A profile as text for a terminal.
 *
 * @module
 */
import {
  arithmetic,
  bandwidth,
  milliseconds,
  percent,
  prefixed,
  significant,
} from "../format.ts";
import { WIDTH, wrap } from "../../text/messages.ts";
import type {
  Coverage,
  Loop,
  Operation,
  Phase,
  ProfileReport,
  Verdict,
} from "./report.ts";

const MARKS = { red: "✗", yellow: "!", green: "✓" };

/** Options of {@linkcode profileText}. */
export interface TextOptions {
  /** Also says why each kernel was chosen, and its constants. */
  verbose?: boolean;
  /** Colours a line of a verdict. */
  paint?: (severity: Verdict["severity"], line: string) => string;
}

/** The whole report, the verdicts first. Lines have at most 100 columns. */
export function profileText(
  report: ProfileReport,
  { verbose = false, paint = (_, line) => line }: TextOptions = {},
): string {
  const { verdicts, loop, compare, notes } = report;
  const sections = [
    verdicts.flatMap(({ severity, text }) =>
      wrap(text, WIDTH, `${MARKS[severity]} `, "  ")
        .map((line) => paint(severity, line))
    ),
    headText(report),
    ...report.phases.map((phase) => phaseText(phase, report, verbose)),
    coverageText(report.coverage),
    ...loop ? [loopText(loop, report.batch)] : [],
    ...compare
      ? [[
        "GPU over CPU",
        ...table(
          ["", "GPU", "CPU", "factor", "target"],
          compare.map(({ phase, what, gpuMs, cpuMs, factor, target }) => [
            `${phase} ${what}`,
            gpuMs === undefined ? "–" : milliseconds(gpuMs),
            milliseconds(cpuMs),
            factor === undefined ? "–" : `${significant(factor)}×`,
            `${target[0]}–${target[1]}×`,
          ]),
          1,
        ),
      ]]
      : [],
    notes.length
      ? ["Notes", ...notes.flatMap((note) => wrap(note, WIDTH, "  ", "    "))]
      : [],
  ];
  return sections.filter((lines) => lines.length).map((lines) =>
    lines.join("\n")
  ).join("\n\n");
}

/** The rates, what ran, and the adapter's limits. */
function headText(report: ProfileReport): string[] {
  const { rates, model, device, peaks, batch } = report;
  const lines = rates.toReversed().map(({ phase, tokensPerSecond, kind }) =>
    `${phase === "decode" ? "Decode: " : "Prefill:"} ${
      significant(tokensPerSecond)
    } tokens/s, ${kind}`
  );
  lines.push(
    `${
      model.replace(/^file:.*\/([^/]+)\/?$/, "$1")
    } on ${device.adapter}: prompt of ${report.promptTokens}, ${report.maxTokens} tokens${
      batch > 1 ? `, ${batch} sequences` : ""
    }`,
  );
  if (peaks) {
    const f16 = peaks.f16TFLOPS === undefined
      ? ""
      : `, ${arithmetic(peaks.f16TFLOPS)} in f16`;
    lines.push(
      `the adapter's peaks, measured now: reads ${bandwidth(peaks.readGBps)}, ${
        arithmetic(peaks.f32TFLOPS)
      } in f32${f16}; ${peaks.fillWorkgroups * 256} threads fill it`,
    );
  }
  return lines.flatMap((line) => wrap(line, WIDTH, "", "  "));
}

function phaseText(
  phase: Phase,
  { promptTokens, batch, timedBy }: ProfileReport,
  verbose: boolean,
): string[] {
  const { name, ms, dispatches, operations } = phase;
  const what = name === "decode"
    ? "a step"
    : batch > 1
    ? `${batch} prompts of ${promptTokens}`
    : `a prompt of ${promptTokens}`;
  return [
    `${name === "prefill" ? "Prefill" : "Decode"} by operation: ${
      milliseconds(ms)
    } for ${what}, ${dispatches} ${
      timedBy === "verbs" ? "operations" : "dispatches"
    }`,
    ...phase.factor === undefined || phase.factor === 1 ? [] : wrap(
      `times below are from a run with each dispatch timed: ${
        milliseconds(phase.profiledMs!)
      }, ${milliseconds(phase.betweenMs!)} of it between dispatches`,
      WIDTH,
      "  ",
      "    ",
    ),
    ...table(
      [
        "operation",
        "calls",
        "time",
        "share",
        "FLOPs",
        "bytes",
        "FLOP/s",
        "bytes/s",
        "of its limit",
      ],
      operations.map((o) => [
        o.name,
        significant(o.calls).replace(/\.0$/, ""),
        o.ms === undefined ? "–" : milliseconds(o.ms),
        o.share === undefined ? "–" : percent(o.share),
        o.flops ? prefixed(o.flops) : "–",
        o.bytes ? prefixed(o.bytes) : "–",
        o.flops && o.tflops ? prefixed(o.tflops * 1e12) : "–",
        o.bytes && o.gbps ? prefixed(o.gbps * 1e9) : "–",
        o.fraction === undefined ? "–" : `${percent(o.fraction)} ${o.bound}`,
      ]),
      1,
    ),
    "",
    ...table(
      ["operation", "shape", "types", "kernel"],
      operations.filter(({ kernel }) => kernel !== "none").map((o) => [
        o.name,
        o.shape,
        o.dtypes,
        o.kernel,
      ]),
      4,
    ),
    ...verbose
      ? [
        "",
        "  Why these kernels, with their constants",
        ...choices(operations),
      ]
      : [],
  ];
}

/** Why each kernel was chosen; operations with the same reason share a line. */
function choices(operations: readonly Operation[]): string[] {
  const lines = new Map<string, string[]>();
  for (const operation of operations) {
    const { kernel, reason } = operation;
    const constants = constantsText(operation);
    const line = kernel === "none"
      ? reason
      : `${kernel}${
        operation.fused.length ? ` with ${operation.fused.join(", ")}` : ""
      }: ${reason}${constants && ` (${constants})`}`;
    lines.set(line, [...lines.get(line) ?? [], operation.name]);
  }
  return [...lines].flatMap(([line, names]) =>
    wrap(`${[...new Set(names)].join(", ")}: ${line}`, WIDTH, "  ", "    ")
  );
}

/** `M=1 ROWS=2`, without the constants that repeat the types. */
function constantsText({ constants }: Operation): string {
  return Object.entries(constants)
    .filter(([name]) => !/_(DTYPE|VIEW|UNIT)$/.test(name))
    .map(([name, value]) => `${name}=${value}`).join(" ");
}

function coverageText({ calls, flops, refusals }: Coverage): string[] {
  const of = ({ gpu, total }: Coverage["calls"]) =>
    percent(total ? gpu / total : 0);
  return [
    `On the GPU: ${of(calls)} of ${
      calls.total.toLocaleString("en-US")
    } matmul calls, ${of(flops)} of matmul FLOPs`,
    ...refusals.flatMap(({ line, operations, count }) =>
      wrap(
        `${count.toLocaleString("en-US")}× ${line} (${operations.join(", ")})`,
        WIDTH,
        "  ",
        "    ",
      )
    ),
  ];
}

function loopText(loop: Loop, batch: number): string[] {
  const each = batch > 1 ? `step of ${batch} tokens` : "token";
  const { tokens, chunk, gpuMs, idle, gaps } = loop;
  const first = `Decode loop: ${tokens} tokens after the first${
    batch > 1 ? ` ${batch}` : ""
  }, up to ${chunk} ${
    chunk === 1 ? "step" : "steps"
  } between two readbacks; the first after ${milliseconds(loop.firstTokenMs)}`;
  const lines = [
    `a ${each}: ${milliseconds(loop.stepMs)}`,
    `on the CPU: encode ${milliseconds(loop.encodeMs)}, submit ${
      milliseconds(loop.submitMs)
    }, wait ${milliseconds(loop.waitMs)}, readback ${
      milliseconds(loop.readbackMs)
    }`,
  ];
  if (gpuMs !== undefined && idle !== undefined) {
    lines.push(`on the GPU: ${milliseconds(gpuMs)}, idle ${percent(idle)}`);
  }
  if (gaps.length) {
    const all = gaps.map(({ ms, count }) => `${count}× ${milliseconds(ms)}`);
    lines.push(`gaps: ${all.join(", ")}`);
  }
  return [
    ...wrap(first, WIDTH, "", "  "),
    ...lines.flatMap((line) => wrap(line, WIDTH, "  ", "    ")),
  ];
}

/**
 * A table whose first `left` columns are left-aligned. Where it has no room, these wrap, but
 * not within a shape.
 */
function table(head: string[], rows: string[][], left: number): string[] {
  const all = [head, ...rows].map((row) => row.map(joined));
  const longest = (texts: string[]) =>
    Math.max(...texts.map(({ length }) => length));
  const widths = head.map((_, i) => longest(all.map((row) => row[i])));
  const least = widths.map((width, i) =>
    i < left ? longest(all.flatMap((row) => row[i].split(" "))) : width
  );
  const total = () => widths.reduce((sum, width) => sum + 2 + width, 0);
  while (total() > WIDTH) {
    const slack = widths.map((width, i) => width - least[i]);
    const most = Math.max(...slack);
    if (most === 0) break;
    widths[slack.indexOf(most)]--;
  }
  return all.flatMap((row) => {
    const cells = row.map((cell, i) => wrap(cell, widths[i], "", ""));
    const height = Math.max(...cells.map(({ length }) => length));
    return Array.from(
      { length: height },
      (_, line) =>
        `  ${
          cells.map((cell, i) => {
            const text = (cell[line] ?? "").replaceAll(NO_BREAK, " ");
            return i < left ? text.padEnd(widths[i]) : text.padStart(widths[i]);
          }).join("  ").trimEnd()
        }`,
    );
  });
}

const NO_BREAK = "\u00a0";

/** Joins numbers with their units, and the sizes of a shape. */
const joined = (cell: string) =>
  cell.replace(
    /\[[^\]]*\]|^[\d<>].*/g,
    (part) => part.replaceAll(" ", NO_BREAK),
  );
