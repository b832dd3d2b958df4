/**
 * Compile the kernels with AMD's driver RADV, without an AMD card: every variant that a
 * model's passes run on AMD, for each chip, as Deno passes it to the driver.
 *
 *   tasks/get_mesa.sh ~/.cache/mesa
 *   deno task radv --mesa ~/.cache/mesa
 *   deno task radv gemm attend_decode --mesa ~/.cache/mesa --chips navi31 --set BM=64
 *
 * Prints a table on stderr: vector registers per lane, spilled registers (vector/scalar),
 * bytes of scratch and workgroup memory, waves per SIMD, bytes of code, and the compiler's
 * estimates of latency and inverse throughput in cycles. Nothing is executed. `--json`
 * prints the rows, `RadvStatistics` of lib/tools/radv/radv.ts, on stdout. The exit code is
 * 1 if a kernel that tokens wait for spills.
 */
import { openCheckpoint } from "../lib/checkpoint/open.ts";
import {
  CHIP_NAMES,
  kernelsToCompile,
  PASSES,
  radvTable,
  readChips,
  spilling,
  statisticsOf,
  variantsOnAmd,
} from "../lib/tools/radv/radv.ts";
import { GET_MESA, RadvCompiler } from "../lib/tools/radv/compiler.ts";
import { KERNEL_NAMES } from "../kernels/list.ts";
import {
  DTYPE_FLAG,
  type FlagTable,
  readConstants,
  readFormat,
  runTask,
} from "./flags.ts";
import { LOADING_FLAGS, loadingOptions, Progress } from "./progress.ts";

const FLAGS: FlagTable = {
  "chips": ["text", "comma-separated; navi21,navi31,gfx1200 by default"],
  "mesa": ["text", "the folder into which tasks/get_mesa.sh unpacked Mesa"],
  "model": [
    "text",
    "the model whose sizes are used; synthetic:qwen3-0.6b by default",
  ],
  "tokens": ["number", `tokens in the pass; by default ${PASSES.join(", ")}`],
  "dtype": DTYPE_FLAG,
  "set": [
    "texts",
    "NAME=NUMBER, replaces a chosen constant; may be repeated",
  ],
  "wave32": ["switch", "use waves of 32, as with RADV_PERFTEST=cswave32"],
  "json": ["switch", "print the rows as one line of JSON on stdout"],
  ...LOADING_FLAGS,
};

await runTask({
  usage: "deno task radv [KERNEL…] [flags]",
  notes: `Kernels: ${KERNEL_NAMES.join(", ")}\nChips: ${
    CHIP_NAMES.join(", ")
  }\n${GET_MESA}`,
  flags: FLAGS,
}, async (flags) => {
  const cannot = "Cannot compile for RADV";
  const chips = readChips(flags.text("chips") ?? "navi21,navi31,gfx1200");
  const tokens = flags.whole("tokens", 1);
  const format = readFormat(flags, cannot);
  const constants = readConstants(flags, cannot);
  kernelsToCompile(flags.words, constants);
  using compiler = new RadvCompiler(flags.text("mesa"));
  using progress = await Progress.start();
  await using checkpoint = await openCheckpoint(
    flags.text("model") ?? "synthetic:qwen3-0.6b",
    { ...loadingOptions(flags), ...progress.options },
  );
  const variants = variantsOnAmd({
    config: checkpoint.config,
    kernels: flags.words,
    tokens: tokens === undefined ? PASSES : [tokens],
    format,
    constants,
  });
  const shaders = await compiler.spirv(variants);
  const rows = chips.flatMap((chip) =>
    compiler.compile(chip, shaders, flags.on("wave32")).map((compiled, i) =>
      statisticsOf(variants[i], chip, compiled)
    )
  );
  console.error(radvTable(rows));
  if (flags.on("json")) console.log(JSON.stringify(rows));
  const spilled = spilling(rows);
  for (const { kernel, chip, spilledVgprs, scratch } of spilled) {
    console.error(
      `✗ ${kernel} on ${chip}: ${spilledVgprs} vector registers spilled, ${scratch} bytes of scratch`,
    );
  }
  return spilled.length ? 1 : 0;
});
