import { chooseExpertGemm } from "../lib/dispatch/experts.ts";
import type { LinearTarget } from "../lib/dispatch/keys.ts";
import { formatNamed } from "../lib/formats/mod.ts";
import { matrixToF32, toF32 } from "../lib/formats/tensor.ts";
import { BLOCKS, FLOATS, HALF_SUM, room, SUM, u32Tensor } from "./case.ts";
import { linearName } from "./cost.ts";
import { defineKernel } from "./define.ts";
import { deriveTile, TILE, tileConstants, tileNeeds } from "./gemm.ts";
import { NONE } from "./sort_experts.ts";

interface GroupedCase {
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
  /** The largest weight, if the matmul may be in f16. */
  largest?: number;
}

/**
 * Rows that are grouped by expert, each group times the matrix of its expert: the Linear
 * layers of a prompt. A tile of BM rows has one expert, see sort_experts.ts; it is a
 * matmul of its own. Tiles that no expert has, and those of experts that `b` does not
 * hold, are left as they are.
 *
 * `b` holds EXPERTS experts from number `first` on, `n` rows for each, the first at row
 * `base`. F16, SCALED and C_FOURS are as in gemm.ts. PAIRS and COLUMNS, how many rows
 * are not padding and how many columns they get, matter only to the cost.
 */
export const expertGemm = defineKernel<GroupedCase>({
  name: "expertGemm",
  buffers: ({ F16, SCALED, C_FOURS }) => ({
    a: `padded k as ${F16 ? "half" : "span"}`,
    b: "held k as strip",
    ...(SCALED ? { scales: "padded" } : {}),
    groups: "tiles",
    c: `inout padded stride as ${C_FOURS ? "span" : "scalar"}`,
  }),
  uniforms: { m: "u32", n: "u32", first: "u32", base: "u32", column: "u32" },
  constants: { ...tileConstants, EXPERTS: 1, C_FOURS: 1, PAIRS: 0, COLUMNS: 0 },
  derive: deriveTile,
  tuning: {
    of: "linear",
    // BM is that of the tiles that rows were grouped into.
    grid: { BN: [32, 64, 128], BK: [16, 32], TM: [4, 8], TN: [4, 8] },
    needs: (target: LinearTarget, constants) =>
      tileNeeds(target, { ...constants, BM: target.m }),
  },
  grid: ({ n, tiles }, { BN }) => [Math.ceil(n / BN), 1, tiles],
  cost: (call) => {
    const { dispatch: { dims: { padded } }, constants, k } = call;
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
        padded * k * call.size("a") + 4 * padded * columns,
    });
  },
  body: /* wgsl */ `
fn offsets(tile: u32) -> vec3u {
  let expert = groups[tile] - u.first;
  return vec3u(tile * BM * u.k, (u.base + expert * u.n) * u.k, tile * BM * u.stride);
}
fn skips(tile: u32) -> bool { return groups[tile] - u.first >= EXPERTS; }
fn splits_of_k(grid: vec3u) -> u32 { return 1u; }
${TILE}`,
  cases: [
    ...FLOATS.flatMap((w) => [
      { groups: [0, 0, 2, 3, -1], experts: 4, n: 37, k: 19, w },
      { groups: [1, 1, -1], experts: 2, n: 768, k: 256, w },
    ]),
    ...BLOCKS.map((w) => ({
      ...{ groups: [0, 1, 1, 2], experts: 3, n: 24, k: 256, w },
    })),
    {
      ...{ groups: [0, 1, 2, 3, 4, 5, -1], experts: 6, n: 34, k: 64 },
      ...{ w: "q8_0", held: [2, 3], second: true },
    },
    {
      ...{ groups: [2, 0, 1], experts: 3, n: 66, k: 128, w: "bf16" },
      ...{ second: true, largest: 0.5 },
    },
    { groups: [0, 1, -1], experts: 2, n: 64, k: 256, w: "q4_k", largest: 0.5 },
  ],
  makeCase(given, { device, random, reference }) {
    const { groups, experts, n, k, w: dtype, second, largest } = given;
    if (largest !== undefined && !device.f16) return undefined;
    const [first, count] = given.held ?? [0, experts];
    const format = formatNamed(dtype), pairs = 40 * experts;
    const { constants, headroom } = chooseExpertGemm(
      { pairs, experts, n, k, format, largest },
      device,
    );
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
        headroom ? " in f16" : ""
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
      uniforms: { m: BM, n, first, base, column },
      expected: () => {
        const rows = toF32(a), weights = matrixToF32(b), { data } = scales;
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
          tolerance: headroom ? HALF_SUM : SUM,
        }];
      },
    };
  },
});
