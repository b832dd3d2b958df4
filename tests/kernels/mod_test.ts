/**
 * The list of kernels is complete, and each agrees with the reference in its own cases.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import { findKernel, KERNELS } from "../../kernels/list.ts";
import { compare, passes } from "../../lib/check/kernel_case.ts";
import { toF32 } from "../../lib/formats/tensor.ts";
import { gpuTest, quickGpuTest } from "../support/gpu.ts";
import { checkCase, makeCase } from "../support/kernel_case.ts";

const FOLDER = new URL("../../kernels/", import.meta.url);

/** Kernels by the file that defines them. */
async function definitions(): Promise<[file: string, name: string][]> {
  const found: [string, string][] = [];
  for await (const { name: file } of Deno.readDir(FOLDER)) {
    if (file === "mod.ts" || file === "list.ts") continue;
    const module: Record<string, unknown> = await import(`${FOLDER}${file}`);
    for (const value of Object.values(module)) {
      const { name, body } = Object(value) as { name?: string; body?: string };
      if (typeof body === "string") found.push([file, name!]);
    }
  }
  return found;
}

Deno.test("every kernel of the folder is listed once, by the name of its file", async () => {
  const found = await definitions();
  assertEquals(
    KERNELS.map(({ name }) => name),
    found.map(([, name]) => name).sort(),
  );
  for (const [file, name] of found) {
    assertEquals(findKernel(file.replace(/\.ts$/, ""))?.name, name);
  }
});

Deno.test("every kernel has a test file", async () => {
  for (const [file] of await definitions()) {
    const test = file.replace(/\.ts$/, "_test.ts");
    const info = await Deno.stat(new URL(test, import.meta.url)).catch(() => 0);
    assert(info, `tests/kernels/${test} is missing`);
  }
});

for (const kernel of KERNELS) {
  const [first, ...others] = kernel.cases;
  quickGpuTest(`${kernel.name} agrees in its first case`, async (_, trial) => {
    await checkCase(kernel, trial, first);
  });
  if (!others.length) continue;
  gpuTest(`${kernel.name} agrees in its other cases`, async (_, trial) => {
    for (const given of others) await checkCase(kernel, trial, given);
  });
}

gpuTest("a kernel that does nothing fails each of its cases", (_, trial) => {
  for (const kernel of KERNELS) {
    if (/^peak/.test(kernel.name)) continue; // these write nothing
    for (const given of kernel.cases) {
      const one = makeCase(kernel, trial, given);
      if (!one) continue;
      const buffers = Object.fromEntries(
        Object.entries(one.operands).map(([name, tensor]) => [
          name,
          tensor.dtype === "u32" ? tensor.data : toF32(tensor),
        ]),
      );
      const failed = one.expected().some((result) =>
        !passes(compare(result, buffers))
      );
      assert(failed, `${kernel.name}: ${one.what}`);
    }
  }
});
