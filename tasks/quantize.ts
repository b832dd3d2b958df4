/**
 * Write a model as a GGUF file, which llama.cpp and everything built on it open too.
 *
 *   deno task quantize Qwen/Qwen3-0.6B qwen3-0.6b-q4_k_m.gguf --type q4_k_m
 *   deno task quantize my-finetune/ my-finetune.gguf --type bf16
 *
 * The source is anything that --model takes, in bf16, f16 or f32. The table of types is on
 * stdout; `--json` prints one line instead:
 *
 *   {"model", "file", "type", "bytes", "seconds",
 *    "types": [{"type", "tensors", "before", "after", "error"}]}
 */
import { bytesText } from "../lib/checkpoint/sources.ts";
import {
  notOneOf,
  quantizationNamed,
  quantizationNames,
} from "../lib/checkpoint/quantization.ts";
import { shortened, WIDTH } from "../lib/text/messages.ts";
import {
  FILE_TYPES,
  quantizeModel,
  type QuantizeReport,
} from "../lib/tools/quantize.ts";
import { type FlagTable, runTask } from "./flags.ts";
import { onInterrupt } from "./interrupts.ts";
import { LOADING_FLAGS, loadingOptions, Progress } from "./progress.ts";

const { quantize: _, ...OPENING_FLAGS } = LOADING_FLAGS;

const FLAGS: FlagTable = {
  "type": ["text", `one of ${quantizationNames(FILE_TYPES)}`],
  "force": ["switch", "replace the file if it exists"],
  "json": ["switch", "print one line of JSON instead of the table"],
  ...OPENING_FLAGS,
};

await runTask({
  usage: "deno task quantize MODEL FILE.gguf --type TYPE [flags]",
  flags: FLAGS,
  notes:
    `MODEL is a folder, .gguf file, URL, owner/name[@revision][:TYPE] or synthetic:…, whose weights are
in bf16, f16 or f32.
Types are llama.cpp's: below 8 bits, the LM head (or the embedding, if that is the head too) is
q6_k, with _m also the matrices that matter most. Rows that are not whole blocks of 256 get a
format with blocks of 32. Errors are ‖Δ‖ / ‖w‖ of some rows of each tensor.`,
  examples: [
    "deno task quantize Qwen/Qwen3-0.6B qwen3-0.6b-q4_k_m.gguf --type q4_k_m",
    "deno task generate Hello --model qwen3-0.6b-q4_k_m.gguf",
  ],
}, async (flags) => {
  const [model, file, ...more] = flags.words, type = flags.text("type");
  if (model === undefined || file === undefined || more.length > 0) {
    throw new Error(
      `Cannot quantise: ${flags.words.length} ${
        flags.words.length === 1 ? "argument is" : "arguments are"
      } given, must be MODEL FILE.gguf`,
    );
  }
  if (type === undefined) {
    throw new Error(
      "Cannot quantise: --type is missing, must be such as q4_k_m, try --help",
    );
  }
  if (quantizationNamed(type, FILE_TYPES) === undefined) {
    throw new Error(
      `Cannot quantise: --type is ${notOneOf(type, FILE_TYPES)}, try --help`,
    );
  }
  const interrupt = onInterrupt();
  using progress = await Progress.start();
  try {
    const report = await quantizeModel(model, file, {
      type,
      force: flags.on("force"),
      opening: {
        readTimeout: loadingOptions(flags).readTimeout,
        ...progress.options,
      },
      signal: interrupt.signal,
    });
    console.log(flags.on("json") ? JSON.stringify(report) : tableOf(report));
    return 0;
  } catch (error) {
    if (interrupt.code === undefined) throw error;
    progress.clear();
    console.error("Interrupted: nothing was written");
    return interrupt.code;
  }
});

/** The types as a table. */
function tableOf({ file, bytes, seconds, types }: QuantizeReport): string {
  const before = types.reduce((sum, type) => sum + type.before, 0);
  const after = types.reduce((sum, type) => sum + type.after, 0);
  const rows = [
    ["type", "tensors", "before", "after", "error"],
    ...types.map(({ type, tensors, before, after, error }) => [
      type,
      `${tensors}`,
      bytesText(before),
      bytesText(after),
      error === 0 ? "none" : `${(100 * error).toPrecision(2)} %`,
    ]),
    [
      "all",
      `${types.reduce((sum, { tensors }) => sum + tensors, 0)}`,
      bytesText(before),
      bytesText(after),
      "",
    ],
  ];
  const facts = `${bytesText(bytes)} in ${seconds.toFixed(1)} s`;
  return [
    ...rows.map(([type, ...cells]) =>
      [type.padEnd(6), ...cells.map((cell) => cell.padStart(9))].join("")
        .trimEnd()
    ),
    `${shortened(file, WIDTH - facts.length - 2)}: ${facts}`,
  ].join("\n");
}
