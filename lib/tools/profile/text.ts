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
import { wrap } from "../../text/messages.ts";
import type {
  Coverage,
  Loop,
  Operation,
  Phase,
  ProfileReport,
} from "./report.ts";

const MARKS = { red: "✗", yellow: "!", green: "✓" };

/** The whole report, the verdicts first. */
export function profileText(report: ProfileReport): string {
  const { verdicts, device, peaks, loop, compare, notes } = report;
  const sections = [
    verdicts.map(({ severity, text }) => `${MARKS[severity]} ${text}`),
    [
      `${report.model} on ${device.adapter}: prompt of ${report.promptTokens}, ${report.maxTokens} tokens${
        report.batch > 1 ? `, ${report.batch} sequences` : ""
      }`,
      ...peaks
        ? [
          `the adapter's peaks, measured now: reads ${
            bandwidth(peaks.readGBps)
          }, ${arithmetic(peaks.f32TFLOPS)} in f32${
            peaks.f16TFLOPS === undefined
              ? ""
              : `, ${arithmetic(peaks.f16TFLOPS)} in f16`
          }; ${peaks.fillWorkgroups * 256} threads fill it`,
        ]
        : [],
    ],
    ...report.phases.map((phase) => phaseText(phase, report)),
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

function phaseText(
  phase: Phase,
  { promptTokens, batch, timedBy }: ProfileReport,
): string[] {
  const { name, ms, tokensPerSecond, dispatches, operations } = phase;
  const what = name === "decode"
    ? "a step"
    : batch > 1
    ? `${batch} prompts of ${promptTokens}`
    : `a prompt of ${promptTokens}`;
  return [
    `${name === "prefill" ? "Prefill" : "Decode"}: ${
      milliseconds(ms)
    } for ${what}, ${significant(tokensPerSecond)} tokens/s, ${dispatches} ${
      timedBy === "verbs" ? "operations" : "dispatches"
    }`,
    ...phase.factor === undefined || phase.factor === 1 ? [] : [
      `  times below are from a run with each dispatch timed: ${
        milliseconds(phase.profiledMs!)
      }, ${milliseconds(phase.betweenMs!)} of it between dispatches`,
    ],
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
    "",
    "  Why these kernels, with their constants",
    ...choices(operations),
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

/** Lines of text wrap at this width; tables do not. */
const WIDTH = 108;

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
    ...refusals.map(({ line, operations, count }) =>
      `  ${count.toLocaleString("en-US")}× ${line}  (${operations.join(", ")})`
    ),
  ];
}

function loopText(loop: Loop, batch: number): string[] {
  const each = batch > 1 ? `step of ${batch} tokens` : "token";
  const lines = [
    `Decode loop: ${loop.tokens} tokens after the first${
      batch > 1 ? ` ${batch}` : ""
    }, ${significant(loop.tokensPerSecond)} a second, up to ${loop.chunk} ${
      loop.chunk === 1 ? "step" : "steps"
    } between two readbacks; the first after ${
      milliseconds(loop.firstTokenMs)
    }`,
    `  a ${each} on the CPU: encode ${milliseconds(loop.encodeMs)}, submit ${
      milliseconds(loop.submitMs)
    }, wait ${milliseconds(loop.waitMs)}, readback ${
      milliseconds(loop.readbackMs)
    }`,
  ];
  if (loop.gpuMs === undefined || loop.idle === undefined) return lines;
  lines.push(
    `  a ${each} on the GPU: ${milliseconds(loop.gpuMs)}, idle ${
      percent(loop.idle)
    }; without gaps ${significant(loop.tokensPerSecondWithoutIdle!)} tokens/s`,
  );
  if (loop.gaps.length) {
    lines.push(
      `  gaps: ${
        loop.gaps.map(({ ms, count }) => `${count}× ${milliseconds(ms)}`).join(
          ", ",
        )
      }`,
    );
  }
  return lines;
}

/** A table whose first `left` columns are left-aligned. */
function table(head: string[], rows: string[][], left: number): string[] {
  const widths = head.map((title, i) =>
    Math.max(title.length, ...rows.map((row) => row[i].length))
  );
  return [head, ...rows].map((row) =>
    "  " +
    row.map((cell, i) =>
      i < left ? cell.padEnd(widths[i]) : cell.padStart(widths[i])
    ).join("  ").trimEnd()
  );
}
