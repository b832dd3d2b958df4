/**
 * What dispatch depends on: a device's capabilities, as data.
 *
 * @module
 */
import type { Constants } from "./shapes.ts";

/** Kinds of adapter with defaults of their own. */
export type AdapterClass =
  | "NVIDIA"
  | "NVIDIA, large cache"
  | "AMD"
  | "Intel"
  | "Apple"
  | "software"
  | "other";

/** The properties of a device that choices depend on; a {@linkcode Gpu} has them. */
export interface Capabilities {
  /** Lanes that exchange values directly; 0 without subgroups. */
  subgroupSize: number;
  /** Selects the defaults; `other` if absent. */
  adapterClass?: AdapterClass;
  /** Whether shaders are known to go through Deno's naga to Vulkan; false if absent. */
  vulkan?: boolean;
  /** The device's limits that dispatch asks for, as WebGPU names them. */
  limits: {
    maxComputeWorkgroupStorageSize: number;
    maxComputeInvocationsPerWorkgroup: number;
  };
  /** Constants measured to be best on this adapter, by the keys of keys.ts. */
  tuned?: ReadonlyMap<string, Constants>;
}

/** Lanes that share a sum, as constants for kernels that use LANES of lib/webgpu/wgsl.ts. */
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

/** Exactly `lanes` lanes share a sum, through workgroup memory if subgroups are smaller. */
export function exactLanes(
  { subgroupSize }: Pick<Capabilities, "subgroupSize">,
  lanes: number,
): { LOG_LANES: number; SUBGROUPS: number } {
  return {
    LOG_LANES: Math.log2(lanes),
    SUBGROUPS: subgroupSize >= lanes ? 1 : 0,
  };
}
