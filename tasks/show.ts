/**
 * Print the finished WGSL of a kernel, with the constants chosen for this adapter.
 *
 *   deno task show gemm
 *   deno task show attend_decode --model Qwen/Qwen3-4B
 *   deno task show gemv --dtype f16 --set WORKGROUP=64 --set ROWS=4
 *
 * `--json` prints one line of JSON instead: `kernel`, `name` (of the call), `also` (other
 * calls of the kernel), `model`, `device`, `constants`, `operands`, `reason` and `wgsl`.
 * `--set` takes values that a file of tuned constants may hold, or that some device would
 * bring about.
 */
import { openCheckpoint } from "../lib/checkpoint/open.ts";
import { KERNEL_NAMES } from "../kernels/list.ts";
import { NoAdapterError } from "../lib/errors.ts";
import { openDevice } from "../lib/device/open_device.ts";
import type { DeviceOptions } from "../lib/webgpu/implementation.ts";
import { WIDTH, wrap } from "../lib/text/messages.ts";
import {
  kernelToShow,
  MOST_TOKENS,
  showKernel,
  type Shown,
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
import {
  cacheRequest,
  DEVICE_FLAGS,
  deviceOptions,
  KV_FLAG,
  LOADING_FLAGS,
  loadingOptions,
  Progress,
} from "./progress.ts";

const MODEL = "synthetic:qwen3-0.6b";

const FLAGS: FlagTable = {
  "model": ["text", "the model whose sizes are used", MODEL],
  "tokens": [
    "number",
    "tokens in the pass, 1 for a decode step",
    "512, or as many as the kernel is for",
  ],
  "dtype": DTYPE_FLAG,
  ...KV_FLAG,
  ...DEVICE_FLAGS,
  "set": [
    "texts",
    "NAME=NUMBER, replaces a chosen constant; may be repeated",
  ],
  "json": ["switch", "print one line of JSON instead of the WGSL"],
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
      `Cannot show ${
        more.length ? `${flags.words.length} kernels` : "a kernel"
      }: name one, deno task show --help lists them`,
    );
  }
  const tokens = flags.whole("tokens", 1, MOST_TOKENS);
  const format = readFormat(flags, `Cannot show ${name}`);
  const constants = readConstants(flags, `Cannot show ${name}`);
  kernelToShow(name, constants);
  using progress = await Progress.start();
  await using checkpoint = await openCheckpoint(flags.text("model") ?? MODEL, {
    ...loadingOptions(flags),
    ...progress.options,
  });
  const device = await findDevice(deviceOptions(flags));
  const { config } = checkpoint;
  const kv = cacheRequest(flags), cases = { tokens, format, constants };
  const shown = showKernel(name, device, { config, kv, ...cases });
  console.log(
    flags.on("json")
      ? jsonOf(shown, device, checkpoint.name)
      : textOf(shown, device, checkpoint.name),
  );
  return 0;
});

function jsonOf(
  { kernel, label, also, constants, operands, reason, wgsl }: Shown,
  { name: device }: Sketched,
  model: string,
): string {
  return JSON.stringify({
    ...{ kernel, name: label, also, model, device },
    ...{ constants, operands, reason, wgsl },
  });
}

/** The WGSL below comments that say what it is. */
function textOf(
  { kernel, label, also, operands, reason, wgsl }: Shown,
  device: Sketched,
  model: string,
): string {
  const shapes = operands.map(({ name, dtype, shape }) =>
    `${name}: ${dtype} [${shape.join(", ")}]`
  );
  const comments = [
    `${kernel} on ${device.name}`,
    `${model}: ${label}${also.length ? ` (also ${also.join(", ")})` : ""}`,
    shapes.join(", "),
    reason,
  ];
  return [
    ...comments.flatMap((line) => wrap(line, WIDTH, "// ", "//   ")),
    wgsl,
  ].join("\n");
}

async function findDevice(options: DeviceOptions): Promise<Sketched> {
  try {
    return await openDevice(options);
  } catch (error) {
    if (error instanceof NoAdapterError) return STATED_DEVICE;
    throw error;
  }
}
