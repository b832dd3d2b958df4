import { bf16 } from "../../lib/formats/bf16.ts";
import { assert, assertEquals } from "@std/assert";
import { gemm } from "../../kernels/gemm.ts";
import { toF16 } from "../../kernels/to_f16.ts";
import { mostThreads, rowThreads } from "../../lib/dispatch/capabilities.ts";
import { chooseLinear } from "../../lib/dispatch/linear.ts";
import { type CpuTensor, toF32 } from "../../lib/formats/tensor.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
import { gpuTest, lanes, type Trial } from "../support/gpu.ts";
import { assertSums, linear, rmsNormed } from "../support/reference.ts";

const eps = 1e-6;

function run(
  trial: Trial,
  x: CpuTensor,
  norm: CpuTensor | undefined,
  headroom: number,
  { subgroups = true, WORKGROUP = 128 } = {},
) {
  const [m, k] = x.shape, given = trial.upload(x);
  const y = trial.filled([m, k], NaN, "f16"), scales = trial.filled([m]);
  const operands = { x: given, norm: norm ? trial.upload(norm) : given };
  trial.run(toF16, { ...operands, y, scales }, {
    constants: {
      NORM: norm ? 1 : 0,
      WORKGROUP,
      ...lanes(trial.gpu, subgroups),
    },
    uniforms: { eps, headroom },
  });
  return { y, scales };
}

gpuTest(
  "toF16 scales rows of any magnitude into range",
  async (_, trial) => {
    const { random } = trial;
    for (const magnitude of [1e-20, 1e-3, 1, 70000, 1e12]) {
      for (const k of [4, 80, 1028]) {
        const m = random.int(1, 5), headroom = 2 ** random.int(-3, 14);
        const x = random.tensor("f32", [m, k], magnitude);
        x.data[random.int(0, x.data.length - 1)] *= 1000;
        const norm = random.pick([true, false])
          ? random.tensor("bf16", [k], 0.5, 1)
          : undefined;
        const subgroups = random.pick([true, false]);
        const WORKGROUP = Math.min(
          random.pick([128, 256, 512, 1024]),
          mostThreads(trial.gpu),
        );
        const message = JSON.stringify({
          ...{ subgroups, WORKGROUP },
          magnitude,
          m,
          k,
          headroom,
          norm: !!norm,
        });
        const how = { subgroups, WORKGROUP };
        const { y, scales } = run(trial, x, norm, headroom, how);
        const expected = norm
          ? rmsNormed(toF32(x), toF32(norm), eps)
          : Float64Array.from(toF32(x));
        const [halves, factors] = [await y.read(), await scales.read()];
        for (let row = 0; row < m; row++) {
          const part = halves.subarray(row * k, (row + 1) * k);
          const high = part.reduce((a, v) => Math.max(a, Math.abs(v)), 0);
          const most = `row ${row} of ${message} has ${high}`;
          assert(high >= headroom && high <= 2 * headroom, most);
          const values = Float64Array.from(part, (v) => v * factors[row]);
          // f16 keeps 11 bits, down to 2⁻²⁴ of the scaled range.
          const absolute = 2 ** -24 * factors[row];
          const wanted = expected.subarray(row * k, (row + 1) * k);
          assertAllClose(
            values,
            wanted,
            { absolute, relative: 2 ** -10.9 },
            message,
          );
        }
      }
    }
  },
);

gpuTest("toF16 scales sums of splits into range", async (_, trial) => {
  // Sums are far smaller than what is added up, and threads past the end have nothing.
  for (const [k, WORKGROUP] of [[4, 128], [1028, 128], [1024, 256]]) {
    if (WORKGROUP > mostThreads(trial.gpu)) continue;
    const SPLITS = trial.random.int(2, 8), headroom = 64, m = 2;
    const fill = (rows: number, value: number) =>
      trial.upload(trial.random.filled("f32", [rows, k], value));
    const x = fill(m, -1000), partial = fill(SPLITS * m, 1000.5 / SPLITS);
    const y = trial.filled([m, k], NaN, "f16"), scales = trial.filled([m]);
    trial.run(toF16, { partial, x, norm: fill(1, 1), y, scales }, {
      constants: { SPLITS, WORKGROUP, ...lanes(trial.gpu, true) },
      uniforms: { eps, headroom },
    });
    const what = `${k} in ${SPLITS} splits, ${WORKGROUP} threads`;
    const [halves, sums] = [await y.read(), await x.read()];
    assert(halves.every((v) => v >= 64 && v <= 128), `${what}: ${halves[0]}`);
    assert(sums.every((v) => Math.abs(v - 0.5) < 1e-3), `${what}: ${sums[0]}`);
  }
});

gpuTest("toF16 leaves a row of zeros at zero", async (_, trial) => {
  const x = trial.random.filled("f32", [2, 8], 0);
  const { y, scales } = run(trial, x, undefined, 16);
  assertAllClose(await y.read(), new Float32Array(16));
  assert((await scales.read()).every(Number.isFinite));
});

gpuTest(
  "gemm multiplies scaled f16 rows within the precision of f16",
  async (gpu, trial) => {
    if (!gpu.f16) return; // such a gemm is never chosen then
    const { random } = trial;
    for (const [magnitude, largest] of [[1, 0.1], [1e6, 3], [1e-6, 100]]) {
      const m = 70, n = 52, k = 100;
      const x = random.tensor("f32", [m, k], magnitude);
      x.data[5] *= 1000;
      const w = random.tensor("bf16", [n, k], largest);
      const { headroom, constants } = chooseLinear({
        m,
        n,
        k,
        format: bf16,
        norm: false,
        swiglu: false,
        largest,
      }, gpu);
      assert(headroom, `${largest}: no headroom`);
      const { y, scales } = run(trial, x, undefined, headroom);
      const c = trial.filled([m, n]);
      const operands = { a: y, b: trial.upload(w), scales, c };
      trial.run(gemm, operands, {
        constants: { ...constants, SPLITS: 1 },
        uniforms: { stride: n, column: 0 },
      });
      const expected = linear(toF32(x), toF32(w), { m, n, k });
      assertSums(await c.read(), expected, `${magnitude} × ${largest}`, 1e-2);
    }
  },
);

Deno.test("few rows become f16 by more threads, as many as the device allows", () => {
  const limits = {
    maxComputeWorkgroupStorageSize: 16384,
    maxComputeInvocationsPerWorkgroup: 1024,
  };
  const least = { ...limits, maxComputeInvocationsPerWorkgroup: 256 };
  const threads = (m: number, k: number, how = {}) =>
    rowThreads(m, k, { limits, ...how });
  assertEquals([256, 1024, 2560, 12288].map((k) => threads(64, k)), [
    ...[128, 256, 1024, 1024],
  ]);
  assertEquals([4096, 12288].map((k) => threads(65, k)), [128, 512]);
  assertEquals(threads(64, 12288, { limits: least }), 256);
  assertEquals(threads(64, 4096, { adapterClass: "software" }), 128);
});
