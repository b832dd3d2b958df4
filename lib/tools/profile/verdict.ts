/**
 * Says in plain words what the numbers of a profile mean.
 *
 * @module
 */
import {
  arithmetic,
  bandwidth,
  milliseconds,
  percent,
  significant,
} from "../format.ts";
import { SHAPES_TAKEN } from "./kernels.ts";
import { memoryMs } from "./operations.ts";
import type {
  Comparison,
  Loop,
  Operation,
  Phase,
  ProfileReport,
  Verdict,
} from "./report.ts";

/** The idle share of the GPU from which there is a verdict. */
const IDLE = 0.25;
/** A smaller fraction of a limit means that something else limits the operation. */
const NEAR = 0.4;

/** Input of {@linkcode verdictsOf}. */
export type Findings = Omit<
  ProfileReport,
  "verdicts" | "rates" | "timeline"
>;

/** What limits a run and what to do about it, most important first; never empty. */
export function verdictsOf(report: Findings): Verdict[] {
  const { device, loop, phases, coverage } = report;
  const found: Verdict[] = [];
  if (coverage.refusals.length > 0) found.push(covered(report));
  else if (device.kind === "cpu") found.push(cpuChosen(report));
  if (report.timedBy === "verbs" && coverage.calls.gpu > 0) {
    found.push({
      rule: "unpacked",
      severity: "yellow",
      text:
        "every matmul uploaded its operands and read back its result; leave --kernels out to keep passes on the GPU",
    });
  }
  if (device.kind === "gpu" && device.software) {
    found.push({
      rule: "software renderer",
      severity: "yellow",
      text:
        `software renderer: ${device.adapter} runs on the CPU, so its times say nothing about a GPU; install a GPU driver, or run with --device cpu`,
    });
  }
  if (loop?.idle !== undefined && loop.idle >= IDLE) found.push(idling(loop));
  if (device.kind === "gpu" && report.timedBy === "passes") {
    found.push({
      rule: "untimed",
      severity: "yellow",
      text:
        `${device.adapter} has no timestamp-query, or a coarse one: only whole passes are timed, by wall clock; use an adapter that has it to see where the time goes`,
    });
  }
  if (report.compare) found.push(compared(report.compare));
  for (const name of ["decode", "prefill"] as const) {
    const phase = phases.find((phase) => phase.name === name);
    if (phase) found.push(bound(phase, report));
  }
  return found;
}

function covered({ coverage }: Findings): Verdict {
  const { refusals, flops } = coverage;
  const share = flops.total ? flops.gpu / flops.total : 0;
  const said = new Set(
    refusals.map(({ kernel, need }) => `${kernel} takes ${need}`),
  );
  const got = new Set(refusals.map(({ got }) => got));
  const allowed = new Set(refusals.map(({ kernel }) => kernel));
  const lacking = Object.entries(SHAPES_TAKEN).filter(([kernel, takes]) =>
    got.has(takes) && !allowed.has(kernel)
  );
  const [first, ...others] = lacking.map(([kernel]) => kernel);
  const advice = first === undefined
    ? "split what is too large for one binding"
    : `allow ${first}${
      others.length
        ? `, and ${others.join(", ")} for attention's matmuls (4D×4D)`
        : ""
    }`;
  // Linear layers are most of the FLOPs, so their shapes are named.
  const called = got.has("2D×2D") ? "2D×2D" : [...got].join(", ");
  return {
    rule: "coverage",
    severity: "red",
    text: `${percent(share)} of matmul FLOPs ran on the GPU: ${
      [...said].join(", ")
    }, the model calls ${called}; ${advice}`,
  };
}

function cpuChosen({ device }: Findings): Verdict {
  const choice = device.choices.find(({ what }) => what === "device");
  const asked = choice?.reason === "it was asked for";
  return {
    rule: "cpu chosen",
    severity: "yellow",
    text: `the CPU was chosen: ${choice?.reason ?? "no reason was given"}; ${
      asked
        ? "leave --device out, or give --device gpu"
        : "--device gpu profiles an adapter, deno task doctor names it"
    }`,
  };
}

function compared(compare: readonly Comparison[]): Verdict {
  const wholes = compare.filter(({ what, factor }) =>
    what === "whole" && factor
  );
  const slower = wholes.some(({ factor }) => factor! < 1);
  const below = wholes.some(({ factor, target }) => factor! < target[0]);
  const [{ target: [least] }] = wholes;
  return {
    rule: "compare",
    severity: below ? "yellow" : "green",
    text: `GPU over CPU: ${
      wholes.map(({ phase, factor }) => `${phase} ${significant(factor!)}×`)
        .join(", ")
    }${
      slower
        ? "; use --device cpu where the GPU is slower"
        : below
        ? `, below the ${least}× that a GPU should reach; see below for what is slow`
        : ""
    }`,
  };
}

function idling(loop: Loop): Verdict {
  const idle = `GPU idle ${percent(loop.idle!)}`;
  const readbacks = Math.ceil(loop.steps / loop.chunk);
  const encode = loop.encodeMs + loop.submitMs;
  const each = loop.tokens > loop.steps ? "step" : "token";
  const { stepMs, gpuMs } = loop;
  const gain = gpuMs === undefined
    ? ""
    : ` (down to ${milliseconds(gpuMs)} a ${each} from ${
      milliseconds(stepMs)
    })`;
  if (encode > 0.6 * (stepMs - (gpuMs ?? 0)) && encode > loop.readbackMs) {
    return {
      rule: "encoding",
      severity: "yellow",
      text: `${idle}: the CPU takes ${
        milliseconds(encode)
      } a ${each} to encode and submit what the GPU does in ${
        milliseconds(gpuMs ?? 0)
      }; fuse operations into fewer dispatches${gain}`,
    };
  }
  if (loop.chunk === 1) {
    return {
      rule: "readbacks",
      severity: "yellow",
      text: `${idle}: one readback a ${each}, each taking ${
        milliseconds(loop.waitMs)
      }; read back after several steps, as without --chunk${gain}`,
    };
  }
  return {
    rule: "idle",
    severity: "yellow",
    text:
      `${idle}: it waits for readbacks, ${readbacks} for ${loop.steps} steps; generate more tokens so that chunks grow${gain}`,
  };
}

/** Which limit bounds a phase, and how close it comes. */
function bound(phase: Phase, { peaks, coverage }: Findings): Verdict {
  const { name, ms, operations, dispatches } = phase;
  const timed = operations.filter(({ share }) => share !== undefined);
  const most = largest(timed);
  if (!peaks) {
    return {
      rule: name,
      severity: coverage.refusals.length ? "yellow" : "green",
      text: `${name} takes ${milliseconds(ms)}${
        name === "decode" ? " a step" : ""
      }: ${most}`,
    };
  }
  const readMs = operations.reduce((sum, o) => sum + memoryMs(o, peaks), 0);
  const half = operations.some((o) => o.constants.F16 === 1) &&
    peaks.f16TFLOPS !== undefined;
  const tflops = half ? peaks.f16TFLOPS! : peaks.f32TFLOPS;
  const computeMs = operations.reduce((sum, o) =>
    sum + o.flops /
      (o.constants.F16 === 1 && half ? tflops : peaks.f32TFLOPS) / 1e9, 0);
  const memory = readMs >= computeMs;
  const fraction = Math.max(readMs, computeMs) / ms;
  const of = memory
    ? bandwidth(phase.bytes / readMs / 1e6)
    : `the ${half ? "f16" : "f32"} rate of ${arithmetic(tflops)}`;
  const severity = fraction >= NEAR ? "green" : "yellow";
  const say = (text: string): Verdict => ({ rule: name, severity, text });
  if (memory && fraction > 1.05) {
    return say(
      `${name} is bound by memory, at more than the ${of} measured here: its weights fit a cache, or other work slowed the measurement; ${most}`,
    );
  }
  if (memory && fraction >= NEAR) {
    return say(
      `${name} is bound by memory: ${
        percent(fraction)
      } of ${of}; fewer bytes per weight would help most; ${most}`,
    );
  }
  if (memory) {
    return say(
      `${name} reaches ${
        percent(fraction)
      } of its bound, memory at ${of}: ${dispatches} dispatches of ${
        milliseconds(ms / dispatches)
      } on average; ${most}`,
    );
  }
  const small = timed.filter((o) =>
    o.matmul && o.workgroups * (o.threads ?? 256) < peaks.fillWorkgroups * 256
  );
  const inSmall = small.reduce((sum, { share = 0 }) => sum + share, 0);
  const text = `${name} reaches ${percent(fraction)} of ${of}: `;
  if (inSmall >= 0.3) {
    const worst = small.toSorted((a, b) => b.ms! - a.ms!)[0];
    return say(
      `${text}${small.length > 1 ? "its grids" : "a grid"} of ${
        [...new Set(small.map(({ workgroups }) => workgroups))].sort((a, b) =>
          a - b
        ).join(", ")
      } workgroups of ${worst.threads ?? 256} threads ${
        small.length > 1 ? "do" : "does"
      } not fill this adapter, which needs ${
        peaks.fillWorkgroups * 256
      } threads; use smaller tiles or longer prompts (${worst.name} takes ${
        percent(worst.share!)
      })`,
    );
  }
  return say(
    `${text}${most}; ${
      fraction >= NEAR
        ? "only a faster kernel or less arithmetic helps"
        : "its kernel is the one to tune"
    }`,
  );
}

/** The operation with the largest share; attention's two matmuls count as one. */
function largest(timed: readonly Operation[]): string {
  const parts = new Map<string, { ms: number; share: number; best: number }>();
  for (const { name, group, ms = 0, share = 0, fraction = 0 } of timed) {
    const known = group === "attention" ? "attention" : name;
    const part = parts.get(known) ?? { ms: 0, share: 0, best: 0 };
    part.ms += ms;
    part.share += share;
    part.best += fraction * ms; // its time at the limit
    parts.set(known, part);
  }
  const [found] = [...parts].sort(([, a], [, b]) => b.ms - a.ms);
  if (!found) return "operations were not timed";
  const [name, { ms, share, best }] = found;
  return `${name} takes ${percent(share)} of the time${
    best > 0 ? `, at ${percent(best / ms)} of its own limit` : ""
  }`;
}
