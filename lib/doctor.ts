/**
 * What a person runs first when something is off: runtime, adapters, choices, what
 * a model needs, what the device can do, and whether every kernel computes rightly.
 *
 * @module
 */
import { type Checkpoint, openCheckpoint } from "./checkpoint.ts";
import { type Gpu, NoAdapterError, openDevice } from "./device.ts";
import { tryAttention } from "./doctor_attention.ts";
import { agrees, Bench } from "./doctor_bench.ts";
import { tryLinear, tryRows, trySampling } from "./doctor_kernels.ts";
import { modelNeeds, weightBytes } from "./doctor_needs.ts";
import { Random } from "./doctor_reference.ts";
import type { DoctorReport, Finding, Severity } from "./doctor_report.ts";
import { CpuOps } from "./ops_cpu.ts";
import { measurePeaks } from "./peaks.ts";

/** What {@linkcode doctor} looks at. */
export interface DoctorOptions {
  /** As for `loadQwen3`; only headers are read. */
  model: string;
  /** Tokens that a sequence may have. */
  context?: number;
  /** Any WebGPU implementation instead of `navigator.gpu`. */
  gpu?: GPU;
  /** Told each finding as it is made. */
  onFinding?: (finding: Finding) => void;
}

/** Deno's WebGPU sleeps 10 ms in every readback; more is the driver's. */
const SLOW_READBACK_MS = 20;

/** Diagnoses this machine. What is wrong with it is a finding, not an error. */
export async function doctor(options: DoctorOptions): Promise<DoctorReport> {
  const findings: Finding[] = [];
  const find = (
    severity: Severity,
    topic: string,
    text: string,
    data?: Finding["data"],
  ) => {
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
    try {
      await measure(gpu, checkpoint, find);
      await selfTest(gpu, find);
    } catch (error) {
      find("red", "device", `${messageOf(error)}; update its driver`);
    }
  }
  return {
    ok: findings.every(({ severity }) => severity !== "red"),
    findings,
  };
}

type Find = (
  severity: Severity,
  topic: string,
  text: string,
  data?: Finding["data"],
) => void;

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

/** Bandwidth, arithmetic and readback. */
async function measure(
  gpu: Gpu,
  checkpoint: Checkpoint | undefined,
  find: Find,
) {
  const peaks = await measurePeaks(gpu);
  const { readGBps, f32TFLOPS, f16TFLOPS } = peaks;
  const most = checkpoint && readGBps * 1e9 / weightBytes(checkpoint);
  find(
    "green",
    "bandwidth",
    `reads ${readGBps.toFixed(1)} GB/s${
      most ? `: at most ${most.toPrecision(2)} tokens/s for this model` : ""
    }`,
    { readGBps, mostTokensPerSecond: most },
  );
  const half = f16TFLOPS === undefined
    ? ""
    : `, ${f16TFLOPS.toFixed(3)} TFLOP/s in f16`;
  find(
    "green",
    "arithmetic",
    `${f32TFLOPS.toFixed(3)} TFLOP/s in f32${half}`,
    { f32TFLOPS, f16TFLOPS },
  );
  using word = gpu.tensor("u32", [4]);
  const times: number[] = [];
  for (let i = 0; i < 7; i++) {
    const began = performance.now();
    await word.read();
    times.push(performance.now() - began);
  }
  const ms = times.sort((a, b) => a - b)[3];
  find(
    ms > SLOW_READBACK_MS ? "yellow" : "green",
    "readback",
    `${ms.toFixed(1)} ms for a word${
      ms > SLOW_READBACK_MS
        ? ", slow: the first token and short replies wait for it"
        : ", of which Deno sleeps 10"
    }`,
    { ms },
  );
}

/** Runs every kernel that computes against float64 on the CPU. */
async function selfTest(gpu: Gpu, find: Find) {
  using bench = new Bench(gpu, new Random());
  let failure: { kernel?: string; message: string } | undefined;
  for (const part of [tryRows, tryLinear, tryAttention, trySampling]) {
    try {
      await part(bench);
    } catch (error) {
      failure = { kernel: bench.running, message: messageOf(error) };
      break; // the device goes on reporting it
    }
  }
  const byKernel = Map.groupBy(bench.trials, ({ kernel }) => kernel);
  for (const [kernel, trials] of byKernel) {
    const excess = ({ error, tolerance }: typeof trials[number]) =>
      Number.isNaN(error) ? Infinity : tolerance ? error / tolerance : error;
    const worst = trials.reduce((a, b) => excess(b) > excess(a) ? b : a);
    const { error, tolerance, index, actual, expected, what } = worst;
    const right = trials.every(agrees);
    const wrong = trials.filter((trial) => !agrees(trial)).length;
    find(
      right ? "green" : "red",
      kernel,
      `${trials.length} ${trials.length === 1 ? "case" : "cases"}, ${
        right ? "all right" : `${wrong} WRONG`
      }; worst error ${error.toExponential(1)} (allowed ${
        tolerance.toExponential(1)
      }) at [${index}] of ${what}: ${actual} on the GPU, ${expected} on the CPU${
        right ? "" : "; update the driver, and report this line"
      }`,
      { trials },
    );
  }
  if (failure) {
    const { kernel = "self-test", message } = failure;
    find("red", kernel, `${message}; update the driver, and report this line`);
  }
  const uses = bench.firstUses;
  const total = uses.reduce((sum, { ms }) => sum + ms, 0);
  const slowest = uses.reduce(
    (a, b) => b.ms > a.ms ? b : a,
    { kernel: "", ms: 0 },
  );
  find(
    "green",
    "first use",
    `${uses.length} kernel variants were compiled and run for the first time in ${
      (total / 1000).toFixed(1)
    } s, the slowest (${slowest.kernel}) in ${slowest.ms.toFixed(0)} ms`,
    { totalMs: total, slowest },
  );
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

const oneLine = (text: string) => text.replaceAll(/\s+/g, " ").trim();
