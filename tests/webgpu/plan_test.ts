import { assertEquals } from "@std/assert";
import type { Kernel } from "../../lib/webgpu/kernel.ts";
import { Plan } from "../../lib/webgpu/plan.ts";
import { gpuTest } from "../support/gpu.ts";

/** A kernel whose result depends on the order of its calls. */
const follow: Kernel = {
  name: "follow",
  buffers: { x: "inout n" },
  uniforms: { next: "u32" },
  constants: {},
  grid: () => [1, 1, 1],
  body: `
@compute @workgroup_size(1)
fn main() { x[0] = (x[0] * 31u + u.next) % 65521u; }`,
};

gpuTest(
  "a long plan is submitted in pieces, in order",
  async (gpu, trial) => {
    const { queue } = gpu.device;
    const submit = queue.submit.bind(queue);
    for (const [dispatches, pieces] of [[1, 1], [8, 1], [9, 2], [50, 3]]) {
      const x = trial.u32(1);
      using plan = new Plan(gpu);
      let expected = 1, submitted = 0;
      for (let next = 0; next < dispatches; next++) {
        plan.add(follow, { x }, { uniforms: { next } });
        expected = (expected * 31 + next) % 65521;
      }
      queue.submit = (commands) => {
        submitted++;
        submit(commands);
      };
      try {
        plan.run();
      } finally {
        queue.submit = submit;
      }
      assertEquals(submitted, pieces);
      assertEquals((await x.read())[0], expected);
    }
  },
);
