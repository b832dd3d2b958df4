import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import {
  compileAhead,
  compileInWorkers,
  shares,
} from "../lib/compile_ahead.ts";
import { isCompiled, type Shader } from "../lib/kernel.ts";
import { gpuTest } from "./gpu.ts";

const shader = (label: string, lines: number): Shader => ({
  label,
  code: `@group(0) @binding(0) var<storage, read_write> x: array<u32>;
@group(0) @binding(1) var<uniform> by: vec4u;
// ${label}
@compute @workgroup_size(1) fn main() {
${"  x[0] = x[0] * 3u + by.x;\n".repeat(lines)}}`,
  types: ["storage", "uniform"],
});

gpuTest("workers and this thread compile everything", async (gpu) => {
  const all = [9, 7, 5, 3, 1].map((n) => shader(`worker ${n}`, n));
  const { value, reason } = await compileInWorkers(gpu, all, 2);
  assertEquals(value, "3 threads", reason);
  for (const one of all) assert(isCompiled(gpu, one), one.label);
  gpu.check();
});

gpuTest(
  "a worker that fails is told, and this thread does its work",
  async (gpu) => {
    const all = [3, 2, 1].map((n) => shader(`failing ${n}`, n));
    const other = Object.create(gpu, { name: { value: "another adapter" } });
    const { value, reason } = await compileInWorkers(other, all, 2);
    assertEquals(value, "one thread");
    assertStringIncludes(
      reason,
      "Cannot compile for another adapter: the adapter is",
    );
    for (const one of all) assert(isCompiled(other, one), one.label);
  },
);

gpuTest(
  "nothing is decided where workers are not known to help",
  async (gpu) => {
    const other = Object.create(gpu, { vulkan: { value: false } });
    const nobody = () => {
      throw new Error("Nobody needs the shaders");
    };
    assertEquals(await compileAhead(other, nobody), undefined);
  },
);

Deno.test("the longest are shared out first, and workers have to open a device", () => {
  const all = [100, 90, 80, 10, 10, 10].map((n) => shader("share", n));
  const lengths = shares(all, 2).map((share) =>
    share.map(({ code }) => code.split("by.x").length - 1)
  );
  assertEquals(lengths, [[100, 10, 10, 10], [90], [80]]);
});
