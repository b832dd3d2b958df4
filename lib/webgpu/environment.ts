/**
 * Environment variables that Deno's WebGPU reads.
 *
 * @module
 */
import { host } from "../host.ts";

/**
 * Sets what Deno's WebGPU reads from the environment, where it is unset. Call it
 * before the first use of `navigator.gpu`; it needs `--allow-env`.
 */
export function prepareEnvironment(): void {
  // Vulkan's loader complains on stderr where this is unset.
  if (!host.env("XDG_RUNTIME_DIR")) host.setEnv("XDG_RUNTIME_DIR", "/tmp");
  // Left to itself, Deno may offer a GL adapter, which lacks f16 and may hang.
  if (!host.env("DENO_WEBGPU_BACKEND")) {
    host.setEnv("DENO_WEBGPU_BACKEND", "vulkan,metal,dx12");
  }
}
