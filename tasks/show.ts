/**
 * Print the finished WGSL of a kernel, with the constants chosen for this adapter.
 *
 *   deno task show gemm
 *   deno task show attend_decode --model Qwen/Qwen3-4B
 *   deno task show gemv --dtype f16 --set WORKGROUP=64 --set ROWS=4
 */
import { openCheckpoint } from "../lib/checkpoint/open.ts";
import { KERNEL_NAMES } from "../kernels/list.ts";
import { NoAdapterError } from "../lib/errors.ts";
import { openDevice } from "../lib/open_device.ts";
import {
  kernelToShow,
  showKernel,
  type Sketched,
  STATED_DEVICE,
} from "../lib/tools/show.ts";
import {
  DTYPE_FLAG,
  type FlagTable,
  readConstants,
  readFormat,
  runTask,
} from "./flags.ts";
import { LOADING_FLAGS, loadingOptions, Progress } from "./progress.ts";

const FLAGS: FlagTable = {
  "model": [
    "text",
    "the model whose sizes are used; synthetic:qwen3-0.6b by default",
  ],
  "tokens": [
    "number",
    "tokens in the pass; 512 by default, 1 for a decode step",
  ],
  "dtype": DTYPE_FLAG,
  "set": ["texts", "NAME=NUMBER, replaces a chosen constant; may be repeated"],
  ...LOADING_FLAGS,
};

await runTask({
  usage: "deno task show KERNEL [flags]",
  notes: `Kernels: ${KERNEL_NAMES.join(", ")}`,
  flags: FLAGS,
}, async (flags) => {
  const [name, ...more] = flags.words;
  if (name === undefined || more.length) {
    throw new Error(
      `Cannot show ${flags.words.length} kernels: name one, deno task show --help lists them`,
    );
  }
  const tokens = flags.whole("tokens", 1);
  const format = readFormat(flags, `Cannot show ${name}`);
  const constants = readConstants(flags, `Cannot show ${name}`);
  kernelToShow(name, constants);
  const model = flags.text("model") ?? "synthetic:qwen3-0.6b";
  using progress = await Progress.start();
  await using checkpoint = await openCheckpoint(model, {
    ...loadingOptions(flags),
    ...progress.options,
  });
  const device = await findDevice();
  const shown = showKernel(name, device, {
    config: checkpoint.config,
    tokens,
    format,
    constants,
  });
  console.log(`// ${shown.kernel} on ${device.name}
// ${checkpoint.name}: ${shown.label}${
    shown.also.length ? ` (also ${shown.also.join(", ")})` : ""
  }
// ${
    shown.operands.map(({ name, dtype, shape }) =>
      `${name}: ${dtype} [${shape.join(", ")}]`
    ).join(", ")
  }
// ${shown.reason}
${shown.wgsl}`);
  return 0;
});

async function findDevice(): Promise<Sketched> {
  try {
    return await openDevice();
  } catch (error) {
    if (error instanceof NoAdapterError) return STATED_DEVICE;
    throw error;
  }
}
