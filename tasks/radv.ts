/**
 * Compile the kernels with AMD's driver RADV, without an AMD card: every variant that a
 * model's passes run on AMD, for each chip, as Deno passes it to the driver.
 *
 *   tasks/get_mesa.sh ~/.cache/mesa
 *   deno task radv --mesa ~/.cache/mesa
 *   deno task radv gemm attend_decode --mesa ~/.cache/mesa --chips navi31 --set BM=64
 *
 * Prints a table: for each call and chip vector registers per lane, spilled registers
 * (vector/scalar), bytes of scratch and workgroup memory, waves per SIMD, bytes of code,
 * and the compiler's estimates of latency and inverse throughput in cycles. Nothing is
 * executed. `--json` prints the rows instead, `RadvStatistics` of lib/tools/radv/radv.ts,
 * on one line. The exit code is 1 if a kernel that tokens wait for spills.
 */
import { openCheckpoint } from "../lib/checkpoint/open.ts";
import {
  CHIP_NAMES,
  kernelsToCompile,
  PASSES,
  type RadvStatistics,
  radvTable,
  readChips,
  readPasses,
  spilling,
  statisticsOf,
  variantsOnAmd,
} from "../lib/tools/radv/radv.ts";
import { RadvCompiler } from "../lib/tools/radv/compiler.ts";
import { KERNEL_NAMES } from "../kernels/list.ts";
import { stderr } from "./colour.ts";
import { scriptText } from "./command.ts";
import {
  DTYPE_FLAG,
  type FlagTable,
  readConstants,
  readFormat,
  runTask,
} from "./flags.ts";
import { cleanOnSignal } from "./interrupts.ts";
import { LOADING_FLAGS, loadingOptions, Progress } from "./progress.ts";

const CHIPS = "navi21,navi31,gfx1200", MODEL = "synthetic:qwen3-0.6b";

const GET_MESA = scriptText("get_mesa.sh");

const FLAGS: FlagTable = {
  "chips": ["text", "comma-separated", CHIPS],
  "mesa": ["text", "the folder into which get_mesa.sh unpacked Mesa"],
  "model": ["text", "the model whose sizes are used", MODEL],
  "tokens": [
    "text",
    "tokens in the passes, comma-separated",
    PASSES.join(","),
  ],
  "dtype": DTYPE_FLAG,
  "set": [
    "texts",
    "NAME=NUMBER, replaces a chosen constant; may be repeated",
  ],
  "wave32": ["switch", "use waves of 32, as with RADV_PERFTEST=cswave32"],
  "json": ["switch", "print the rows as one line of JSON instead of a table"],
  ...LOADING_FLAGS,
};

await runTask({
  usage: "deno task radv [KERNEL…] [flags]",
  notes: `Kernels: ${KERNEL_NAMES.join(", ")}\nChips: ${
    CHIP_NAMES.join(", ")
  }\nMesa: ${GET_MESA} DIR unpacks Debian's mesa-vulkan-drivers (25 or later), libdrm2 and libdrm-amdgpu1 into DIR, for --mesa DIR`,
  flags: FLAGS,
}, async (flags) => {
  const cannot = "Cannot compile for RADV";
  const chips = readChips(flags.text("chips") ?? CHIPS);
  const tokens = readPasses(flags.text("tokens") ?? PASSES.join(","));
  const format = readFormat(flags, cannot);
  const constants = readConstants(flags, cannot);
  kernelsToCompile(flags.words, constants);
  using compiler = new RadvCompiler(flags.text("mesa"), GET_MESA);
  using _ = cleanOnSignal(() => compiler[Symbol.dispose]());
  using progress = await Progress.start();
  await using checkpoint = await openCheckpoint(
    flags.text("model") ?? MODEL,
    { ...loadingOptions(flags), ...progress.options },
  );
  const variants = variantsOnAmd({
    config: checkpoint.config,
    kernels: flags.words,
    tokens,
    format,
    constants,
  });
  console.error(
    `Compiling ${variants.length} variants for ${chips.length} ${
      chips.length === 1 ? "chip" : "chips"
    } …`,
  );
  const shaders = await compiler.spirv(variants);
  const rows: RadvStatistics[] = [];
  for (const chip of chips) {
    const compiled = compiler.compile(chip, shaders, flags.on("wave32"));
    rows.push(
      ...compiled.map((one, i) => statisticsOf(variants[i], chip, one)),
    );
    await new Promise((resolve) => setTimeout(resolve)); // a turn for signals
  }
  console.log(flags.on("json") ? JSON.stringify(rows) : radvTable(rows));
  const spilled = spilling(rows);
  for (const { kernel, chip, spilledVgprs, scratch } of spilled) {
    console.error(
      `${
        stderr.red("✗")
      } ${kernel} on ${chip}: ${spilledVgprs} vector registers spilled, ${scratch} bytes of scratch`,
    );
  }
  return spilled.length ? 1 : 0;
});
