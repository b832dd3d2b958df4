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
import { errorText, NoAdapterError } from "../../errors.ts";
import { DEFAULT_MODEL } from "../../load.ts";
import { openDevice } from "../../device/open_device.ts";
import { Gpu } from "../../webgpu/device.ts";
import { adapterName, isSoftware } from "../../webgpu/adapter.ts";
import {
  type AdapterName,
  type DeviceOptions,
  deviceOptions,
  findImplementation,
} from "../../webgpu/implementation.ts";
import { examineApart } from "./apart.ts";
import { parseSynthetic } from "../../checkpoint/synthetic.ts";
import type { Choice } from "../../dispatch/choice.ts";
import type { CacheRequest } from "../../dispatch/precision.ts";
import { examineDevice } from "./device.ts";
import { askDawn, compareOffers, offerOf } from "./implementations.ts";
import { bytesPerToken, modelNeeds } from "./needs.ts";
import { bytes } from "../format.ts";
import { examineCpu } from "./cpu.ts";
import type { DoctorReport, Finding, Reporter, Severity } from "./report.ts";

/** Options of {@linkcode doctor}. */
export interface DoctorOptions extends DeviceOptions {
  /** Any model that `loadQwen3` takes; only headers are read. The story model by default. */
  model?: string;
  /** Context length of one sequence, in tokens. */
  context?: number;
  /** How keys and values are cached; as on loading by default. */
  kv?: CacheRequest;
  /**
   * Any WebGPU implementation instead of `navigator.gpu`. It is examined in this
   * process, since it cannot be passed to another: if it hangs, so does doctor.
   */
  gpu?: GPU;
  /** How the checkpoint is opened, and where progress goes. */
  opening?: OpenOptions;
  /**
   * Tests all cases of the GPU's kernels even if `auto` takes the CPU path, where a
   * software adapter takes half a minute to compile them. Otherwise the first of each.
   */
  all?: boolean;
  /** Threads of the CPU path; by default as many as `loadQwen3` uses. */
  threads?: number;
  /** Called with what is examined next. */
  onStart?: (what: string) => void;
  /** Called with each finding as it is made. */
  onFinding?: (finding: Finding) => void;
}

/** Diagnoses this machine. A problem is a finding, not an error. */
export async function doctor(options: DoctorOptions): Promise<DoctorReport> {
  const findings: Finding[] = [];
  const reporter: Reporter = {
    found(given) {
      const finding = { ...given, text: errorText(given.text) };
      findings.push(finding);
      options.onFinding?.(finding);
    },
    starting: options.onStart,
  };
  describeRuntime(reporter);
  await listAdapters(await implementationOf(options), reporter);
  const opened = await open(deviceOptions(options), reporter);
  using gpu = opened instanceof Gpu ? opened : undefined;
  if (!options.gpu) await compare(opened, options, reporter);
  const { model = DEFAULT_MODEL } = options;

  let checkpoint: Checkpoint | undefined;
  try {
    checkpoint = await openCheckpoint(model, options.opening);
  } catch (error) {
    const text = errorText(error);
    reporter.found({ severity: "red", topic: "model", text });
  }
  await using _closed = checkpoint;
  if (checkpoint) {
    for (const text of checkpoint.notices) {
      reporter.found({ severity: "yellow", topic: "model", text });
    }
    const name = model === DEFAULT_MODEL ? "the story model" : checkpoint.name;
    const needs = await modelNeeds(checkpoint, options, gpu, name);
    needs.forEach(reporter.found);
  }
  await examineCpu(reporter, options.threads);
  if (gpu) {
    const examination = {
      weights: checkpoint && bytesPerToken(checkpoint),
      config: checkpoint?.config ?? parseSynthetic(LIKE_MODELS).config,
      all: options.all ?? false,
    };
    if (options.gpu) await examineDevice(gpu, examination, reporter);
    else {
      const { webgpu, adapter } = options;
      await examineApart({ ...examination, webgpu, adapter }, reporter);
    }
  }
  return {
    ok: findings.every(({ severity }) => severity !== "red"),
    findings,
  };
}

/** A model of usual sizes, in place of one that cannot be opened. */
const LIKE_MODELS = "synthetic:qwen3-0.6b";

function describeRuntime(reporter: Reporter) {
  const { deno } = Deno.version, { os, arch } = Deno.build;
  const cores = navigator.hardwareConcurrency;
  const release = Deno.osRelease();
  reporter.found({
    severity: "green",
    topic: "runtime",
    text: `Deno ${deno}, ${os} ${release}, ${arch}, ${cores} cores`,
    data: { deno, os, arch, release, cores },
  });
}

/** Lists each adapter once, with the requests that return it. */
async function listAdapters(
  implementation: GPU | undefined,
  reporter: Reporter,
) {
  const backend = Deno.env.get("DENO_WEBGPU_BACKEND");
  reporter.found({
    severity: "green",
    topic: "backend",
    text: backend
      ? `DENO_WEBGPU_BACKEND is ${backend}`
      : "DENO_WEBGPU_BACKEND is not set: Deno uses the platform's default",
    data: { backend },
  });
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
  const several = seen.size > 1;
  for (const { info, by } of seen.values()) {
    const { vendor, device, architecture, description } = info;
    const software = isSoftware(info);
    const kind = software
      ? "a software renderer, which runs on the CPU"
      : "a hardware GPU";
    reporter.found({
      severity: software ? "yellow" : "green",
      topic: "adapter",
      text: `${adapterName(info)}: ${kind}${several ? flagText(by) : ""}`,
      data: { vendor, device, architecture, description, software, by },
    });
    const ids = Object.entries({ vendor, device, architecture })
      .filter(([, id]) => id).map((pair) => pair.join(" "));
    reporter.found({
      severity: "green",
      topic: "adapter request",
      text: `${[...ids, `for ${by.join(", ")}`].join(", ")}`,
      detail: true,
    });
  }
}

/** The flags that choose an adapter which these requests return. */
function flagText(by: readonly string[]): string {
  const flags = by.flatMap((request) =>
    request === "high-performance"
      ? ["--adapter high"]
      : request === "low-power"
      ? ["--adapter low"]
      : []
  );
  return flags.length ? ` (${flags.join(" and ")})` : "";
}

/** The implementation that is examined, if it is there; {@linkcode open} says why not. */
async function implementationOf(
  options: DeviceOptions,
): Promise<GPU | undefined> {
  try {
    return (await findImplementation(options)).gpu;
  } catch (error) {
    if (error instanceof NoAdapterError) return undefined;
    throw error;
  }
}

/** Compares the open device, or why there is none, with the other implementation. */
async function compare(
  opened: Gpu | { error: string },
  { webgpu, adapter }: DeviceOptions,
  reporter: Reporter,
) {
  const asked = webgpu === "dawn";
  reporter.starting?.("WebGPU");
  const own = opened instanceof Gpu ? await offerOf(opened) : opened;
  const offers = asked ? { deno: await offerOfDeno(adapter), dawn: own } : {
    deno: "error" in own ? undefined : own, // which was said already
    dawn: await askDawn(false, adapter),
  };
  compareOffers(offers, asked, reporter);
}

async function offerOfDeno(adapter?: AdapterName) {
  try {
    using gpu = await openDevice({ adapter });
    return await offerOf(gpu);
  } catch (error) {
    if (!(error instanceof NoAdapterError)) throw error;
    return { error: errorText(error).replace("Cannot open a GPU: ", "") };
  }
}

/** Opens the device as the library does, and reports every choice, or why there is none. */
async function open(
  options: DeviceOptions,
  reporter: Reporter,
): Promise<Gpu | { error: string }> {
  let gpu: Gpu;
  try {
    gpu = await openDevice(options);
  } catch (error) {
    return { error: reportNone(error, reporter) };
  }
  gpu.choices.forEach((choice) => reportChoice(choice, reporter));
  const { limits } = gpu;
  reporter.found({
    severity: "green",
    topic: "limits",
    text: `buffers of ${bytes(limits.maxBufferSize)}, bindings of ${
      bytes(limits.maxStorageBufferBindingSize)
    }, workgroups of ${limits.maxComputeInvocationsPerWorkgroup} threads and ${
      bytes(limits.maxComputeWorkgroupStorageSize)
    }`,
  });
  return gpu;
}

/**
 * Without an adapter models run on the CPU path, which is slower but no problem. Returns
 * the reason.
 */
function reportNone(error: unknown, reporter: Reporter): string {
  const text = errorText(error).replace("Cannot open a GPU: ", "");
  if (!(error instanceof NoAdapterError)) {
    reporter.found({ severity: "red", topic: "adapter", text });
    return text;
  }
  const [reason] = text.split("; ");
  reporter.found({ severity: "yellow", topic: "adapter", text });
  reporter.found({
    severity: "yellow",
    topic: "device",
    text: `auto takes the CPU path: ${reason}`,
    data: { device: "cpu", reason },
  });
  return reason;
}

/** Features of every usual device are details; what is missing is not. */
function reportChoice({ what, value, reason }: Choice, reporter: Reporter) {
  const severity: Severity = value === "off" ? "yellow" : "green";
  reporter.found({
    severity,
    topic: what,
    text: `${value}: ${reason}`,
    data: { value, reason },
    detail: severity === "green" && !/constants/.test(what),
  });
}
