/**
 * Cases of the kernels that run Linear layers of one or a few rows.
 *
 * @module
 */
import type { Matrix } from "../lib/formats/matrix.ts";
import { formatNamed } from "../lib/formats/mod.ts";
import { chooseLinear } from "../lib/dispatch/linear.ts";
import type { Constants, Epilogue } from "../lib/dispatch/shapes.ts";
import { type CpuTensor, matrixToF32, toF32 } from "../lib/formats/tensor.ts";
import { pendingConstants, pendingRounding, pendingTensor } from "./pending.ts";
import {
  type CaseRandom,
  type CaseTools,
  EPS,
  type Float,
  type KernelCase,
  type Result,
  room,
  rowSums,
  SUM,
  u32Tensor,
} from "./case.ts";

/** Parameters of `x · wᵀ` for m rows, and of what is fused around it. */
export interface LinearCase {
  m: number;
  n: number;
  k: number;
  /** Format of the weights. */
  w: string;
  /** Format of the next part of the matrix, of SECOND_ROWS rows, if the kernel takes it along. */
  second?: string;
  /** Type of the norm's weights, if rows are normed first. */
  norm?: Float;
  epilogue?: Epilogue;
  /** Whether a part of the row is pending. */
  pending?: boolean;
}

/** Rows of the next part of the matrix. */
export const SECOND_ROWS = 11;
/** Value of the output before the result is added to it. */
export const BEFORE = 3;

/** Describes a case: `bf16 [1, 88] × [74, 88]ᵀ with SwiGLU, normed first`. */
export function linearText(
  { m, n, k, w, second, norm, pending, epilogue = "store" }: LinearCase,
): string {
  const after = {
    store: "",
    add: " added to a residual",
    swiglu: " with SwiGLU",
  }[epilogue];
  const more = second ? `, and ${second} [${SECOND_ROWS}, ${k}]ᵀ` : "";
  return `${w} [${m}, ${k}] × [${n}, ${k}]ᵀ${more}${after}${
    norm ? ", normed first" : ""
  }${pending ? ", partly pending" : ""}`;
}

/**
 * Makes a case with the constants chosen for the device. The kernel leaves `parts` sums
 * of squares per row.
 *
 * @param largest weight, where dispatch knows it
 */
export function linearCase(
  given: LinearCase,
  { device, random, reference }: CaseTools,
  parts: (n: number, constants: Constants) => number,
  { largest, tolerance = SUM }: { largest?: number; tolerance?: number } = {},
): KernelCase | undefined {
  const { m, k, w: dtype, second, epilogue = "store" } = given;
  const n = given.n + (second ? SECOND_ROWS : 0);
  const swiglu = epilogue === "swiglu", width = swiglu ? n / 2 : n;
  const x = random.tensor("f32", [m, k], 2);
  const w = random.matrix(dtype, [given.n, k]);
  const v = second ? random.matrix(second, [SECOND_ROWS, k]) : undefined;
  const norm = given.norm && random.tensor(given.norm, [k], 0.5, 1);
  const { constants, two } = chooseLinear({
    ...{ m, n: given.n, k, format: formatNamed(dtype), largest },
    ...{ norm: !!norm, swiglu, fixed: true },
    other: second ? { n: SECOND_ROWS, format: formatNamed(second) } : undefined,
  }, device);
  if (second && !two) return undefined;
  if (given.pending && !device.subgroupSize) return undefined;
  const later = given.pending ? pendingPart(toF32(x), random) : undefined;
  const left = parts(n, constants);
  return {
    what: linearText(given),
    operands: {
      w,
      ...(v ? { v } : {}),
      x,
      y: room([m, width], epilogue === "add" ? BEFORE : NaN),
      squares: norm ? partialSquares(toF32(x), k) : room([m, left]),
      ...later?.operands,
      ...(norm ? { norm } : {}),
    },
    constants: { ...constants, EPILOGUE: epilogue, ...later?.constants },
    uniforms: { stride: width, column: 0, eps: EPS },
    expected: () => {
      const rows = norm
        ? reference.rmsNormed(later?.whole ?? toF32(x), toF32(norm), EPS)
        : toF32(x);
      const product = reference.linear(rows, stacked(w, v), { m, n, k });
      const y = reference.epilogue(epilogue, product, n, BEFORE);
      const results: Result[] = [
        { of: "y", ...y, tolerance },
        ...later?.results ?? [],
      ];
      if (epilogue !== "add") return results;
      const squares = rowSums("values", n)({
        values: y.values.map((value) => value * value),
      });
      return [...results, {
        of: rowSums("squares", left),
        values: squares,
        norms: squares,
        tolerance,
      }];
    },
  };
}

/** A part of a row `x` that is pending, and what gemv makes of both. */
function pendingPart(x: Float32Array, random: CaseRandom) {
  const scale = pendingConstants(96), k = x.length;
  const later = x.map(() => random.next());
  const whole = x.map((value, i) => value + later[i]);
  const rounding = pendingRounding(scale, { adders: 0, unit: 0.25 }) / SUM;
  const results: Result[] = [
    { of: "flags", values: new Float64Array(4), tolerance: 0 },
    {
      of: "added",
      values: whole,
      norms: x.map((value, i) =>
        Math.abs(value) + Math.abs(later[i]) + rounding
      ),
      tolerance: SUM,
    },
  ];
  return {
    whole,
    results,
    operands: {
      pending: pendingTensor(later, scale, 0.25),
      added: room([1, k]),
      flags: u32Tensor([4], new Uint32Array(4)),
    },
    // Threads that share the row, which no device's constants forbid.
    constants: {
      ...{ ...scale, PENDING: 1, NORM: 1 },
      ...{ SPREAD: "k", WALKERS: 1, W_IN: "buffer" },
    },
  };
}

/** The values of a matrix and, below them, of its next part. */
export function stacked(
  w: Matrix<CpuTensor>,
  v?: Matrix<CpuTensor>,
): Float32Array {
  const first = matrixToF32(w);
  if (!v) return first;
  const second = matrixToF32(v);
  const all = new Float32Array(first.length + second.length);
  all.set(first);
  all.set(second, first.length);
  return all;
}

/** Eight partial sums of squares per row of `k`, as left by the preceding kernel. */
export function partialSquares(x: Float32Array, k: number): CpuTensor {
  const m = x.length / k, data = new Float32Array(8 * m);
  x.forEach((v, at) => data[8 * Math.floor(at / k) + at % k % 8] += v * v);
  return { dtype: "f32", shape: [m, 8], data };
}
