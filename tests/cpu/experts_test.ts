import { assert, assertEquals } from "@std/assert";
import { CpuOps } from "../../lib/cpu/ops.ts";
import {
  type CpuTensor,
  f32,
  matrixToF32,
  toF32,
} from "../../lib/formats/tensor.ts";
import type { Matrix } from "../../lib/formats/matrix.ts";
import { withPlanes } from "../../lib/formats/matrix.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
import {
  type Mixture,
  mixtureConfig,
  MIXTURES,
  randomMixture,
  runMixture,
} from "../support/experts.ts";
import { randomTest } from "../support/random.ts";

/**
 * A mixture in float64, expert by expert as its definition says. `chosen` must have the
 * best experts, but may choose between two that rounding could exchange.
 */
function reference(
  { hidden, inner, count, used }: Mixture,
  weights: Record<"norm" | "router" | "gateUp" | "down", Matrix<CpuTensor>>,
  x: Float32Array,
  normalized: boolean,
  chosen: Float32Array,
): Float64Array {
  const norm = matrixToF32(weights.norm), router = matrixToF32(weights.router);
  const gateUp = matrixToF32(weights.gateUp), down = matrixToF32(weights.down);
  const dot = (w: Float32Array, row: number, y: ArrayLike<number>) => {
    let sum = 0;
    for (let i = 0; i < y.length; i++) sum += w[row * y.length + i] * y[i];
    return sum;
  };
  const out = Float64Array.from(x);
  for (let begin = 0; begin < x.length; begin += hidden) {
    const row = x.slice(begin, begin + hidden);
    const squares = row.reduce((sum, v) => sum + v * v, 0);
    const scale = 1 / Math.sqrt(squares / hidden + 1e-6);
    const normed = Float64Array.from(row, (v, i) => v * scale * norm[i]);
    const odds = Array.from(
      { length: count },
      (_, e) => Math.exp(dot(router, e, normed)),
    );
    const at = 2 * begin / hidden * used;
    const best = [...chosen.subarray(at, at + used)];
    const sorted = odds.toSorted((a, b) => b - a);
    assertEquals(new Set(best).size, used);
    best.forEach((e, s) => assert(odds[e] >= sorted[s] * (1 - 1e-5)));
    const among = normalized ? best : odds.map((_, e) => e);
    const total = among.reduce((sum, e) => sum + odds[e], 0);
    for (const e of best) {
      const gated = Float64Array.from({ length: inner }, (_, i) => {
        const g = dot(gateUp, e * inner + i, normed);
        const u = dot(gateUp, (count + e) * inner + i, normed);
        return g / (1 + Math.exp(-g)) * u;
      });
      for (let c = 0; c < hidden; c++) {
        const y = dot(down, e * hidden + c, gated);
        out[begin + c] += odds[e] / total * y;
      }
    }
  }
  return out;
}

for (const [name, mixture] of Object.entries(MIXTURES)) {
  randomTest(`a mixture of experts on the CPU: ${name}`, (random) => {
    const weights = randomMixture(random, mixture);
    for (const normalized of [true, false]) {
      const config = mixtureConfig(mixture, normalized);
      for (const rows of [1, 5, 40]) {
        const x = random.tensor("f32", [rows, mixture.hidden], 2);
        for (const simd of [false, true]) {
          using ops = new CpuOps(config, { simd, threads: 2 });
          const copy = (tensor: CpuTensor): CpuTensor => {
            const { dtype, shape, data } = tensor;
            const own = ops.tensor(dtype, shape);
            own.data.set(data);
            return own;
          };
          const { norm, router, gateUp, down } = weights;
          const own = {
            norm: withPlanes(norm, copy),
            router: withPlanes(router, copy),
            gateUp: withPlanes(gateUp, copy),
            down: withPlanes(down, copy),
          };
          const [, chosen, , sum] = runMixture(ops, own, copy(x));
          const expected = reference(
            mixture,
            weights,
            toF32(x),
            normalized,
            f32(chosen),
          );
          assertAllClose(
            f32(sum),
            expected,
            { absolute: 2e-5, relative: 2e-5 },
            `${rows} rows, simd: ${simd}, normalized: ${normalized}`,
          );
        }
      }
    }
  });
}

Deno.test("of equal scores the CPU chooses the first", () => {
  const [mixture] = Object.values(MIXTURES);
  using ops = new CpuOps(mixtureConfig(mixture), { simd: false });
  const data = Float32Array.of(1, 2, 0, 2, 2, 1, 0);
  const chosen = ops.chooseExperts({ dtype: "f32", shape: [1, 7], data });
  assertEquals([...chosen.data.subarray(0, 3)], [1, 3, 4]);
  for (const weight of chosen.data.subarray(3)) {
    assert(Math.abs(weight - 1 / 3) < 1e-6, `${weight}`);
  }
});
