import { addPending } from "../../kernels/add_pending.ts";
import { pendingTensor } from "../../kernels/pending.ts";
import { runCase } from "../../lib/check/kernel_case.ts";
import type { CpuTensor } from "../../lib/formats/tensor.ts";
import { assert, assertEquals } from "@std/assert";
import { gpuTest } from "../support/gpu.ts";
import { checkCase, makeCase } from "../support/kernel_case.ts";

gpuTest("addPending adds to rows of any length", async (_, trial) => {
  for (const k of [1, 256, 257, trial.random.int(2, 3000)]) {
    await checkCase(addPending, trial, { k });
  }
});

gpuTest(
  "addPending makes a row NaN of which something did not fit",
  async (gpu, trial) => {
    const one = makeCase(addPending, trial, { k: 40 })!;
    const { pending } = one.operands as Record<string, CpuTensor>;
    pending.data[80] = 1;
    const { x, flags } = await runCase(gpu, addPending, one);
    assertEquals(Array.from(flags), [1, 0, 1, 0]);
    assert(Array.from(x).every(Number.isNaN));
  },
);

gpuTest("addPending adds large and small sums", async (gpu, trial) => {
  const one = makeCase(addPending, trial, { k: 3 })!;
  const sums = [200_000.125, -(2 ** -20), -131_071.5];
  const x = { dtype: "f32", shape: [1, 3], data: new Float32Array(3) } as const;
  const pending = pendingTensor(sums, one.constants!);
  const operands = { ...one.operands, x, pending };
  const { x: after } = await runCase(gpu, addPending, { ...one, operands });
  assertEquals(Array.from(after), sums);
});
