/**
 * Compiles WGSL to pipelines, once per device.
 *
 * @module
 */
import { Rests } from "../dispatch/rests.ts";
import { DeviceError, errorText } from "../errors.ts";
import type { Gpu } from "./device.ts";

/** WGSL, and the binding types for its pipeline layout. */
export interface Shader {
  label: string;
  code: string;
  /** Types of the bindings, in order. */
  types: readonly ("texels" | GPUBufferBindingType)[];
}

/** A shader compiled for a device. */
export interface Compiled {
  pipeline: GPUComputePipeline;
  layout: GPUBindGroupLayout;
  /** Milliseconds that the driver took to compile it. */
  driverMs: number;
}

const compiled = new WeakMap<Gpu, Map<string, Compiled>>();
/** Modules that were parsed ahead of their pipelines. */
const parsed = new WeakMap<GPUDevice, Map<string, GPUShaderModule>>();

/**
 * Parses a shader that will be compiled, unless it has been: in Deno that takes a tenth as
 * long as the driver takes to compile it.
 */
export function parse(gpu: Gpu, shader: Shader): void {
  if (isCompiled(gpu, shader)) return;
  const { device } = gpu, { code, label } = shader;
  let known = parsed.get(device);
  if (!known) parsed.set(device, known = new Map());
  if (!known.has(code)) {
    known.set(code, device.createShaderModule({ code, label }));
  }
}

/** Whether {@linkcode compile} has already compiled this shader. */
export function isCompiled(gpu: Gpu, { code }: Shader): boolean {
  return compiled.get(gpu)?.has(code) ?? false;
}

/** Compiles a shader, or returns the pipeline if it was compiled before. */
export function compile(gpu: Gpu, shader: Shader): Compiled {
  let known = compiled.get(gpu);
  if (!known) compiled.set(gpu, known = new Map());
  let found = known.get(shader.code);
  if (!found) {
    known.set(shader.code, found = createPipeline(gpu.device, shader));
  }
  return found;
}

/**
 * Compiles shaders, with turns of the event loop in between. Dawn does so in threads of its
 * own, all at once; in Deno the caller's thread would compile them either way.
 *
 * @throws {DeviceError} if Dawn refuses one; Deno reports that to the device.
 */
export async function compileAll(
  gpu: Gpu,
  shaders: readonly Shader[],
  signal?: AbortSignal,
): Promise<void> {
  if (gpu.implementation === "dawn") {
    return await compileTogether(gpu, shaders, signal);
  }
  const rests = new Rests();
  for (const shader of shaders) {
    if (isCompiled(gpu, shader)) continue;
    compile(gpu, shader);
    await rests.rest(signal);
  }
}

async function compileTogether(
  gpu: Gpu,
  shaders: readonly Shader[],
  signal?: AbortSignal,
): Promise<void> {
  signal?.throwIfAborted();
  const known = compiled.get(gpu) ?? new Map<string, Compiled>();
  compiled.set(gpu, known);
  const missing = new Map(
    shaders.filter(({ code }) => !known.has(code)).map((one) =>
      [one.code, one] as const
    ),
  );
  const all = Promise.all([...missing.values()].map(async (shader) => {
    const { layout, descriptor } = describe(gpu.device, shader);
    const began = performance.now();
    try {
      const pipeline = await gpu.device.createComputePipelineAsync(descriptor);
      const driverMs = performance.now() - began;
      known.set(shader.code, { pipeline, layout, driverMs });
    } catch (error) {
      gpu.check(); // it may know why
      throw new DeviceError(
        `Cannot compile ${shader.label}: ${errorText(error)}`,
      );
    }
  }));
  if (signal === undefined) return void await all;
  const stopped = Promise.withResolvers<never>();
  const stop = () => stopped.reject(signal.reason);
  signal.addEventListener("abort", stop);
  try {
    await Promise.race([all, stopped.promise]); // Dawn finishes what it has begun
  } finally {
    signal.removeEventListener("abort", stop);
  }
}

/** Compiles a shader on a device, without caching the result. */
export function createPipeline(device: GPUDevice, shader: Shader): Compiled {
  const { layout, descriptor } = describe(device, shader);
  const began = performance.now();
  const pipeline = device.createComputePipeline(descriptor);
  return { pipeline, layout, driverMs: performance.now() - began };
}

function describe(
  device: GPUDevice,
  { label, code, types }: Shader,
): { layout: GPUBindGroupLayout; descriptor: GPUComputePipelineDescriptor } {
  const layout = device.createBindGroupLayout({
    entries: types.map((type, binding) => ({
      binding,
      visibility: GPUShaderStage.COMPUTE,
      ...(type === "texels"
        ? { texture: { sampleType: "uint" } }
        : { buffer: { type } }),
    })),
  });
  const known = parsed.get(device), early = known?.get(code);
  known?.delete(code);
  const module = early ?? device.createShaderModule({ code, label });
  return {
    layout,
    descriptor: {
      label,
      layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
      compute: { module, entryPoint: "main" },
    },
  };
}
