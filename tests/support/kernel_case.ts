/**
 * Runs and compares cases of kernels in tests, and names those that fail.
 *
 * @module
 */
import { AssertionError } from "@std/assert";
import type { KernelCase } from "../../kernels/case.ts";
import type { LibraryKernel } from "../../kernels/define.ts";
import {
  compare,
  type Comparison,
  passes,
  reference,
  runCase,
} from "../../lib/check/kernel_case.ts";
import type { Trial } from "./gpu.ts";

/** Makes a case of a kernel; undefined where the device cannot run it. */
export function makeCase<P>(
  kernel: LibraryKernel<P>,
  { gpu, random }: Trial,
  given: P,
): KernelCase | undefined {
  return kernel.makeCase(given, { device: gpu, random, reference });
}

/**
 * Runs a case of a kernel and asserts all of its results, with `more` constants in
 * place of those that were chosen. Whether its sizes are literals is random.
 */
export async function checkCase<P>(
  kernel: LibraryKernel<P>,
  trial: Trial,
  given: P,
  more: KernelCase["constants"] = {},
): Promise<void> {
  const one = makeCase(kernel, trial, given);
  if (!one) return;
  const constants = { ...one.constants, ...more };
  const literal = trial.random.int(0, 1) === 1;
  const how = { ...one, constants };
  const buffers = await runCase(trial.gpu, kernel, how, { literal });
  for (const result of one.expected()) {
    const found = compare(result, buffers);
    if (passes(found)) continue;
    const of = typeof result.of === "string" ? result.of : "a result";
    throw new AssertionError(
      `${kernel.name}, ${of} of ${one.what}, ${JSON.stringify(more)}${
        literal ? ", sizes as literals" : ""
      }: ${differenceText(found)}`,
    );
  }
}

function differenceText(
  { error, tolerance, index, actual, expected, elements }: Comparison,
): string {
  return `error ${error} of at most ${tolerance}, worst at [${index}] of ${elements}: actual ${actual}, expected ${expected}`;
}
