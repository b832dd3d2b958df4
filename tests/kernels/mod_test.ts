/**
 * The list of kernels is complete, and each agrees with the reference in its own cases.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import { findKernel, KERNELS } from "../../kernels/list.ts";
import { PROJECTING_BUFFERS } from "../../lib/dispatch/attention.ts";
import { PENDING_BUFFERS } from "../../lib/dispatch/feed_forward.ts";
import { MATRIX_BUFFERS } from "../../lib/dispatch/matrices.ts";
import type { Constants } from "../../lib/dispatch/shapes.ts";
import { LEAST_LIMITS } from "../../lib/webgpu/device.ts";
import type { Contract, Kernel } from "../../lib/webgpu/kernel.ts";
import { FORMATS } from "../../lib/formats/mod.ts";
import { compare, passes } from "../../lib/check/kernel_case.ts";
import { matrixToF32, toF32 } from "../../lib/formats/tensor.ts";
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

/** Constants that contracts depend on, with all values that dispatch gives them. */
const CONTRACT_CONSTANTS: Record<string, (number | string)[]> = {
  B_BY_COLUMN: [0, 1],
  B_HALF: [0, 1],
  C_FOURS: [0, 1],
  CACHE: ["float", "q8_0"],
  CANDIDATES: [0, 1],
  CLEARS: [0, 1],
  COUNTS: [0, 1],
  EPILOGUE: ["store", "add", "swiglu"],
  F16: [0, 1],
  HALF_Y: [0, 1],
  FETCHERS: [0, 32],
  HEAD_DIM: [6, 64, 128],
  HISTOGRAM: [0, 1],
  LEAVES: [0, 1],
  LOG_PAGE: [0, 5],
  MASS: [0, 1],
  NORM: [0, 1],
  PENDING: [0, 1],
  PLACED: [0, 1],
  PROJECT: [0, 64],
  QKV_SPLITS: [0, 2],
  RESULT_UNIT: [0, 16],
  ROUNDED: [0, 1],
  SCALED: [0, 1],
  SPLIT: [0, 1],
  SPLITS: [1, 2],
  SPREAD: ["k", "rows"],
  TWO: [0], // dispatch sees to it that both parts fit
  VEC: [1, 4],
  W_IN: ["buffer"], // a texture is not a storage buffer
  X_IN: ["buffer"],
  Y_FOURS: [0, 1],
};

/** Buffers that may hold weights in blocks, and how many bindings these take. */
const IN_BLOCKS = ["w", "b", "table", "down"];
const MOST_PLANES = Math.max(
  ...FORMATS.map(({ elements, planes }) => planes(elements).length),
);

/** Storage buffers of a kernel in every variant of its contract. */
function storageBuffers(kernel: Kernel): { constants: Constants; n: number }[] {
  const { buffers } = kernel;
  if (typeof buffers !== "function") {
    return [{ constants: {}, n: count(buffers) }];
  }
  const read = new Set<string>();
  buffers(
    new Proxy(kernel.constants, {
      get: (target, name: string) => (read.add(name), target[name]),
    }),
  );
  let all: Constants[] = [kernel.constants];
  for (const name of read) {
    assert(CONTRACT_CONSTANTS[name], `${kernel.name}: ${name} is not listed`);
    all = all.flatMap((constants) =>
      CONTRACT_CONSTANTS[name].map((value) => ({ ...constants, [name]: value }))
    );
  }
  return all.map((constants) => ({ constants, n: count(buffers(constants)) }));
}

const count = (contract: Contract) =>
  Object.keys(contract).reduce(
    (n, name) => n + (IN_BLOCKS.includes(name) ? MOST_PLANES : 1),
    0,
  );

/** Whether a variant binds more than eight buffers, for which dispatch sees to it that all fit. */
const bindsMore = (
  { name }: Kernel,
  { EXPERTS, LEAVES, EPILOGUE, FETCHERS, PROJECT, ...more }: Constants,
) =>
  more.CLEARS || more.PENDING || name === "feedForward" ||
  FETCHERS || PROJECT ||
  name === "attendDecode" && (LEAVES || more.HALF_Y) ||
  name === "gemmMatrix" && more.RESULT_UNIT ||
  EXPERTS && LEAVES && EPILOGUE === "add";

/** The most that those bind. */
const MORE: Readonly<Record<string, number>> = {
  attendDecode: PROJECTING_BUFFERS,
  embed: PENDING_BUFFERS,
  feedForward: PENDING_BUFFERS,
  gemmMatrix: MOST_PLANES + MATRIX_BUFFERS,
  gemv: PENDING_BUFFERS,
  expertGemvInt8: 9,
};

Deno.test("every kernel binds at most eight storage buffers, unless dispatch asks for more", () => {
  const most = (kernel: Kernel, more: boolean) =>
    Math.max(
      ...storageBuffers(kernel).filter(({ constants }) =>
        // Attention that reads ahead does nothing else, nor does what leaves rows in f16.
        !(constants.FETCHERS && (constants.LEAVES || constants.PROJECT)) &&
        !(constants.HALF_Y && (constants.FETCHERS || constants.PROJECT)) &&
        (more || !bindsMore(kernel, constants))
      ).map(({ n }) => n),
      0,
    );
  assertEquals(
    Object.fromEntries(KERNELS.map((one) => [one.name, most(one, false)])),
    {
      addPending: 4,
      argmax: 3,
      attendDecode: 8,
      attendPrefill: 6,
      attendPrefillF16: 6,
      attendPrefillMatrix: 5,
      batchedGemm: 6,
      chooseExperts: 2,
      embed: 7,
      expertGemm: 8,
      expertGemmMatrix: 8,
      expertGemv: 8,
      expertGemvInt8: 8,
      feedForward: 0,
      gatherRows: 3,
      gemm: 7,
      gemmMatrix: 8,
      gemv: 8,
      gemvColumns: 6,
      gemvInt8: 8,
      gemvRows: 8,
      gemvRowsInt8: 8,
      maxAbs: 5,
      mergeSplits: 3,
      peakFma: 1,
      peakRead: 2,
      qkNormRope: 8,
      quantize: 4,
      repack: 3,
      rmsNorm: 3,
      sampleAdjust: 5,
      sampleDraw: 7,
      sampleFinish: 8,
      sampleGreedy: 8,
      sampleHistogram: 4,
      sampleLogprobs: 7,
      sampleTopK: 4,
      sortExperts: 4,
      sumExperts: 4,
      sumSplits: 2,
      swiglu: 3,
      synthesize: 4,
      toF16: 5,
      toInt8: 5,
      unpack: 5,
    },
  );
  assertEquals(LEAST_LIMITS.maxStorageBuffersPerShaderStage, 8);
  for (const kernel of KERNELS) {
    const allowed = MORE[kernel.name] ?? 8;
    assert(most(kernel, true) <= allowed, kernel.name);
  }
});

for (const kernel of KERNELS) {
  const [first, ...others] = kernel.cases;
  quickGpuTest(`${kernel.name} agrees in its first case`, async (_, trial) => {
    await checkCase(kernel, trial, first);
  });
  if (!others.length) continue;
  gpuTest(`${kernel.name} agrees in its other cases`, async (_, trial) => {
    for (const given of trial.some(others, 1)) {
      await checkCase(kernel, trial, given);
    }
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
          "parts" in tensor
            ? matrixToF32(tensor)
            : tensor.dtype === "u32"
            ? tensor.data
            : toF32(tensor),
        ]),
      );
      const failed = one.expected().some((result) =>
        !passes(compare(result, buffers))
      );
      assert(failed, `${kernel.name}: ${one.what}`);
    }
  }
});
