/**
 * Environment variables that Deno's WebGPU reads.
 *
 * @module
 */
import type { Choice } from "../dispatch/choice.ts";
import { explained } from "../errors.ts";
import { host } from "../host.ts";

/** The variable that says which graphics APIs Deno's WebGPU opens, each thread for itself. */
export const BACKENDS = "DENO_WEBGPU_BACKEND";

/** What the variables are set to unless they are set already. */
const VALUES = {
  // The Vulkan loader prints errors to stderr without it.
  XDG_RUNTIME_DIR: "/tmp",
  [BACKENDS]: "vulkan,metal,dx12",
};
/** Why not all that Deno would open. */
const NO_GL = "GL lacks f16, may hang, and may abort a process as it ends";

/**
 * Sets the variables that Deno's WebGPU reads, unless they are already set. Call this
 * before your own first use of `navigator.gpu`; it needs `--allow-env`. `openDevice` and
 * `loadQwen3` do the same where Deno has that permission.
 */
export function prepareEnvironment(): void {
  try {
    setMissing(() => true);
  } catch (error) {
    throw explained("prepare the environment", error);
  }
}

/** Sets the variables that are not set, if they may be read and set. */
function setMissing(may: (name: string) => boolean): void {
  for (const [name, value] of Object.entries(VALUES)) {
    if (may(name) && !host.env(name)) host.setEnv(name, value);
  }
}

/** Sets those variables that Deno may set; says which graphics APIs that leaves. */
export function prepareWhereGranted(): Choice {
  const what = "graphics APIs",
    granted = (name: string) => host.isGranted("env", name);
  const given = granted(BACKENDS) ? host.env(BACKENDS) : undefined;
  setMissing(granted);
  if (given !== undefined) return { what, value: given, reason: BACKENDS };
  if (granted(BACKENDS)) {
    return { what, value: VALUES[BACKENDS], reason: NO_GL };
  }
  return {
    ...{ what, value: "Deno's default" },
    reason: `Deno has no env permission for ${BACKENDS}: ${NO_GL}`,
  };
}
