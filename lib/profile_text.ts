/**
 * A profile as text for a terminal.
 *
 * @module
 */
import type {
  Coverage,
  Loop,
  Operation,
  Phase,
  ProfileReport,
} from "./profile_report.ts";
import {
  arithmetic,
  bandwidth,
  milliseconds,
  percent,
  significant,
} from "./profile_verdict.ts";

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
          `this adapter at best, measured now: reads ${
            bandwidth(peaks.readGBps)
          }, ${arithmetic(peaks.f32TFLOPS)} in f32${
            peaks.f16TFLOPS === undefined
              ? ""
              : `, ${arithmetic(peaks.f16TFLOPS)} in f16`
          }; filled by ${peaks.fillWorkgroups * 256} threads`,
        ]
        : [],
    ],
    ...report.phases.map(phaseText),
    coverageText(report.coverage),
    ...loop ? [loopText(loop)] : [],
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
    notes.length ? ["Notes", ...notes.map((note) => `  ${note}`)] : [],
  ];
  return sections.filter((lines) => lines.length).map((lines) =>
    lines.join("\n")
  ).join("\n\n");
}

function phaseText(phase: Phase): string[] {
  const { name, ms, tokensPerSecond, dispatches, operations } = phase;
  const measured = phase.factor === undefined || phase.factor === 1
    ? ""
    : `; ${milliseconds(phase.profiledMs!)} while each dispatch was timed, ${
      milliseconds(phase.betweenMs!)
    } of it between passes`;
  return [
    `${name === "prefill" ? "Prefill" : "Decode"}: ${milliseconds(ms)} a ${
      name === "prefill" ? `prompt of ${phase.tokens}` : "step"
    }, ${
      significant(tokensPerSecond)
    } tokens/s, ${dispatches} dispatches${measured}`,
    ...table(
      [
        "operation",
        "shape",
        "types",
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
        o.shape,
        o.dtypes,
        significant(o.calls).replace(/\.0$/, ""),
        o.ms === undefined ? "–" : milliseconds(o.ms),
        o.share === undefined ? "–" : percent(o.share),
        o.flops ? prefixed(o.flops) : "–",
        o.bytes ? prefixed(o.bytes) : "–",
        o.flops && o.tflops ? prefixed(o.tflops * 1e12) : "–",
        o.bytes && o.gbps ? prefixed(o.gbps * 1e9) : "–",
        o.fraction === undefined ? "–" : `${percent(o.fraction)} ${o.bound}`,
      ]),
      3,
    ),
    ...choices(operations),
  ];
}

/** Which kernel ran what, and why; once where it is the same for several. */
function choices(operations: readonly Operation[]): string[] {
  const lines = new Map<string, string[]>();
  for (const operation of operations) {
    const { kernel, reason } = operation;
    const line = kernel === "none"
      ? reason
      : `${kernelText(operation)}: ${reason}`;
    lines.set(line, [...lines.get(line) ?? [], operation.name]);
  }
  return [...lines].map(([line, names]) =>
    `  ${[...new Set(names)].join(", ")}: ${line}`
  );
}

/** `18.2 M`: three digits and the prefix of a power of 1,000. */
export function prefixed(value: number): string {
  const power = Math.min(4, Math.max(0, Math.floor(Math.log10(value) / 3)));
  return `${significant(value / 1000 ** power)} ${" kMGT"[power]}`.trimEnd();
}

/** `gemv M=1 ROWS=2 (with RMSNorm)` */
export function kernelText({ kernel, constants, fused }: Operation): string {
  const values = Object.entries(constants)
    .filter(([name]) => !/_(DTYPE|VIEW|UNIT)$/.test(name))
    .map(([name, value]) => ` ${name}=${value}`);
  return `${kernel}${values.join("")}${
    fused.length ? ` (with ${fused.join(", ")})` : ""
  }`;
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

function loopText(loop: Loop): string[] {
  const lines = [
    `Decode loop: ${loop.tokens} tokens after the first at ${
      significant(loop.tokensPerSecond)
    }/s, up to ${loop.chunk} between two readbacks; the first token after ${
      milliseconds(loop.firstTokenMs)
    }`,
    `  a token on the CPU: encode ${milliseconds(loop.encodeMs)}, submit ${
      milliseconds(loop.submitMs)
    }, wait ${milliseconds(loop.waitMs)}, readback ${
      milliseconds(loop.readbackMs)
    }`,
  ];
  if (loop.gpuMs === undefined || loop.idle === undefined) return lines;
  lines.push(
    `  a token on the GPU: ${milliseconds(loop.gpuMs)}, idle ${
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

/** Columns, the first `left` of them aligned to the left. */
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
