/**
 * Compiles WGSL to pipelines, once per device.
 *
 * @module
 */
import { Rests } from "../dispatch/rests.ts";
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

/** Compiles shaders, with turns of the event loop in between. */
export async function compileAll(
  gpu: Gpu,
  shaders: readonly Shader[],
  signal?: AbortSignal,
): Promise<void> {
  const rests = new Rests();
  for (const shader of shaders) {
    if (isCompiled(gpu, shader)) continue;
    compile(gpu, shader);
    await rests.rest(signal);
  }
}

/** Compiles a shader on a device, without caching the result. */
export function createPipeline(
  device: GPUDevice,
  { label, code, types }: Shader,
): Compiled {
  const layout = device.createBindGroupLayout({
    entries: types.map((type, binding) => ({
      binding,
      visibility: GPUShaderStage.COMPUTE,
      ...(type === "texels"
        ? { texture: { sampleType: "uint" } }
        : { buffer: { type } }),
    })),
  });
  const module = device.createShaderModule({ code, label });
  const began = performance.now();
  const pipeline = device.createComputePipeline({
    label,
    layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
    compute: { module, entryPoint: "main" },
  });
  return { pipeline, layout, driverMs: performance.now() - began };
}
