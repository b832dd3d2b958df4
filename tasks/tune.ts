/**
 * Find the kernels' best constants on this adapter and store them for later runs, in a
 * file in the cache directory (QWEN3_TUNING_DIR overrides it).
 *
 *   deno task tune --model Qwen/Qwen3-0.6B
 *   deno task tune --kernels gemv,attendDecode --budget-seconds 60
 *
 * Each candidate is checked against the CPU, then timed by the GPU's clock in passes of
 * the model, where candidates take turns. One that beats the default by more than the
 * spread of the rounds is stored. One with wrong results is never stored and makes the
 * exit code 1. The table is on stdout, a line for each shape when it is decided. `--json`
 * prints one line instead, a `TuneReport` of lib/tools/tune/tune.ts.
 */
import { DEFAULT_MODEL } from "../lib/load.ts";
import {
  caseText,
  summaryText,
  TABLE_HEAD,
  wrongText,
} from "../lib/tools/tune/text.ts";
import {
  BUDGET_SECONDS,
  tune,
  type TuneReport,
} from "../lib/tools/tune/tune.ts";
import { TUNED_KERNELS } from "../kernels/list.ts";
import { stdout } from "./colour.ts";
import { asTyped } from "./command.ts";
import { didYouMean, type FlagTable, runTask } from "./flags.ts";
import { onInterrupt } from "./interrupts.ts";
import {
  cacheRequest,
  DEVICE_FLAGS,
  deviceOptions,
  KV_FLAG,
  LOADING_FLAGS,
  loadingOptions,
  Progress,
} from "./progress.ts";

const NAMES = TUNED_KERNELS.map(({ name }) => name);

const FLAGS: FlagTable = {
  "model": [
    "text",
    "folder, .gguf file, URL, owner/name[@revision][:TYPE] or synthetic:…",
    "the story model",
  ],
  "kernels": [
    "text",
    `tune only these, comma-separated: ${NAMES.join(", ")}`,
    "all",
  ],
  ...KV_FLAG,
  ...DEVICE_FLAGS,
  "budget-seconds": ["number", "time limit", BUDGET_SECONDS],
  "dry-run": ["switch", "store nothing"],
  "json": [
    "switch",
    "print the report as one line of JSON instead of the table",
  ],
  ...LOADING_FLAGS,
};

await runTask({
  usage: "deno task tune [flags]",
  flags: FLAGS,
  flagsOnly: "tune",
  examples: [
    "deno task tune --model Qwen/Qwen3-0.6B",
    "deno task tune --kernels gemv,attendDecode --budget-seconds 60",
  ],
}, async (flags) => {
  const list = flags.text("kernels");
  const interrupt = onInterrupt();
  using progress = await Progress.start();
  const dryRun = flags.on("dry-run"), json = flags.on("json");
  const print = json ? () => {} : (text: string) => {
    progress.clear();
    console.log(asTyped(text));
  };
  // On a terminal the table grows by a line for each shape, which is progress enough.
  const quiet = !json && Deno.stdout.isTerminal();
  let report: TuneReport;
  try {
    report = await tune(flags.text("model") ?? DEFAULT_MODEL, {
      kernels: list === undefined ? undefined : parseKernels(list),
      kv: cacheRequest(flags),
      ...deviceOptions(flags),
      budgetSeconds: flags.number("budget-seconds"),
      dryRun,
      opening: { ...loadingOptions(flags), ...progress.options },
      onBegin(what) {
        progress.notice(what);
        print(TABLE_HEAD);
      },
      onProgress: (what) => quiet || progress.notice(`${what} …`),
      onCase: (found) => print(caseText(found)),
      signal: interrupt.signal,
    });
  } catch (error) {
    if (interrupt.code === undefined) throw error;
    progress.clear();
    const kept = dryRun ? "nothing was" : "results so far are";
    console.error(`Interrupted: ${kept} stored`);
    return interrupt.code;
  }
  for (const note of report.notes) progress.notice(`! ${note}`);
  print("");
  for (const wrong of wrongText(report)) print(stdout.red(wrong));
  print(summaryText(report));
  if (json) console.log(JSON.stringify(report));
  return report.wrong.length ? 1 : 0;
});

function parseKernels(list: string): string[] {
  const names = list.split(",").map((name) => name.trim()).filter(Boolean);
  const unknown = names.find((name) => !NAMES.includes(name));
  if (unknown !== undefined || names.length === 0) {
    const must = didYouMean(unknown ?? "", NAMES) || ", try --help";
    throw new Error(
      unknown === undefined
        ? `Cannot tune: the list of kernels is empty${must}`
        : `Cannot tune: ${unknown} is unknown${must}`,
    );
  }
  return names;
}
