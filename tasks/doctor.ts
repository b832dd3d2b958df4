/**
 * The first thing to run when something goes wrong.
 *
 *   deno task doctor
 *   deno task doctor --model Qwen/Qwen3-0.6B --context 32768
 *
 * Prints a line for each finding: ✓ fine, ! works but slowly, ✗ a problem and how to fix
 * it; the last line sums up. Exit code 1 if there is a ✗. Lines have at most 100
 * columns. `--json` prints one line of JSON instead, a `DoctorReport` of
 * lib/tools/doctor/report.ts: `ok` and `findings`, each with `severity` (green, yellow,
 * red), `topic`, `text` and the numbers behind it in `data`. For a kernel these are its
 * `results`, each with `what`, `error`, `tolerance`, `index`, `actual`, `expected`.
 */
import { DEFAULT_MODEL } from "../lib/load.ts";
import { doctor } from "../lib/tools/doctor/doctor.ts";
import { findingText, summaryText } from "../lib/tools/doctor/report.ts";
import { asTyped } from "./command.ts";
import { type FlagTable, runTask } from "./flags.ts";
import { LOADING_FLAGS, loadingOptions, Progress } from "./progress.ts";

const FLAGS: FlagTable = {
  "model": [
    "text",
    "folder, URL, owner/name[@revision] or synthetic:…; default: story model",
  ],
  "context": ["number", "context length of one sequence, in tokens"],
  "json": [
    "switch",
    "print the whole report as one line of JSON instead of text",
  ],
  ...LOADING_FLAGS,
};

await runTask({
  usage: "deno task doctor [flags]",
  flags: FLAGS,
  flagsOnly: "diagnose",
}, async (flags) => {
  const json = flags.on("json");
  using progress = await Progress.start();
  const report = await doctor({
    model: flags.text("model") ?? DEFAULT_MODEL,
    context: flags.whole("context", 1),
    opening: { ...loadingOptions(flags), ...progress.options },
    onFinding(finding) {
      progress.clear();
      const text = asTyped(finding.text);
      if (!json) console.log(findingText({ ...finding, text }));
    },
  });
  console.log(json ? JSON.stringify(report) : `\n${summaryText(report)}`);
  return report.ok ? 0 : 1;
});
