/**
 * The first thing to run when something goes wrong: checks the runtime, the adapters,
 * what was chosen and why, what a model needs, and whether every kernel computes
 * correctly.
 *
 * @module
 */
import type { Checkpoint } from "../../checkpoint/checkpoint.ts";
import type { OpenOptions } from "../../checkpoint/sources.ts";
import { openCheckpoint } from "../../checkpoint/open.ts";
import { CpuOps } from "../../cpu/ops.ts";
import { errorText, NoAdapterError } from "../../errors.ts";
import { openDevice } from "../../open_device.ts";
import type { Gpu } from "../../webgpu/device.ts";
import { examineApart } from "./apart.ts";
import { examineDevice } from "./device.ts";
import { modelNeeds, weightBytes } from "./needs.ts";
import type { DoctorReport, Finding, Reporter } from "./report.ts";

/** Options of {@linkcode doctor}. */
export interface DoctorOptions {
  /** Any model that `loadQwen3` takes; only headers are read. */
  model: string;
  /** Context length of one sequence, in tokens. */
  context?: number;
  /**
   * Any WebGPU implementation instead of `navigator.gpu`. It is examined in this
   * process, since it cannot be passed to another: if it hangs, so does doctor.
   */
  gpu?: GPU;
  /** How the checkpoint is opened, and where progress goes. */
  opening?: OpenOptions;
  /** Called with each finding as it is made. */
  onFinding?: (finding: Finding) => void;
}

/** Diagnoses this machine. A problem is a finding, not an error. */
export async function doctor(options: DoctorOptions): Promise<DoctorReport> {
  const findings: Finding[] = [];
  const reporter: Reporter = {
    found(severity, topic, text, data) {
      const finding = { severity, topic, text: errorText(text), data };
      findings.push(finding);
      options.onFinding?.(finding);
    },
  };
  describeRuntime(reporter);
  await listAdapters(options.gpu ?? navigator.gpu, reporter);
  using gpu = await open(options.gpu, reporter);

  let checkpoint: Checkpoint | undefined;
  try {
    checkpoint = await openCheckpoint(options.model, options.opening);
  } catch (error) {
    reporter.found("red", "model", errorText(error));
  }
  await using _closed = checkpoint;
  if (checkpoint) {
    for (const notice of checkpoint.notices) {
      reporter.found("yellow", "model", notice);
    }
    for (const need of await modelNeeds(checkpoint, options.context, gpu)) {
      reporter.found(need.severity, need.topic, need.text, need.data);
    }
    using cpu = new CpuOps(checkpoint.config);
    const { kernel, reason, threads } = cpu.info;
    const text = `${kernel} on ${threads} threads: ${reason}`;
    reporter.found("green", "CPU path", text);
  }
  if (gpu) {
    const weights = checkpoint && weightBytes(checkpoint);
    if (options.gpu) await examineDevice(gpu, weights, reporter);
    else await examineApart(weights, reporter);
  }
  return {
    ok: findings.every(({ severity }) => severity !== "red"),
    findings,
  };
}

function describeRuntime(reporter: Reporter) {
  const { deno } = Deno.version, { os, arch } = Deno.build;
  const cores = navigator.hardwareConcurrency;
  const release = Deno.osRelease();
  reporter.found(
    "green",
    "runtime",
    `Deno ${deno}, ${os} ${release}, ${arch}, ${cores} cores`,
    { deno, os, arch, release, cores },
  );
}

/** Lists each adapter once, with the requests that return it. */
async function listAdapters(
  implementation: GPU | undefined,
  reporter: Reporter,
) {
  const backend = Deno.env.get("DENO_WEBGPU_BACKEND");
  reporter.found(
    "green",
    "backend",
    backend
      ? `DENO_WEBGPU_BACKEND is ${backend}`
      : "DENO_WEBGPU_BACKEND is not set: Deno uses the platform's default",
    { backend },
  );
  const seen = new Map<string, { info: GPUAdapterInfo; by: string[] }>();
  const requests: [string, GPURequestAdapterOptions][] = [
    ["high-performance", { powerPreference: "high-performance" }],
    ["low-power", { powerPreference: "low-power" }],
    ["fallback", { forceFallbackAdapter: true }],
  ];
  for (const [by, request] of requests) {
    const info = (await implementation?.requestAdapter(request))?.info;
    if (!info) continue;
    const key = [info.vendor, info.device, info.description].join();
    const known = seen.get(key);
    if (known) known.by.push(by);
    else seen.set(key, { info, by: [by] });
  }
  for (const { info, by } of seen.values()) {
    const { vendor, device, architecture, description } = info;
    const software = info.isFallbackAdapter ||
      /llvmpipe|swiftshader|software/i.test(description);
    const ids = Object.entries({ vendor, device, architecture })
      .filter(([, id]) => id).map((pair) => pair.join(" ")).join(", ");
    const kind = software
      ? "a software renderer, which runs on the CPU"
      : "a hardware GPU";
    reporter.found(
      software ? "yellow" : "green",
      "adapter",
      `${description || "unnamed"} (${ids}; for ${by.join(", ")}): ${kind}`,
      { vendor, device, architecture, description, software, by },
    );
  }
}

/** Opens the device as the library does, and reports every choice. */
async function open(
  implementation: GPU | undefined,
  reporter: Reporter,
): Promise<Gpu | undefined> {
  let gpu: Gpu;
  try {
    gpu = await openDevice({ gpu: implementation });
  } catch (error) {
    const text = errorText(error);
    const none = error instanceof NoAdapterError;
    reporter.found(
      "red",
      "adapter",
      none ? text.replace("Cannot open a GPU: ", "") : text,
    );
    return undefined;
  }
  for (const { what, value, reason } of gpu.choices) {
    const severity = value === "off" ? "yellow" : "green";
    reporter.found(severity, what, `${value}: ${reason}`, { value, reason });
  }
  const { limits } = gpu;
  const mib = (bytes: number) => `${Math.round(bytes / 2 ** 20)} MiB`;
  const kib = limits.maxComputeWorkgroupStorageSize / 1024;
  reporter.found(
    "green",
    "limits",
    `buffers of ${mib(limits.maxBufferSize)}, bindings of ${
      mib(limits.maxStorageBufferBindingSize)
    }, workgroups of ${limits.maxComputeInvocationsPerWorkgroup} threads and ${kib} KiB`,
  );
  return gpu;
}
