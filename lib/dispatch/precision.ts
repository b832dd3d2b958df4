/**
 * Where f16 is used instead of f32, and why: pure functions of sizes and capabilities.
 *
 * @module
 */

import type { Capabilities } from "./capabilities.ts";
import { hasMatrices } from "./matrices.ts";
import { CACHE_BLOCK, type CacheDtype } from "../formats/cached.ts";

/** The type chosen for values, and the reason. */
export interface Precision<T = "f16" | "f32"> {
  dtype: T;
  reason: string;
}

/**
 * The number of values of a head that kernels handle at a time: four if each half of
 * the head (RoPE rotates one against the other) is whole vectors, so that a head in f16
 * is whole 16-byte units.
 */
export function headVector(headDim: number): 4 | 1 {
  return headDim % 8 === 0 ? 4 : 1;
}

/** What may be asked for as the type of cached keys and values. */
export const CACHE_TYPES = ["auto", "f16", "f32", "q8_0"] as const;

/** One of {@linkcode CACHE_TYPES}. */
export type CacheRequest = typeof CACHE_TYPES[number];

/**
 * Why keys and values cannot be cached as requested, and what can be requested instead;
 * undefined if they can.
 */
export function cacheRefusal(
  headDim: number,
  kv: CacheRequest = "auto",
  onCpu = false,
): string | undefined {
  const eights = headVector(headDim) === 4,
    blocks = headDim % CACHE_BLOCK === 0;
  const fits = { auto: true, f16: eights && !onCpu, f32: true, q8_0: blocks };
  if (fits[kv]) return undefined;
  const others = CACHE_TYPES.filter((one) => fits[one]);
  const why = kv === "q8_0"
    ? `heads have ${headDim} values, q8_0 takes blocks of ${CACHE_BLOCK}`
    : onCpu
    ? "the CPU path has no f16"
    : `heads have ${headDim} values, f16 takes a multiple of 8`;
  const last = others.pop();
  return `${others.join(", ")} or ${last}: ${why}`;
}

/**
 * Chooses the type of keys and values in a GPU's cache: the requested one, else f16 where
 * it can be used. Set `exact` if precision f32 was requested.
 */
export function chooseCacheDtype(
  headDim: number,
  { exact = false, kv = "auto" }: { exact?: boolean; kv?: CacheRequest } = {},
): Precision<CacheDtype> {
  if (kv !== "auto") return requestedCache(kv);
  if (exact) return { dtype: "f32", reason: "precision f32 was asked for" };
  return headVector(headDim) === 4
    ? {
      dtype: "f16",
      reason: "half the memory; switches to f32 if a value exceeds 65,504",
    }
    : {
      dtype: "f32",
      reason: `a head of ${headDim} values does not fill whole 16-byte units`,
    };
}

/** Chooses the type of keys and values in a cache in main memory. */
export const chooseCpuCacheDtype = (
  kv: CacheRequest = "auto",
): Precision<"f32" | "q8_0"> =>
  kv === "q8_0" || kv === "f32"
    ? requestedCache(kv)
    : { dtype: "f32", reason: "the CPU path computes in f32" };

const requestedCache = <T extends CacheDtype>(dtype: T): Precision<T> => ({
  dtype,
  reason: dtype === "q8_0"
    ? "it was asked for: about half of f16's memory; keys and values are off by 0.5 %"
    : "it was asked for",
});

/**
 * Chooses the type in which matmuls of many rows multiply; either way, they sum in f32.
 */
export function chooseMatmulDtype(
  { f16, software, ...device }:
    & { f16: boolean; software: boolean }
    & Pick<
      Capabilities,
      "subgroupMatrices"
    >,
  exact = false,
): Precision {
  if (exact) return { dtype: "f32", reason: "precision f32 was asked for" };
  if (software) {
    return {
      dtype: "f32",
      reason: "f16 is not faster on a software renderer",
    };
  }
  return f16
    ? {
      dtype: "f16",
      reason: hasMatrices(device)
        ? "tensor cores multiply f16 and sum in f32"
        : "faster; attention's projections stay in f32",
    }
    : { dtype: "f32", reason: "the adapter lacks shader-f16" };
}

/**
 * Chooses how the CPU multiplies quantised weights by few rows. Set `exact` if f32 was
 * requested.
 */
export function chooseCpuQuants(
  exact: boolean,
): { value: string; reason: string } {
  return exact ? { value: "f32", reason: "precision f32 was asked for" } : {
    value: "as integers, rows rounded to 16 bits",
    reason: "faster; what is beside an outlier stays in f32",
  };
}

/** Bytes of workgroup memory that prefill attention in f16 needs. */
export const HALF_PREFILL_BYTES = 29184;

/** A quarter of f16's largest value, which leaves room for rounding in partial sums. */
const LARGEST_SCORE = 16384;

/**
 * Chooses the type in which prefill attention multiplies. Heads of q and k are normed,
 * so `q · k` is at most `largestQ · largestK · headDim`, where the first two are the
 * largest weights of the two norms; undefined if those were not measured. `room` is the
 * device's workgroup memory.
 */
export function chooseAttentionDtype(
  { cacheDtype, headDim, largestQ, largestK, room }: {
    cacheDtype: string;
    headDim: number;
    largestQ: number | undefined;
    largestK: number | undefined;
    room: number;
  },
): Precision {
  const f32 = (reason: string): Precision => ({ dtype: "f32", reason });
  if (cacheDtype === "f32") return f32("the cache is f32");
  if (headDim !== 64 && headDim !== 128) {
    return f32(
      `the f16 kernel takes heads of 64 or 128 values, not ${headDim}`,
    );
  }
  if (largestQ === undefined || largestK === undefined) {
    return f32("the norms' weights were not measured");
  }
  if (room < HALF_PREFILL_BYTES) {
    return f32(
      `the f16 kernel needs ${HALF_PREFILL_BYTES} bytes of workgroup memory, the device has ${room}`,
    );
  }
  const most = largestQ * largestK * headDim;
  // NaN is rejected, too.
  return most <= LARGEST_SCORE
    ? { dtype: "f16", reason: "in range, given the norms' weights" }
    : f32(`q · k may reach ${most}, beyond ${LARGEST_SCORE}`);
}
