/**
 * Costs and cases of the kernels that multiply rows which are grouped by expert.
 *
 * @module
 */
import { chooseExpertGemm } from "../lib/dispatch/experts.ts";
import { f16ToF32, f32ToF16Bits } from "../lib/dtype.ts";
import { formatNamed } from "../lib/formats/mod.ts";
import { matrixToF32, toF32 } from "../lib/formats/tensor.ts";
import {
  type CaseTools,
  HALF_SUM,
  type KernelCase,
  room,
  SUM,
  u32Tensor,
} from "./case.ts";
import { type Cost, type CostCall, linearName } from "./cost.ts";
import { NONE } from "./sort_experts.ts";

/** Tiles of rows, the expert of each, and the experts' matrices. */
export interface GroupedCase {
  /** The expert of each tile; -1 for tiles that no expert has. */
  groups: number[];
  experts: number;
  n: number;
  k: number;
  w: string;
  /** The first expert that the matrix holds, and how many; all if absent. */
  held?: readonly [first: number, count: number];
  /** Whether the matrix begins with rows of others, and the results in column `n`. */
  second?: boolean;
  /** Rows per expert on average, which decide the size of tiles: 40 if absent. */
  rows?: number;
  /** The largest weight, if the matmul may be in f16. */
  largest?: number;
}

/** What grouped rows cost: `a` times the experts `b`. */
export function groupedCost(call: CostCall, rows: number): Cost[] {
  const { constants, k } = call;
  const [experts, pairs, columns] = ["EXPERTS", "PAIRS", "COLUMNS"]
    .map((name) => Number(constants[name]));
  return call.whole({
    name: linearName(call),
    group: "linear",
    matmul: true,
    shape: `[${pairs}, ${k}] × ${experts} [${k}, ${columns}]`,
    dtypes: `${call.dtype("a")} × ${call.dtype("b")} → f32`,
    flops: 2 * pairs * k * columns,
    bytes: Math.min(pairs, experts) * columns * k * call.size("b") +
      rows * k * call.size("a") + 4 * rows * columns,
  });
}

/** Makes a case of `kernel`; undefined if dispatch chooses the other one. */
export function groupedCase(
  given: GroupedCase,
  { device, random, reference }: CaseTools,
  kernel: "expertGemm" | "expertGemmMatrix",
): KernelCase | undefined {
  const { groups, experts, n, k, w: dtype, second, largest } = given;
  if (largest !== undefined && !device.f16) return undefined;
  const [first, count] = given.held ?? [0, experts];
  const format = formatNamed(dtype), pairs = (given.rows ?? 40) * experts;
  const byMatrix = kernel === "expertGemmMatrix";
  const choice = chooseExpertGemm(
    { pairs, experts, n, k, format, largest },
    byMatrix ? device : { ...device, subgroupMatrices: undefined },
  );
  if (choice.kernel !== kernel) return undefined;
  const { constants, headroom } = choice;
  const BM = Number(constants.BM), padded = BM * groups.length;
  const base = second ? count * n : 0, column = second ? n : 0;
  const stride = column + n;
  const a = random.tensor(
    headroom ? "f16" : "f32",
    [padded, k],
    headroom ?? 2,
  );
  const b = random.matrix(dtype, [base + count * n, k], largest);
  const scales = random.tensor("f32", [padded], 0.5, 1);
  const tiles = Uint32Array.from(groups, (e) => e < 0 ? NONE : e);
  return {
    what: `${dtype} [${padded}, ${k}] × ${count} of ${experts} [${n}, ${k}]ᵀ${
      byMatrix ? " by tensor cores" : headroom ? " in f16" : ""
    }`,
    operands: {
      a,
      b,
      scales,
      groups: u32Tensor([tiles.length], tiles),
      c: room([padded, stride]),
    },
    constants: {
      ...constants,
      EXPERTS: count,
      C_FOURS: n % 4 === 0 ? 1 : 0,
    },
    uniforms: { n, first, base, column, ...(byMatrix ? {} : { m: BM }) },
    expected: () => {
      const rows = toF32(a), { data } = scales;
      const exact = matrixToF32(b);
      const weights = byMatrix
        ? exact.map((v) => f16ToF32(f32ToF16Bits(v)))
        : exact;
      if (headroom) {
        rows.forEach((v, i) => rows[i] = v * data[Math.floor(i / k)]);
      }
      const values = new Float64Array(padded * stride).fill(NaN);
      const norms = new Float64Array(padded * stride).fill(1);
      groups.forEach((e, tile) => {
        if (e < first || e >= first + count) return;
        const at = base + (e - first) * n;
        const y = reference.linear(
          rows.subarray(tile * BM * k, (tile + 1) * BM * k),
          weights.subarray(at * k, (at + n) * k),
          { m: BM, n, k },
        );
        for (let i = 0; i < BM * n; i++) {
          const to = (tile * BM + Math.floor(i / n)) * stride + column +
            i % n;
          values[to] = y.values[i];
          norms[to] = y.norms[i];
        }
      });
      return [{
        of: "c",
        values,
        norms,
        // Tensor cores sum in f32.
        tolerance: headroom && !byMatrix ? HALF_SUM : SUM,
      }];
    },
  };
}
