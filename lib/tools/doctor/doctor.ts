/**
 * What a person runs first when something is off: runtime, adapters, choices, what
 * a model needs, what the device can do, and whether every kernel computes rightly.
 *
 * @module
 */
import type { Checkpoint } from "../../checkpoint/checkpoint.ts";
import { NoAdapterError } from "../../errors.ts";
import { openCheckpoint } from "../../checkpoint/open.ts";
import { openDevice } from "../../open_device.ts";
import { type Gpu } from "../../webgpu/device.ts";
import { examineApart } from "./apart.ts";
import { examineDevice } from "./device.ts";
import { modelNeeds, weightBytes } from "./needs.ts";
import {
  type DoctorReport,
  type Find,
  type Finding,
  messageOf,
} from "./report.ts";
import { CpuOps } from "../../cpu/ops.ts";

/** What {@linkcode doctor} looks at. */
export interface DoctorOptions {
  /** As for `loadQwen3`; only headers are read. */
  model: string;
  /** Tokens that a sequence may have. */
  context?: number;
  /**
   * Any WebGPU implementation instead of `navigator.gpu`. It cannot be handed to
   * another process, so what hangs on it hangs the diagnosis.
   */
  gpu?: GPU;
  /** Told each finding as it is made. */
  onFinding?: (finding: Finding) => void;
}

/** Diagnoses this machine. What is wrong with it is a finding, not an error. */
export async function doctor(options: DoctorOptions): Promise<DoctorReport> {
  const findings: Finding[] = [];
  const find: Find = (severity, topic, text, data) => {
    const finding = { severity, topic, text: oneLine(text), data };
    findings.push(finding);
    options.onFinding?.(finding);
  };
  const { deno } = Deno.version, { os, arch } = Deno.build;
  const cores = navigator.hardwareConcurrency;
  const release = Deno.osRelease();
  find(
    "green",
    "runtime",
    `Deno ${deno}, ${os} ${release}, ${arch}, ${cores} cores`,
    {
      ...{ deno, os, arch, release, cores },
    },
  );
  await listAdapters(options.gpu ?? navigator.gpu, find);
  using gpu = await open(options.gpu, find);

  let checkpoint: Checkpoint | undefined;
  try {
    checkpoint = await openCheckpoint(options.model);
  } catch (error) {
    find("red", "model", messageOf(error));
  }
  await using _closed = checkpoint;
  if (checkpoint) {
    for (const need of await modelNeeds(checkpoint, options.context, gpu)) {
      find(need.severity, need.topic, need.text, need.data);
    }
    using cpu = new CpuOps(checkpoint.config);
    const { kernel, reason, threads } = cpu.info;
    find("green", "CPU path", `${kernel} on ${threads} threads: ${reason}`);
  }
  if (gpu) {
    const weights = checkpoint && weightBytes(checkpoint);
    if (options.gpu) await examineDevice(gpu, weights, { find });
    else await examineApart(weights, find);
  }
  return {
    ok: findings.every(({ severity }) => severity !== "red"),
    findings,
  };
}

/** Every adapter that a preference brings, each once. */
async function listAdapters(implementation: GPU | undefined, find: Find) {
  const backend = Deno.env.get("DENO_WEBGPU_BACKEND");
  find(
    "green",
    "backend",
    backend
      ? `DENO_WEBGPU_BACKEND is ${backend}`
      : "DENO_WEBGPU_BACKEND is not set: Deno takes the platform's own",
    { backend },
  );
  const seen = new Map<string, { info: GPUAdapterInfo; by: string[] }>();
  const asked: [string, GPURequestAdapterOptions][] = [
    ["high-performance", { powerPreference: "high-performance" }],
    ["low-power", { powerPreference: "low-power" }],
    ["fallback", { forceFallbackAdapter: true }],
  ];
  for (const [by, request] of asked) {
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
    const ids = [["vendor", vendor], ["device", device], [
      "architecture",
      architecture,
    ]].filter(([, id]) => id).map((pair) => pair.join(" ")).join(", ");
    find(
      software ? "yellow" : "green",
      "adapter",
      `${description || "unnamed"} (${ids}; for ${by.join(", ")}): ${
        software
          ? "a software renderer, the CPU does its work"
          : "a hardware GPU"
      }`,
      { vendor, device, architecture, description, software, by },
    );
  }
}

/** Opens the device as the library does, and tells every choice. */
async function open(
  implementation: GPU | undefined,
  find: Find,
): Promise<Gpu | undefined> {
  let gpu: Gpu;
  try {
    gpu = await openDevice({ gpu: implementation });
  } catch (error) {
    const { message } = error as Error;
    const none = error instanceof NoAdapterError;
    find(
      "red",
      "adapter",
      none ? message.replace("Cannot open a GPU: ", "") : messageOf(error),
    );
    return undefined;
  }
  for (const { what, value, reason } of gpu.choices) {
    const severity = value === "off" ? "yellow" : "green";
    find(severity, what, `${value}: ${reason}`, { value, reason });
  }
  const { limits } = gpu,
    mib = (bytes: number) => `${Math.round(bytes / 2 ** 20)} MiB`;
  find(
    "green",
    "limits",
    `buffers of ${mib(limits.maxBufferSize)}, bindings of ${
      mib(limits.maxStorageBufferBindingSize)
    }, ${limits.maxComputeInvocationsPerWorkgroup} threads and ${
      limits.maxComputeWorkgroupStorageSize / 1024
    } KiB in a workgroup`,
  );
  return gpu;
}

const oneLine = (text: string) => text.replaceAll(/\s+/g, " ").trim();
