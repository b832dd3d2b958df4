/**
 * Where f16 is used instead of f32, and why: pure functions of sizes and capabilities.
 *
 * @module
 */

/** A type of values, and why it is this one. */
export interface Precision {
  dtype: "f16" | "f32";
  reason: string;
}

/**
 * Values that kernels handle at a time in a head: four where each half of the head (RoPE
 * rotates one against the other) is whole vectors, which in f16 makes a head whole
 * 16-byte units.
 */
export function headVector(headDim: number): 4 | 1 {
  return headDim % 8 === 0 ? 4 : 1;
}

/** The type of keys and values in the cache of a GPU; `exact`: f32 was asked for. */
export function chooseCacheDtype(headDim: number, exact = false): Precision {
  if (exact) return { dtype: "f32", reason: "precision f32 was asked for" };
  return headVector(headDim) === 4
    ? {
      dtype: "f16",
      reason: "half the memory; a value beyond 65,504 makes it f32",
    }
    : {
      dtype: "f32",
      reason: `a head of ${headDim} values is not whole 16-byte units`,
    };
}

/** The type in which matmuls of many rows multiply; both sum in f32. */
export function chooseMatmulDtype(
  { f16, software }: { f16: boolean; software: boolean },
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
    ? { dtype: "f16", reason: "faster; rows are scaled into f16's range" }
    : { dtype: "f32", reason: "the adapter lacks shader-f16" };
}

/** A quarter of f16's largest value: room for the rounding of partial sums. */
const LARGEST_SCORE = 16384;

/**
 * The type in which a prompt's attention multiplies. Heads of q and k are normed, so
 * `q · k` is at most `largestQ · largestK · headDim` for the largest weights of the two
 * norms; undefined where those were not measured.
 */
export function chooseAttentionDtype(
  { cacheDtype, headDim, largestQ, largestK }: {
    cacheDtype: string;
    headDim: number;
    largestQ: number | undefined;
    largestK: number | undefined;
  },
): Precision {
  const f32 = (reason: string): Precision => ({ dtype: "f32", reason });
  if (cacheDtype !== "f16") return f32("the cache is f32");
  if (headDim !== 64 && headDim !== 128) {
    return f32(
      `the f16 kernel takes heads of 64 or 128 values, not ${headDim}`,
    );
  }
  if (largestQ === undefined || largestK === undefined) {
    return f32("the norms' weights were not measured");
  }
  const most = largestQ * largestK * headDim;
  // NaN is refused, too.
  return most <= LARGEST_SCORE
    ? { dtype: "f16", reason: "in f16, in range by the norms' weights" }
    : f32(`q · k may reach ${most}, beyond ${LARGEST_SCORE}`);
}
