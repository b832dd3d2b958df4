/**
 * Environment variables that Deno's WebGPU reads.
 *
 * @module
 */

/**
 * Sets what Deno's WebGPU reads from the environment, where it is unset. Call it
 * before the first use of `navigator.gpu`; it needs `--allow-env`.
 */
export function prepareEnvironment(): void {
  // Vulkan's loader complains on stderr where this is unset.
  if (!Deno.env.get("XDG_RUNTIME_DIR")) Deno.env.set("XDG_RUNTIME_DIR", "/tmp");
  // Left to itself, Deno may offer a GL adapter, which lacks f16 and may hang.
  if (!Deno.env.get("DENO_WEBGPU_BACKEND")) {
    Deno.env.set("DENO_WEBGPU_BACKEND", "vulkan,metal,dx12");
  }
}
