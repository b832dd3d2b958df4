/**
 * The device capabilities that dispatch depends on, as data.
 *
 * @module
 */
import type { Constants } from "./shapes.ts";

/** Adapter classes, each with its own defaults. */
export type AdapterClass =
  | "NVIDIA"
  | "NVIDIA, large cache"
  | "AMD"
  | "Intel"
  | "Apple"
  | "software"
  | "other";

/**
 * Compilers of WGSL, by how they differ. `naga` refuses `enable subgroups;` and does not
 * check uniformity; `tint` stands for those that follow the specification in both.
 */
export type Compiler = "naga" | "tint";

/**
 * A product of matrices that a subgroup computes at once, `[M, K] × [K, N]`, with the names
 * of Chromium's draft. Types are those of WGSL: `f16`, `f32`, `u8`, …
 */
export interface SubgroupMatrix {
  /** The factors' type. */
  readonly componentType: string;
  /** The type of the sums. */
  readonly resultComponentType: string;
  /** Rows of the left factor and of the product. */
  readonly M: number;
  /** Columns of the right factor and of the product. */
  readonly N: number;
  /** Columns of the left factor, rows of the right one. */
  readonly K: number;
}

/** The device properties that choices depend on; a {@linkcode Gpu} has them. */
export interface Capabilities {
  /** Lanes per subgroup, which exchange values directly; 0 without subgroups. */
  subgroupSize: number;
  /** Selects the defaults; `other` if absent. */
  adapterClass?: AdapterClass;
  /**
   * The matrices that tensor cores multiply; none if absent, or if subgroups do not always
   * have 32 lanes.
   */
  subgroupMatrices?: readonly SubgroupMatrix[];
  /** Decides which directives shaders begin with; `naga` if absent. */
  compiler?: Compiler;
  /**
   * Whether shaders are known to be compiled by Deno's naga for Vulkan; false if
   * absent.
   */
  vulkan?: boolean;
  /**
   * The device limits that dispatch uses, by their WebGPU names. Absent ones do not limit, but
   * for storage buffers ({@linkcode mostBuffers}).
   */
  limits: {
    maxComputeWorkgroupStorageSize: number;
    maxComputeInvocationsPerWorkgroup: number;
    maxComputeWorkgroupSizeX?: number;
    maxStorageBuffersPerShaderStage?: number;
    maxStorageBufferBindingSize?: number;
  };
  /** Constants measured to be best on this adapter, by key (see keys.ts). */
  tuned?: Pick<ReadonlyMap<string, Constants>, "get">;
}

/** The maximum threads of a workgroup, all in one dimension. */
export const mostThreads = ({ limits }: Pick<Capabilities, "limits">): number =>
  Math.min(
    limits.maxComputeInvocationsPerWorkgroup,
    limits.maxComputeWorkgroupSizeX ?? Infinity,
  );

/** Rows up to which the threads of {@linkcode rowThreads} are what keeps a large GPU busy. */
const FEW_WORKGROUPS = 64;

/**
 * Maximum vectors of four that a thread of {@linkcode rowThreads} holds, where the device allows
 * as many threads. Not measured: they take 32 registers of about 256, and what is multiplied by
 * them 32 more.
 */
const MOST_FOURS = 8;

/**
 * Threads of a workgroup that converts one of `m` rows of `k` elements and holds it: with few
 * rows, one vector of four each ("Rows in f16: read once").
 */
export function rowThreads(
  m: number,
  k: number,
  device: Pick<Capabilities, "adapterClass" | "limits">,
): number {
  const few = m <= FEW_WORKGROUPS && device.adapterClass !== "software";
  const most = Math.min(few ? 1024 : 512, mostThreads(device));
  const threads = 2 ** Math.ceil(Math.log2(k / 4 / (few ? 1 : MOST_FOURS)));
  return Math.max(128, Math.min(most, threads));
}

/** Storage buffers that a kernel can bind: 8, as WebGPU promises, if the device does not say. */
export const mostBuffers = (
  { limits }: Pick<Capabilities, "limits">,
): number => limits.maxStorageBuffersPerShaderStage ?? 8;

/**
 * Constants for kernels that use LANES (lib/webgpu/wgsl.ts): up to `most` lanes share a
 * sum.
 */
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

/**
 * Constants of kernels whose lanes share the `loads` of a row: STEPS of them, at most as many as
 * are given, are in flight in a lane, in each of CHUNKS.
 */
export function laneSteps(loads: number, { LOG_LANES, STEPS }: Constants) {
  const lanes = 1 << Number(LOG_LANES);
  const most = Math.ceil(loads / lanes);
  const steps = Math.max(1, Math.min(Number(STEPS), most));
  return {
    LANES: lanes,
    STEPS: steps,
    CHUNKS: Math.ceil(loads / (lanes * steps)),
    EXACT: loads % (lanes * steps) === 0 ? 1 : 0,
  };
}

/**
 * Constants for exactly `lanes` lanes that share a sum, through workgroup memory if
 * subgroups are smaller.
 */
export function exactLanes(
  { subgroupSize }: Pick<Capabilities, "subgroupSize">,
  lanes: number,
): { LOG_LANES: number; SUBGROUPS: number } {
  return {
    LOG_LANES: Math.log2(lanes),
    SUBGROUPS: subgroupSize >= lanes ? 1 : 0,
  };
}
