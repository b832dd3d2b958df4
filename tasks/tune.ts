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
 * exit code 1. `--json` prints one line on stdout, a `TuneReport` of
 * lib/tools/tune/tune.ts.
 */
import { DEFAULT_MODEL } from "../lib/load.ts";
import {
  candidateText,
  type CaseReport,
  tune,
  type TuneReport,
} from "../lib/tools/tune/tune.ts";
import { TUNED_KERNELS } from "../kernels/list.ts";
import { type FlagTable, runTask } from "./flags.ts";
import { onInterrupt } from "./interrupts.ts";
import { LOADING_FLAGS, loadingOptions, Progress } from "./progress.ts";

const NAMES = TUNED_KERNELS.map(({ name }) => name);

const FLAGS: FlagTable = {
  "model": [
    "text",
    "folder, URL, owner/name[@revision] or synthetic:…; default: story model",
  ],
  "kernels": [
    "text",
    `tune only these, comma-separated: ${NAMES.join(", ")}`,
  ],
  "budget-seconds": ["number", "time limit; 180 by default"],
  "dry-run": ["switch", "store nothing"],
  "json": ["switch", "print the report as one line of JSON on stdout"],
  ...LOADING_FLAGS,
};

/** Columns of the table. */
const WIDTHS = [34, 46, 34, 8, 8];
const COLUMNS = [
  "kernel and shape",
  "default",
  "winner",
  "gain",
  "spread",
  "candidates",
];

await runTask({
  usage: "deno task tune [flags]",
  flags: FLAGS,
  flagsOnly: "tune",
}, async (flags) => {
  const list = flags.text("kernels");
  const interrupt = onInterrupt();
  using progress = await Progress.start();
  const dryRun = flags.on("dry-run");
  let report: TuneReport;
  try {
    report = await tune(flags.text("model") ?? DEFAULT_MODEL, {
      kernels: list === undefined ? undefined : parseKernels(list),
      budgetSeconds: flags.number("budget-seconds"),
      dryRun,
      opening: { ...loadingOptions(flags), ...progress.options },
      onBegin: (what) => console.error(`${what}\n\n${row(...COLUMNS)}`),
      onCase: (found) => console.error(caseRow(found)),
      signal: interrupt.signal,
    });
  } catch (error) {
    if (interrupt.code === undefined) throw error;
    progress.clear();
    const kept = dryRun ? "nothing was" : "results so far are";
    console.error(`Interrupted: ${kept} stored`);
    return interrupt.code;
  }
  console.error("");
  for (const note of report.notes) console.error(`! ${note}`);
  for (const { key, constants, problem } of report.wrong) {
    console.error(
      `✗ ${key} is WRONG with ${candidateText(constants)}: ${problem}`,
    );
  }
  const { winners, cases, file, seconds, adapter } = report;
  console.error(
    `tuned constants beat the defaults for ${winners} of ${cases.length} shapes on ${adapter} (${
      seconds.toFixed(0)
    } s); ${file ? `stored in ${file}` : "nothing was stored (--dry-run)"}`,
  );
  if (flags.on("json")) console.log(JSON.stringify(report));
  return report.wrong.length ? 1 : 0;
});

function parseKernels(list: string): string[] {
  const names = list.split(",").map((name) => name.trim()).filter(Boolean);
  const unknown = names.find((name) => !NAMES.includes(name));
  if (unknown !== undefined || names.length === 0) {
    throw new Error(
      `Cannot tune: ${
        unknown === undefined
          ? "the list of kernels is empty"
          : `${unknown} is unknown`
      }, must be among ${NAMES.join(", ")}`,
    );
  }
  return names;
}

/** A line of the table; long text pushes the rest to the right. */
function row(...columns: string[]): string {
  return columns.map((text, i) => text.padEnd(WIDTHS[i] ?? 0)).join(" ")
    .trimEnd();
}

/** A case: the constants that the winner changes, and the share of a pass that it saves. */
function caseRow(found: CaseReport): string {
  const { key, gain, spread, winner } = found;
  const changed = Object.entries(winner ?? {})
    .filter(([name, value]) => found.default[name] !== value);
  const percent = (share?: number) =>
    share === undefined ? "" : `${(100 * share).toFixed(1)}%`;
  const counts = (["timed", "invalid", "refused", "wrong", "untried"] as const)
    .filter((name) => found[name])
    .map((name) => `${found[name]} ${name}`);
  return row(
    key,
    candidateText(found.default),
    winner ? candidateText(Object.fromEntries(changed)) : found.outcome,
    percent(gain),
    percent(spread),
    counts.join(", "),
  );
}
