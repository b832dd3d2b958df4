/**
 * Finds a WebGPU implementation: the runtime's own, Dawn from npm, or the caller's.
 *
 * @module
 */
import type { Choice } from "../dispatch/choice.ts";
import type { DeviceKind } from "../dispatch/device.ts";
import { errorText, NoAdapterError, wrongOption } from "../errors.ts";
import { host } from "../host.ts";
import { defineConstants } from "./constants.ts";
import { prepareWhereGranted } from "./environment.ts";
import { paceTicks } from "./ticks.ts";

/** Which GPU to open, through which WebGPU implementation. */
export interface DeviceOptions {
  /**
   * The WebGPU implementation. `deno`, the default, is the runtime's own,
   * `navigator.gpu`. `dawn` is Chrome's: it reads results back in 0.05 ms rather than 11,
   * unrolls loops, and offers matrix units where the driver has them. It is npm's `webgpu`,
   * 132 MB that are downloaded at the first use, with machine code (`--allow-ffi`).
   */
  webgpu?: WebGpuName;
  /** Of several GPUs, the one of `high` performance, the default, or of `low` power. */
  adapter?: AdapterName;
  /** Any other WebGPU implementation. */
  gpu?: GPU;
}

/** The implementations that `webgpu` names. */
export type WebGpuName = "deno" | "dawn";
/** The adapters that `adapter` names. */
export type AdapterName = "high" | "low";

/** The values of `webgpu`. */
export const WEBGPU_NAMES: readonly WebGpuName[] = ["deno", "dawn"];
/** The values of `adapter`. */
export const ADAPTER_NAMES: readonly AdapterName[] = ["high", "low"];

/** A WebGPU implementation. */
export interface Implementation {
  gpu: GPU;
  /** `other` is the caller's own, or that of another runtime. */
  name: WebGpuName | "other";
  choices: readonly Choice[];
}

/** The version of npm's `webgpu` that the kernels were tested with. */
const DAWN_VERSION = "0.6.2";

/** Settings of Dawn that differ from its defaults, and why. */
const TOGGLES: readonly [
  name: string,
  value: "enabled" | "disabled",
  reason: string,
][] = [
  ["allow_unsafe_apis", "enabled", "it hides matrix units of subgroups"],
  [
    "vulkan_enable_f16_on_nvidia",
    "enabled",
    "f16 is off there for rounding that our tolerances allow",
  ],
  ["timestamp_quantization", "disabled", "it rounds times to 65,536 ns"],
];

/** The part of `options` that chooses a GPU. */
export const deviceOptions = (
  { gpu, webgpu, adapter }: DeviceOptions,
): DeviceOptions => ({ gpu, webgpu, adapter });

/**
 * Checks {@linkcode DeviceOptions}; `cannot` is how the error begins.
 *
 * @param device where it will be used, if that is known
 * @throws {OptionError} if one has a wrong value, both `webgpu` and `gpu` are given, or one
 * chooses a GPU for the CPU.
 */
export function checkImplementation(
  cannot: string,
  { gpu, webgpu, adapter }: DeviceOptions,
  device?: DeviceKind,
): void {
  if (webgpu !== undefined && !WEBGPU_NAMES.includes(webgpu)) {
    throw wrongOption(cannot, "webgpu", webgpu, WEBGPU_NAMES.join(" or "));
  }
  if (webgpu !== undefined && gpu !== undefined) {
    throw wrongOption(cannot, "webgpu", webgpu, "left out when gpu is given");
  }
  if (adapter !== undefined && !ADAPTER_NAMES.includes(adapter)) {
    throw wrongOption(cannot, "adapter", adapter, ADAPTER_NAMES.join(" or "));
  }
  if (device !== "cpu") return;
  for (const [name, value] of Object.entries({ webgpu, adapter })) {
    if (value === undefined) continue;
    throw wrongOption(cannot, name, value, "left out when device is cpu");
  }
}

/** The WebGPU name of an adapter. */
export const powerPreference = (
  adapter: AdapterName = "high",
): GPUPowerPreference => adapter === "low" ? "low-power" : "high-performance";

/**
 * Finds the implementation that the options name.
 *
 * @throws {NoAdapterError} if it is not there or cannot be loaded.
 */
export async function findImplementation(
  { gpu, webgpu }: DeviceOptions,
): Promise<Implementation> {
  const what = "WebGPU", { name, version } = host.runtime;
  const asked = webgpu === undefined ? "the default" : "it was asked for";
  if (gpu || webgpu === "dawn") defineConstants();
  if (gpu) {
    const choice = { what, value: "gpu", reason: "it was passed" };
    return { gpu, name: "other", choices: [choice] };
  }
  if (webgpu === "dawn") {
    const value = `dawn, npm's webgpu ${DAWN_VERSION}`;
    const toggles = TOGGLES.map(([toggle, value, reason]) => ({
      what: `Dawn's ${toggle}`,
      value,
      reason,
    }));
    return {
      gpu: await loadDawn(),
      name: "dawn",
      choices: [{ what, value, reason: asked }, ...toggles],
    };
  }
  if (webgpu === "deno" && name !== "Deno") {
    throw new NoAdapterError(
      `Cannot open a GPU: webgpu is "deno", this runtime is ${name}; leave it out`,
    );
  }
  const prepared = name === "Deno" ? [prepareWhereGranted()] : [];
  const own = navigator.gpu;
  if (!own) {
    throw new NoAdapterError(
      host.base === undefined
        ? 'Cannot open a GPU: this runtime has no navigator.gpu; use Deno 2.9 or later, webgpu: "dawn" or `gpu`'
        : "Cannot open a GPU: this page has no WebGPU; use a browser that has it, https:// or localhost, or the CPU",
    );
  }
  const value = name === "Deno" ? `deno ${version}` : "navigator.gpu";
  return {
    gpu: own,
    name: name === "Deno" ? "deno" : "other",
    choices: [{ what, value, reason: asked }, ...prepared],
  };
}

/** Dawn, once it is loaded: it must stay referenced while it is used. */
let dawn: GPU | undefined;

async function loadDawn(): Promise<GPU> {
  // No literal: Deno would download the package for everyone who imports this file.
  const specifier = host.runtime.name === "Deno"
    ? `npm:webgpu@${DAWN_VERSION}`
    : "webgpu";
  const named = (wanted: string) =>
    TOGGLES.filter(([, value]) => value === wanted).map(([name]) => name);
  try {
    const { create, globals }: {
      create(settings: string[]): GPU;
      globals: Record<string, { prototype: object }>;
    } = await import(specifier);
    if (!dawn && host.runtime.name === "Deno") paceTicks(globals);
    return dawn ??= create([
      `enable-dawn-features=${named("enabled")}`,
      `disable-dawn-features=${named("disabled")}`,
    ]);
  } catch (error) {
    throw new NoAdapterError(
      `Cannot open a GPU: Dawn cannot be loaded, ${
        errorText(error)
      }; leave webgpu out to use the runtime's own`,
    );
  }
}
