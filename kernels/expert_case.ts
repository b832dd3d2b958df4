/**
 * Costs and cases of the kernels that multiply by the matrices of experts.
 *
 * @module
 */
import type { ExpertChoice, ExpertShape } from "../lib/dispatch/experts.ts";
import type { Capabilities } from "../lib/dispatch/capabilities.ts";
import type { Constants, Epilogue } from "../lib/dispatch/shapes.ts";
import type { Matrix } from "../lib/formats/matrix.ts";
import { formatNamed } from "../lib/formats/mod.ts";
import { type CpuTensor, matrixToF32, toF32 } from "../lib/formats/tensor.ts";
import {
  type CaseRandom,
  type CaseTools,
  type Expected,
  type KernelCase,
  type Reference,
  room,
  rowSums,
  SUM,
} from "./case.ts";
import { type Cost, type CostCall, linearName } from "./cost.ts";
import { BEFORE } from "./linear_case.ts";

/** Rows, their experts, and what is done with the products. */
export interface ExpertCase {
  m: number;
  experts: number;
  used: number;
  /** Rows of an expert, gates and ups counted once, and its columns. */
  n: number;
  k: number;
  /** Format of the weights. */
  w: string;
  epilogue: Epilogue;
  /** The first expert that the matrix holds, and how many; all if absent. */
  held?: readonly [first: number, count: number];
  /** In place of those chosen for the device. */
  constants?: Constants;
}

/** Cost of the experts that rows use, and of what is fused around them. */
function expertCost(call: CostCall): Cost[] {
  const { m, k, constants: { EPILOGUE, EXPERTS } } = call;
  const { used, held } = call.dispatch.dims, pairs = m * used;
  const experts = Number(EXPERTS), rows = held / experts;
  const sums = EPILOGUE === "add", gates = EPILOGUE === "swiglu";
  const written = sums ? 2 * m * rows : pairs * rows / (gates ? 2 : 1);
  return call.whole({
    name: linearName(call),
    group: "linear",
    matmul: true,
    shape: `[${m}, ${k}] × ${used} of ${experts} [${k}, ${rows}]`,
    dtypes: `f32 × ${call.dtype("w")} → f32`,
    flops: 2 * pairs * rows * k,
    bytes: Math.min(pairs, experts) * rows * k * call.size("w") +
      4 * ((sums ? pairs : m) * k + written),
    fused: [
      ...(sums ? ["residual add"] : []),
      ...(gates ? ["SwiGLU"] : []),
    ],
  });
}

/** What kernels bind that multiply rows one by one by each of their experts, and its cost. */
export const expertContract = {
  buffers: ({ EPILOGUE }: Constants) => ({
    w: "held k as unit",
    x: "any k as span",
    chosen: "choices used",
    y: "inout any as scalar",
    ...(EPILOGUE === "add" ? { squares: "out m parts" } : {}),
  }),
  // Rows of y are `stride` elements apart; the first row of an expert yields `column`.
  // `n`, the rows of an expert, is used by expert_gemv_int8.ts.
  uniforms: { n: "u32", first: "u32", stride: "u32", column: "u32" },
  cost: expertCost,
} as const;

/** Makes different experts for each row, with weights, as chooseExperts does. */
export function randomChoice(
  random: CaseRandom,
  { m, experts, used }: Pick<ExpertCase, "m" | "experts" | "used">,
): CpuTensor {
  const data = new Float32Array(2 * m * used);
  for (let r = 0; r < m; r++) {
    const left = Array.from({ length: experts }, (_, e) => e);
    for (let s = 0; s < used; s++) {
      const [e] = left.splice(random.int(0, left.length - 1), 1);
      data[2 * r * used + s] = e;
      data[(2 * r + 1) * used + s] = (random.next() + 1) / 2;
    }
  }
  return { dtype: "f32", shape: [2 * m, used], data };
}

/**
 * The products of a case, `[m · used, n]`, or of their sums, `[m, n]`. Experts that the
 * matrix does not hold leave `poison`, and add nothing.
 */
function products(
  { m, used, n, k, epilogue, experts, held: [first, count] = [0, experts] }:
    ExpertCase,
  x: Float32Array,
  w: Matrix<CpuTensor>,
  { data: chosen }: CpuTensor,
  reference: Reference,
): Expected {
  const weights = matrixToF32(w), sums = epilogue === "add";
  const gates = epilogue === "swiglu", rows = sums ? m : m * used;
  const values = new Float64Array(rows * n).fill(sums ? BEFORE : NaN);
  const norms = new Float64Array(rows * n).fill(sums ? BEFORE : 1);
  for (let pair = 0; pair < m * used; pair++) {
    const r = Math.floor(pair / used), s = pair % used;
    const e = chosen[2 * r * used + s] - first;
    if (e < 0 || e >= count) continue;
    const own = (at: number) => weights.subarray(at * n * k, (at + 1) * n * k);
    const from = sums ? pair : r;
    const row = x.subarray(from * k, (from + 1) * k);
    const both = gates ? [own(e), own(count + e)] : [own(e)];
    const [y, up] = both.map((own) =>
      reference.linear(row, own, { m: 1, n, k })
    );
    const made = up
      ? reference.epilogue(
        epilogue,
        {
          values: Float64Array.of(...y.values, ...up.values),
          norms: Float64Array.of(...y.norms, ...up.norms),
        },
        2 * n,
        0,
      )
      : y;
    const weight = chosen[(2 * r + 1) * used + s];
    for (let c = 0; c < n; c++) {
      const at = (sums ? r : pair) * n + c;
      if (sums) {
        values[at] += weight * made.values[c];
        norms[at] = Math.hypot(norms[at], weight * made.norms[c]);
      } else {
        values[at] = made.values[c];
        norms[at] = made.norms[c];
      }
    }
  }
  return { values, norms };
}

/** Makes a case with the constants chosen for the device. */
export function expertCase(
  given: ExpertCase,
  { device, random, reference }: CaseTools,
  { choose, parts, tolerance = SUM }: {
    choose: (shape: ExpertShape, device: Capabilities) => ExpertChoice;
    parts: (n: number, constants: Constants) => number;
    tolerance?: number;
  },
): KernelCase {
  const { m, experts, used, n, k, w: dtype, epilogue } = given;
  const [first, count] = given.held ?? [0, experts];
  const sums = epilogue === "add", gates = epilogue === "swiglu";
  const x = random.tensor("f32", [sums ? m * used : m, k], 2);
  const w = random.matrix(dtype, [count * n * (gates ? 2 : 1), k]);
  const chosen = randomChoice(random, given);
  const shape = { m, used, n, k, format: formatNamed(dtype), epilogue };
  const constants = { ...choose(shape, device).constants, ...given.constants };
  const left = parts(n, constants);
  return {
    what: `${dtype} [${m}, ${k}] × ${used} of ${experts} [${n}, ${k}]ᵀ${
      sums ? ", added to a residual" : gates ? " with SwiGLU" : ""
    }${given.held ? `, ${count} of them here` : ""}`,
    operands: {
      w,
      x,
      chosen,
      y: room([sums ? m : m * used, n], sums ? BEFORE : NaN),
      squares: room([m, left]),
    },
    constants: {
      ...constants,
      EXPERTS: count,
      WHOLE: count === experts ? 1 : 0,
    },
    uniforms: { n: gates ? 2 * n : n, first, stride: n, column: 0 },
    expected: () => {
      const y = products(given, toF32(x), w, chosen, reference);
      const results = [{ of: "y", ...y, tolerance }];
      if (!sums) return results;
      const squaresOf = (values: ArrayLike<number>) =>
        rowSums("values", n)({
          values: Float64Array.from(values, (value) => value * value),
        });
      return [...results, {
        of: rowSums("squares", left),
        values: squaresOf(y.values),
        // Of sums of products that nearly cancel, too.
        norms: squaresOf(y.norms).map((norm) => 2 * norm),
        tolerance,
      }];
    },
  };
}
