/**
 * Print the finished WGSL of a kernel, with the constants chosen for this adapter.
 *
 *   deno task show gemm
 *   deno task show attend_decode --model Qwen/Qwen3-4B
 *   deno task show gemv --dtype f16 --set WORKGROUP=64 --set ROWS=4
 *   deno task show --all texts --compiler tint
 *
 * `--json` prints one line of JSON instead: `kernel`, `name` (of the call), `also` (other
 * calls of the kernel), `model`, `device`, `constants`, `operands`, `reason` and `wgsl`.
 * `--set` takes values that a file of tuned constants may hold, or that some device would
 * bring about. `--all` writes every text that any device of lib/tools/texts.ts brings about
 * into a folder, one file each.
 */
import { openCheckpoint } from "../lib/checkpoint/open.ts";
import { KERNEL_NAMES } from "../kernels/list.ts";
import type { Compiler } from "../lib/dispatch/capabilities.ts";
import { described, errorText, NoAdapterError } from "../lib/errors.ts";
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
import { writeTexts } from "../lib/tools/texts.ts";
import {
  DTYPE_FLAG,
  type Flags,
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

const COMPILERS: readonly Compiler[] = ["naga", "tint"];

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
  "compiler": [
    "text",
    "naga or tint, which take different directives",
    "the adapter's, naga with --all",
  ],
  "all": ["text", "a folder to write every text to, for devices of every kind"],
  "set": [
    "texts",
    "NAME=NUMBER, replaces a chosen constant; may be repeated",
  ],
  "json": ["switch", "print one line of JSON instead of the WGSL"],
  ...LOADING_FLAGS,
};

await runTask({
  usage: "deno task show KERNEL [flags]\ndeno task show --all FOLDER [flags]",
  notes: `Kernels: ${KERNEL_NAMES.join(", ")}`,
  flags: FLAGS,
}, async (flags) => {
  const compiler = flags.oneOf("compiler", COMPILERS);
  const folder = flags.text("all");
  if (folder !== undefined) return await writeAll(folder, compiler, flags);
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
  const found = await findDevice(deviceOptions(flags));
  const device = compiler ? sketchOf(found, compiler) : found;
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

/** Writes every text to a file of its own. */
async function writeAll(
  folder: string,
  compiler: Compiler = "naga",
  flags: Flags,
): Promise<number> {
  const [word] = flags.words;
  const given = word ?? Object.keys(FLAGS)
    .filter((name) => !["all", "compiler"].includes(name))
    .map((name) => flags.on(name) || flags.texts(name) ? `--${name}` : "")
    .find((flag) => flag !== "");
  if (given !== undefined) {
    throw new Error(
      `Cannot show all texts: ${
        described(given)
      } was given, --all takes only --compiler`,
    );
  }
  await makeFolder(folder);
  const count = await writeTexts(folder, compiler);
  console.log(`Wrote ${count} texts for ${compiler} to ${folder}`);
  return 0;
}

/** Makes the folder of all texts, among which those of another run would be taken for new. */
async function makeFolder(folder: string): Promise<void> {
  const refuse = (is: string): never => {
    throw new Error(
      `Cannot show all texts: --all is ${described(folder)}, ${is}`,
    );
  };
  if (folder === "") refuse("must be a folder");
  try {
    await Deno.mkdir(folder, { recursive: true });
  } catch (error) {
    refuse(`which cannot be made: ${errorText(error)}`);
  }
  for await (const { name } of Deno.readDir(folder)) {
    if (name.endsWith(".wgsl")) refuse("which has texts, must be one without");
  }
}

/** What choices depend on, of a device with another compiler. */
function sketchOf(device: Sketched, compiler: Compiler): Sketched {
  const { name, f16, software, subgroupSize, adapterClass, vulkan } = device;
  const { limits, tuned } = device;
  return {
    ...{ name, f16, software, subgroupSize, adapterClass, vulkan },
    ...{ limits, tuned, compiler },
  };
}

/** The device that the options choose; without any, one need not be there. */
async function findDevice(options: DeviceOptions): Promise<Sketched> {
  try {
    return await openDevice(options);
  } catch (error) {
    const isAsked = Object.values(options).some((value) => value !== undefined);
    if (error instanceof NoAdapterError && !isAsked) return STATED_DEVICE;
    throw error;
  }
}
