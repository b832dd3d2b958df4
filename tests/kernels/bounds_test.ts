/**
 * No kernel's index is outside its arrays. Implementations would keep it inside, each in its
 * own way, and none says so.
 */
import { assert, AssertionError, assertRejects } from "@std/assert";
import { defineKernel } from "../../kernels/define.ts";
import { KERNELS } from "../../kernels/list.ts";
import { reference, runCase } from "../../lib/check/kernel_case.ts";
import type { Capabilities } from "../../lib/dispatch/capabilities.ts";
import { HALF_MATRICES } from "../../lib/dispatch/matrices.ts";
import { checkingBounds } from "../support/bounds.ts";
import { ALL_CASES, gpuTest, someOf } from "../support/gpu.ts";
import { withMatrices } from "../support/subgroup_matrices.ts";

/**
 * Cases of a kernel that run, from a random one on: a software adapter compiles each for
 * seconds. QWEN3_ALL_CASES=1 runs all.
 */
const MOST_CASES = ALL_CASES ? Infinity : 1;

/** Reads and writes beside its arrays if told so. */
const straying = defineKernel({
  name: "straying",
  buffers: { x: "n", y: "out n" },
  uniforms: { reads: "u32", writes: "u32", place: "u32" },
  constants: { ROOM: 4 },
  grid: () => [1, 1, 1],
  body: /* wgsl */ `
var<workgroup> rows: array<array<f32, ROOM>, 2>;
@compute @workgroup_size(1)
fn main() {
  rows[1][u.place] = x_at(u.reads);
  y_put(u.writes, rows[1u][u.place]);
}`,
  cases: [],
  makeCase: () => undefined,
});

gpuTest("an index outside is found, and its kernel named", async (gpu) => {
  const checked = checkingBounds(gpu);
  const x = { dtype: "f32", shape: [4], data: Float32Array.of(1, 2, 3, 4) };
  const run = (uniforms: Record<string, number>) =>
    runCase(
      checked.gpu,
      straying,
      {
        ...{ what: "", operands: { x, y: x }, uniforms, expected: () => [] },
      } as Parameters<typeof runCase>[2],
    );
  await run({ reads: 3, writes: 3, place: 3 });
  await checked.assertInside("inside");
  for (
    const [wrong, message] of [
      [{ reads: 4 }, "x[u.reads] is at 4 of 4"],
      [{ writes: 2 ** 32 - 1 }, "y[at] is at 4294967295 of 4"],
      [{ place: 7 }, "rows[u.place] is at 7 of 4"],
    ] as const
  ) {
    await run({ reads: 0, writes: 0, place: 0, ...wrong });
    await assertRejects(
      () => checked.assertInside("a test"),
      AssertionError,
      `a test: straying: ${message}`,
    );
    await checked.assertInside("forgotten");
  }
});

for (const kernel of someOf(KERNELS, 12)) {
  gpuTest(`${kernel.name} stays inside in its cases`, async (gpu, trial) => {
    // Matrices lie in their blocks by constants; which blocks those are is checked.
    const checked = checkingBounds(withMatrices(gpu));
    const hardware: Capabilities & { f16: boolean } = {
      limits: gpu.limits,
      f16: gpu.f16,
      compiler: gpu.compiler,
      adapterClass: "NVIDIA, large cache",
      subgroupSize: 0,
      subgroupMatrices: [HALF_MATRICES],
    };
    const { random } = trial;
    const made = [checked.gpu, hardware].flatMap((device) =>
      kernel.cases.map((given) => () =>
        kernel.makeCase(given, { device, random, reference })
      )
    );
    const first = random.int(0, made.length - 1);
    let ran = 0;
    for (let i = 0; i < made.length && ran < MOST_CASES; i++) {
      const one = made[(first + i) % made.length]();
      if (!one) continue;
      await runCase(checked.gpu, kernel, one);
      await checked.assertInside(one.what);
      ran++;
    }
    assert(ran > 0);
  });
}
