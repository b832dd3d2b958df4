import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { peakFma } from "../../kernels/peak_fma.ts";
import { openDevice } from "../../lib/device/open_device.ts";
import { tune } from "../../lib/tools/tune/tune.ts";
import { calibrated, periodBounds, untimed } from "../../lib/webgpu/clock.ts";
import type { Gpu } from "../../lib/webgpu/device.ts";
import { Plan } from "../../lib/webgpu/plan.ts";
import { Tensor } from "../../lib/webgpu/tensor.ts";
import { timePlan } from "../../lib/webgpu/timing.ts";
import { clockedGpu } from "../support/clocked_gpu.ts";
import { gpuTest } from "../support/gpu.ts";

const choiceOf = (gpu: Gpu) =>
  gpu.choices.find(({ what }) => what === "clock of timestamps");

/** The times of passes of one dispatch of 5 ms. */
async function times(gpu: Gpu): Promise<number[]> {
  using y = Tensor.create(gpu, "u32", [4]);
  using plan = new Plan(gpu);
  plan.add(peakFma, { y }, { uniforms: { rounds: 1, groups: 1 } });
  return await timePlan(gpu, plan, 3);
}

for (const period of [1, 10, 40, 1000 / 24, 250]) {
  const named = Number(period.toPrecision(4));
  gpuTest(`ticks of ${named} ns become milliseconds`, async () => {
    const clock = { dispatchMs: () => 5, period };
    using gpu = await openDevice({ gpu: clockedGpu(clock) });
    assertEquals(choiceOf(gpu), undefined); // only if something is timed
    for (const ms of await times(gpu)) {
      assert(Math.abs(ms - 5) < 0.1, `${ms} ms, must be 5`);
    }
    const { period: found } = await calibrated(gpu);
    // A period that no driver is known for stays as measured.
    if (period !== 250) assertEquals(found, period);
    assertMatch(`${choiceOf(gpu)!.value}`, /^[\d.]+ ns per tick$/);
    assertMatch(choiceOf(gpu)!.reason, /^measured against the wall clock: /);
  });
}

gpuTest("this adapter's ticks are of a known length", async (gpu) => {
  if (!gpu.timestamps) return;
  const { period, resolution } = await calibrated(gpu);
  assert(period >= 1 && resolution <= 4096, `${period} ns, ${resolution} ns`);
  assertEquals(await calibrated(gpu), { period, resolution });
});

gpuTest(
  "a clock that moves in long steps is not used, with the reason",
  async () => {
    const coarse = () => clockedGpu({ dispatchMs: () => 5, stepNs: 65536 });
    using gpu = await openDevice({ gpu: coarse() });
    assertEquals(gpu.timestamps, true);
    const { resolution } = await calibrated(gpu);
    assertEquals([gpu.timestamps, resolution % 65536], [false, 0]);
    assertEquals(choiceOf(gpu)!.value, "not used");
    assertEquals(await untimed(gpu), choiceOf(gpu)!.reason);
    assertMatch(
      await untimed(gpu),
      /^timestamps have steps of \d+ ns, must be/,
    );
    await assertRejects(() => times(gpu), Error, "Cannot time on the GPU: ");
    await assertRejects(
      () => tune("models/stories-3m", { gpu: coarse(), dryRun: true }),
      Error,
      " ns, must be at most 4096, kernels cannot be compared",
    );
  },
);

Deno.test("a tick's nanoseconds lie between what the wall clock allows", () => {
  const at = (submitted: number, ticks: bigint, done: number) => ({
    ...{ submitted, ticks, done },
  });
  // 100 to 120 ms for 10 million ticks.
  assertEquals(periodBounds(at(0, 5n, 10), at(110, 10_000_005n, 120)), {
    low: 10,
    high: 12,
  });
  const still = periodBounds(at(0, 5n, 10), at(110, 5n, 120));
  assertEquals(still, { low: 0, high: Infinity });
});
