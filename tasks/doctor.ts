/**
 * What to run first when something is off.
 *
 *   deno task doctor
 *   deno task doctor --model Qwen/Qwen3-0.6B --context 32768
 *
 * A line for each finding: ✓ fine, ! works but slower, and why, ✗ what to do; the
 * last line sums up. Exit code 1 where there is a ✗. `--json` prints one line of JSON
 * instead, a `DoctorReport` of lib/tools/doctor/report.ts: `ok` and `findings`, each with `severity`
 * (green, yellow, red), `topic`, `text` and the numbers behind it in `data`; kernels
 * have `trials` with `what`, `error`, `tolerance`, `index`, `actual`, `expected`.
 */
import { doctor } from "../lib/tools/doctor/doctor.ts";
import { findingText, summaryText } from "../lib/tools/doctor/report.ts";
import { DEFAULT_MODEL } from "../lib/load.ts";
import { type FlagTable, helpText, readFlags, runTask } from "./flags.ts";

const FLAGS: FlagTable = {
  "model": [
    "text",
    "directory, URL, owner/name[@revision] or synthetic:qwen3-0.6b; default: the embedded story model",
  ],
  "context": ["number", "tokens that a sequence may have"],
  "json": ["switch", "one line of JSON on stdout, instead of the text"],
  "help": ["switch", "this text"],
};

await runTask(async () => {
  const flags = readFlags(Deno.args, FLAGS);
  if (flags.on("help")) {
    console.log(helpText("deno task doctor [flags]", FLAGS));
    return 0;
  }
  if (flags.words.length) {
    throw new Error(
      `Cannot diagnose: ${
        flags.words[0]
      } is not a flag, all there is to say is said by flags`,
    );
  }
  const json = flags.on("json");
  const report = await doctor({
    model: flags.text("model") ?? DEFAULT_MODEL,
    context: flags.number("context"),
    onFinding: (finding) => json || console.log(findingText(finding)),
  });
  console.log(json ? JSON.stringify(report) : `\n${summaryText(report)}`);
  return report.ok ? 0 : 1;
});
