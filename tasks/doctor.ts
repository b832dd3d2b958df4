/**
 * The first thing to run when something goes wrong.
 *
 *   deno task doctor
 *   deno task doctor --model Qwen/Qwen3-0.6B --context 32768
 *
 * Prints a line for each finding: ✓ fine, ! works but slowly, ✗ a problem and how to fix
 * it; the last line sums up. Exit code 1 if there is a ✗. Lines have at most 100
 * columns. What is examined next stands on stderr if that is a terminal. `--json` prints
 * one line of JSON instead, a `DoctorReport` of lib/tools/doctor/report.ts: `ok` and
 * `findings`, each with `severity` (green, yellow, red), `topic`, `text` and the numbers
 * behind it in `data`. For a kernel these are its `results`, each with `what`, `error`,
 * `tolerance`, `index`, `actual`, `expected`.
 */
import { doctor } from "../lib/tools/doctor/doctor.ts";
import {
  findingText,
  isShown,
  summaryText,
} from "../lib/tools/doctor/report.ts";
import { stdout } from "./colour.ts";
import { asTyped } from "./command.ts";
import { type FlagTable, runTask } from "./flags.ts";
import {
  cacheRequest,
  DEVICE_FLAGS,
  deviceOptions,
  KV_FLAG,
  LOADING_FLAGS,
  loadingOptions,
  Progress,
  THREADS_FLAG,
} from "./progress.ts";

const FLAGS: FlagTable = {
  "model": [
    "text",
    "folder, .gguf file, URL, owner/name[@revision][:TYPE] or synthetic:…",
    "the story model",
  ],
  "context": [
    "number",
    "context length of one sequence, in tokens",
    "4096, or less if the model ends before",
  ],
  ...KV_FLAG,
  ...DEVICE_FLAGS,
  "all": [
    "switch",
    "test every case of the GPU kernels, even if models run on the CPU",
  ],
  "verbose": [
    "switch",
    "a line for every kernel, feature and adapter request",
  ],
  "json": [
    "switch",
    "print the whole report as one line of JSON instead of text",
  ],
  ...THREADS_FLAG,
  ...LOADING_FLAGS,
};

/** Colours the mark that a text begins with. */
function coloured(text: string): string {
  const [mark, colour] =
    ([["✓", "green"], ["!", "yellow"], ["✗", "red"]] as const)
      .find(([mark]) => text.startsWith(mark))!;
  return stdout[colour](mark) + text.slice(mark.length);
}

const STATUS = Deno.stderr.isTerminal() && Deno.env.get("TERM") !== "dumb";

/** Shows what runs now on a line that the next output replaces. */
function showStatus(text: string) {
  if (!STATUS) return;
  Deno.stderr.writeSync(new TextEncoder().encode(`\r\x1b[K${text}`));
}

await runTask({
  usage: "deno task doctor [flags]",
  flags: FLAGS,
  flagsOnly: "diagnose",
}, async (flags) => {
  const json = flags.on("json"), verbose = flags.on("verbose");
  const { threads, readTimeout, quantize } = loadingOptions(flags);
  using progress = await Progress.start();
  const report = await doctor({
    model: flags.text("model"),
    context: flags.whole("context", 1),
    kv: cacheRequest(flags),
    ...deviceOptions(flags),
    all: flags.on("all"),
    threads,
    opening: { quantize, readTimeout, ...progress.options },
    onStart: (what) => showStatus(`examining ${what} …`),
    onFinding(finding) {
      progress.clear();
      showStatus("");
      if (json || !verbose && !isShown(finding)) return;
      const text = asTyped(finding.text);
      console.log(coloured(findingText({ ...finding, text })));
    },
  });
  showStatus("");
  console.log(
    json ? JSON.stringify(report) : `\n${coloured(summaryText(report))}`,
  );
  return report.ok ? 0 : 1;
});
