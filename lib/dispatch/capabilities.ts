/**
 * What dispatch depends on: a device's capabilities, as data.
 *
 * @module
 */
import type { Constants } from "./shapes.ts";

/** Kinds of adapter that have a row of their own. */
export type AdapterClass =
  | "NVIDIA"
  | "NVIDIA, large cache"
  | "AMD"
  | "Intel"
  | "Apple"
  | "software"
  | "other";

/** What of a device a choice depends on; a {@linkcode Gpu} has it all. */
export interface Capabilities {
  /** Lanes that exchange values directly; 0 without subgroups. */
  subgroupSize: number;
  /** Whose defaults apply; `other` if absent. */
  adapterClass?: AdapterClass;
  /** Whether shaders are known to go through Deno's naga to Vulkan; false if absent. */
  vulkan?: boolean;
  limits: {
    maxComputeWorkgroupStorageSize: number;
    maxComputeInvocationsPerWorkgroup: number;
  };
  /** Constants that were measured to be best on this adapter, by the keys of tuning_key.ts. */
  tuned?: ReadonlyMap<string, Constants>;
}

/** Lanes that share a sum: constants for kernels that use lib/webgpu/wgsl.ts's LANES. */
export function laneConstants(
  { subgroupSize }: Pick<Capabilities, "subgroupSize">,
  most = 32,
): { LOG_LANES: number; SUBGROUPS: number } {
  const lanes = Math.min(most, subgroupSize || 32);
  return {
    LOG_LANES: Math.floor(Math.log2(Math.max(1, lanes))),
    SUBGROUPS: subgroupSize ? 1 : 0,
  };
}

/** The same for exactly `lanes` lanes, through workgroup memory where subgroups are smaller. */
export function exactLanes(
  { subgroupSize }: Pick<Capabilities, "subgroupSize">,
  lanes: number,
): { LOG_LANES: number; SUBGROUPS: number } {
  return {
    LOG_LANES: Math.log2(lanes),
    SUBGROUPS: subgroupSize >= lanes ? 1 : 0,
  };
}
