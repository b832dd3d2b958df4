import { assertEquals } from "@std/assert";
import { FMA_ROUND, peakFma } from "../../kernels/peak_fma.ts";
import type { Tensor } from "../../lib/webgpu/tensor.ts";
import { showWgsl } from "../../lib/webgpu/kernel.ts";
import { gpuTest } from "../support/gpu.ts";
import { checkCase } from "../support/kernel_case.ts";

gpuTest(
  "peakFma writes nothing, for any number of rounds",
  async (_, trial) => {
    for (const half of [false, true]) {
      for (const [groups, rounds] of [[1, 0], [5, 1], [2, 40]]) {
        await checkCase(peakFma, trial, { half, groups, rounds });
      }
    }
  },
);

Deno.test("peakFma does as many operations per round as it declares", () => {
  const y = { dtype: "u32", shape: [4] } as unknown as Tensor;
  for (const [F16, width] of [[0, 4], [1, 2]]) {
    const wgsl = showWgsl(peakFma, { y }, { constants: { F16 } });
    const fmas = wgsl.split("= fma(").length - 1;
    const { WORKGROUP } = peakFma.constants;
    assertEquals(2 * fmas * width * Number(WORKGROUP), FMA_ROUND);
  }
});
