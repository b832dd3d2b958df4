import { feedForward } from "../../kernels/feed_forward.ts";
import { BLOCKS, FLOATS } from "../../kernels/case.ts";
import { runCase } from "../../lib/check/kernel_case.ts";
import type { CpuTensor } from "../../lib/formats/tensor.ts";
import { assert, assertEquals } from "@std/assert";
import { gpuTest } from "../support/gpu.ts";
import { checkCase, makeCase } from "../support/kernel_case.ts";

gpuTest(
  "feedForward multiplies by weights of any types",
  async (_, trial) => {
    for (const w of FLOATS) {
      for (const down of FLOATS) {
        const sizes = { hidden: 64, inner: 32 * trial.random.int(1, 6) };
        await checkCase(feedForward, trial, { ...sizes, w, down, norm: "f32" });
      }
    }
    for (const w of BLOCKS) {
      const sizes = { hidden: 256, inner: 256 };
      await checkCase(feedForward, trial, {
        ...{ ...sizes, w, down: w, norm: "bf16" },
      });
    }
  },
);

gpuTest("feedForward takes rows of many lengths", async (_, trial) => {
  for (const hidden of [32, 96, 320, 1056, 32 * trial.random.int(2, 90)]) {
    await checkCase(feedForward, trial, {
      ...{ hidden, inner: 64, w: "bf16", down: "bf16", norm: "bf16" },
    });
  }
});

gpuTest(
  "feedForward gives the same for every choice of threads and columns",
  async (_, trial) => {
    let tried = 0;
    for (const WORKGROUP of [32, 64, 128, 256, 512, 1024]) {
      for (const COLUMNS of [16, 32, 64]) {
        for (const STEPS of [1, 3, 8]) {
          const given: Parameters<typeof feedForward.makeCase>[0] = {
            ...{ hidden: 1024, inner: 192, w: "bf16", down: "bf16" },
            ...{ norm: "bf16", layout: { WORKGROUP, COLUMNS, STEPS } },
          };
          if (makeCase(feedForward, trial, given)) tried++;
          await checkCase(feedForward, trial, given);
        }
      }
    }
    // With lanes of 8, a workgroup of 1,024 threads has too few columns.
    assert(tried >= 30, `${tried}`);
  },
);

gpuTest("feedForward keeps the digits of small rows", async (_, trial) => {
  for (const scale of [1e-12, 1e-5, 1, 1e3]) {
    await checkCase(feedForward, trial, {
      ...{ hidden: 256, inner: 64, w: "bf16", down: "bf16", norm: "bf16" },
      scale,
    });
  }
});

gpuTest(
  "feedForward gives the same bits every time, and notes what does not fit",
  async (gpu, trial) => {
    const one = makeCase(feedForward, trial, {
      ...{ hidden: 256, inner: 1024, w: "bf16", down: "bf16", norm: "f32" },
    })!;
    const first = await runCase(gpu, feedForward, one);
    for (let i = 0; i < 5; i++) {
      assertEquals(await runCase(gpu, feedForward, one), first);
    }
    assertEquals(first.pending[512], 0);
    const { x, norm } = one.operands as Record<string, CpuTensor>;
    for (const bad of [NaN, Infinity]) {
      x.data[17] = bad;
      const { pending } = await runCase(gpu, feedForward, one);
      assertEquals(pending[512], 1);
    }
    x.data[17] = 1;
    norm.data.fill(3e6);
    const { pending } = await runCase(gpu, feedForward, one);
    assertEquals(pending[512], 1);
  },
);
