/**
 * Environment variables that Deno's WebGPU reads.
 *
 * @module
 */
import { explained } from "../errors.ts";
import { host } from "../host.ts";

/**
 * Sets the variables that Deno's WebGPU reads, unless they are already set. Call this
 * before the first use of `navigator.gpu`; it needs `--allow-env`.
 */
export function prepareEnvironment(): void {
  try {
    // The Vulkan loader prints a warning to stderr if this is unset.
    if (!host.env("XDG_RUNTIME_DIR")) host.setEnv("XDG_RUNTIME_DIR", "/tmp");
    // By default Deno may pick a GL adapter, which lacks f16 and may hang.
    if (!host.env("DENO_WEBGPU_BACKEND")) {
      host.setEnv("DENO_WEBGPU_BACKEND", "vulkan,metal,dx12");
    }
  } catch (error) {
    throw explained("prepare the environment", error);
  }
}
