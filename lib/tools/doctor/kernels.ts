/**
 * A self-test of every kernel: the cases of its file, with the constants chosen for this
 * adapter, at odd sizes and at those of a model, in every element type.
 *
 * @module
 */
import { KERNELS } from "../../../kernels/list.ts";
import {
  compare,
  type Comparison,
  reference,
  runCase,
} from "../../check/kernel_case.ts";
import { Random } from "../../check/reference.ts";
import { errorText } from "../../errors.ts";
import type { Gpu } from "../../webgpu/device.ts";
import type { LibraryKernel } from "../../../kernels/define.ts";
import type { Reporter } from "./report.ts";

/** One result of a kernel, compared with the reference. */
export interface TestResult extends Comparison {
  kernel: string;
  /** Shapes and element types. */
  what: string;
}

/** What the self-test found. */
export interface KernelTests {
  results: TestResult[];
  /** Milliseconds of each case's run, compilation included. */
  firstUses: { kernel: string; ms: number }[];
  /** Cases that this device could run and that were left out. */
  untested: number;
  /** What ended the test early: a broken device would fail everything that follows. */
  failure?: { kernel: string; message: string };
}

/** Runs every case of some kernels, by default all, or with `few` the first of each. */
export async function testKernels(
  gpu: Gpu,
  reporter: Pick<Reporter, "starting">,
  few = false,
  kernels: readonly LibraryKernel[] = KERNELS,
): Promise<KernelTests> {
  const tools = { device: gpu, random: new Random(), reference };
  const tests: KernelTests = { results: [], firstUses: [], untested: 0 };
  for (const kernel of kernels) {
    const { name, cases } = kernel;
    reporter.starting?.(name);
    let tested = 0;
    try {
      for (const given of cases) {
        const one = kernel.makeCase(given, tools);
        if (!one) continue;
        if (few && tested++ > 0) {
          tests.untested++;
          continue;
        }
        const began = performance.now();
        const buffers = await runCase(gpu, kernel, one);
        const ms = performance.now() - began;
        tests.firstUses.push({ kernel: name, ms });
        for (const result of one.expected()) {
          const found = compare(result, buffers);
          tests.results.push({ kernel: name, what: one.what, ...found });
        }
      }
    } catch (error) {
      tests.failure = { kernel: name, message: errorText(error) };
      break;
    }
  }
  return tests;
}
