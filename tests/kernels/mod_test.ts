/**
 * The list of kernels is complete.
 *
 * @module
 */
import { assertEquals } from "@std/assert";
import { findKernel, KERNELS } from "../../kernels/list.ts";

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
