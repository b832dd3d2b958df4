/** What an iteration of `deno bench` times, with a GPU that only records calls. */
import { assertEquals } from "@std/assert";
import { iterate } from "../../bench/plans.ts";
import type { Gpu } from "../../lib/webgpu/device.ts";
import type { Plan } from "../../lib/webgpu/plan.ts";

/** What happens in one iteration of `batch` runs of a plan of three dispatches. */
async function iteration(batch: number, readsAtOnce: boolean) {
  const events: string[] = [];
  const device = {
    createCommandEncoder() {
      let dispatches = 0;
      return {
        beginComputePass: () => ({
          dispatchWorkgroups: () => dispatches++,
          end() {},
        }),
        finish() {
          events.push(`encoded ${dispatches}`);
          return dispatches;
        },
      };
    },
    queue: {
      submit: ([dispatches]: number[]) => events.push(`submit ${dispatches}`),
      onSubmittedWorkDone() {
        events.push("wait");
        return new Promise<void>((resolve) =>
          setTimeout(() => {
            events.push("slept");
            resolve();
          }, 0)
        );
      },
    },
  };
  const gpu = { device, readsAtOnce, check() {} };
  const plan = {
    seal() {},
    encode(pass: GPUComputePassEncoder) {
      for (let i = 0; i < 3; i++) pass.dispatchWorkgroups(1);
    },
  };
  await iterate(gpu as unknown as Gpu, plan as unknown as Plan, batch, {
    start: () => events.push("start"),
    end: () => events.push("end"),
  });
  return events;
}

Deno.test("an iteration times many dispatches with one wait, and no sleep after it", async () => {
  assertEquals(await iteration(64, true), [
    ...["encoded 192", "encoded 192", "submit 192", "wait"],
    ...["start", "submit 192", "wait", "end"],
    ...["slept", "slept"],
  ]);
});

Deno.test("where the call does not wait, an iteration ends when its promise settles", async () => {
  assertEquals(await iteration(2, false), [
    ...["encoded 6", "encoded 6", "submit 6", "wait", "slept"],
    ...["start", "submit 6", "wait", "slept", "end"],
  ]);
});
