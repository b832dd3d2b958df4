/**
 * Which kernel runs a product, with which constants, and why: pure functions of
 * shapes and limits, so that every choice and every refusal can be listed.
 *
 * @module
 */
import type { Dtype } from "./ops.ts";
import type { Constants } from "./unroll.ts";
import { unitSize } from "./wgsl.ts";

/** What of a device a choice depends on; a {@linkcode Gpu} has it all. */
export interface Capabilities {
  /** Lanes that exchange values directly; 0 without subgroups. */
  subgroupSize: number;
  limits: {
    maxComputeWorkgroupStorageSize: number;
    maxComputeInvocationsPerWorkgroup: number;
  };
}

/** A Linear layer: `[m, k] × [n, k]ᵀ`. */
export interface LinearShape {
  m: number;
  n: number;
  k: number;
  /** Element type of the weights. */
  dtype: Dtype;
  /** RMSNorm of the rows first. */
  norm: boolean;
  /** SwiGLU after it: pairs of w's rows become one output. */
  swiglu: boolean;
}

/** A kernel, its constants, and the reason. */
export interface LinearChoice {
  kernel: "gemv" | "gemm";
  constants: Constants;
  /** Whether the kernel norms the rows itself; else rmsNorm runs before it. */
  fusedNorm: boolean;
  reason: string;
}

/** Up to this many rows the matrix is read once for all of them by gemv. */
export const FEW_ROWS = 8;

/** Lanes that share a sum: constants for kernels that use lib/wgsl.ts's LANES. */
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

/** Chooses the kernel of a Linear layer. */
export function chooseLinear(
  shape: LinearShape,
  device: Capabilities,
): LinearChoice {
  const { m, n, k, dtype, norm, swiglu } = shape;
  const EPILOGUE = swiglu ? 2 : 0;
  if (m <= FEW_ROWS) {
    const whole = k % unitSize(dtype) === 0;
    const units = Math.ceil(k / unitSize(dtype));
    const room = device.limits.maxComputeWorkgroupStorageSize - 1024;
    const fusedNorm = norm && whole && m * k * 4 <= room;
    return {
      kernel: "gemv",
      constants: {
        M: m,
        ROWS: 2,
        EPILOGUE,
        NORM: fusedNorm ? 1 : 0,
        ...laneConstants(device, Math.max(4, units)),
      },
      fusedNorm,
      reason: `${m} ${m === 1 ? "row" : "rows"}: the matrix is read once${
        whole
          ? ""
          : `, element by element, because k = ${k} is not whole 16-byte units`
      }`,
    };
  }
  return {
    kernel: "gemm",
    constants: { EPILOGUE, ...tileFor(m, n) },
    fusedNorm: false,
    reason: `${m} rows: more than ${FEW_ROWS}, tiles reuse the matrix`,
  };
}

/** The tile of a product by its size: large where there is enough work to fill a GPU. */
export function tileFor(m: number, n: number): Constants {
  if (m >= 256 && m * n >= 1 << 21) {
    return { BM: 128, BN: 128, BK: 16, TM: 8, TN: 8 };
  }
  return { BM: 64, BN: 64, BK: 16, TM: 4, TN: 8 };
}
