/**
 * Measures the speed targets on this machine: for each row, the median of several warm
 * runs, the spread, and the fraction of the adapter's measured peak.
 *
 *   deno task bench
 *   deno task bench --only decode-128,prefill-512 --peers .peers
 *   deno task bench --model models/stories-3m --only decode-128,load --runs 2
 *   deno task bench --markdown
 *
 * Rows go to stderr as they are done; a row that this machine or model cannot run says
 * why. The last line of stdout is a `BenchReport` of bench/report.ts as JSON, or with
 * `--markdown` the table that bench/log.md keeps. `deno bench` times single kernels, see
 * bench/*_bench.ts.
 */
import { reportMarkdown } from "../bench/markdown.ts";
import { requirePeers, runPeers } from "../bench/peers.ts";
import {
  type BenchReport,
  peaksText,
  peersText,
  type Row,
  rowText,
  Unmeasurable,
} from "../bench/report.ts";
import { chooseRows, type RowKind, rowKinds } from "../bench/rows.ts";
import { BenchSetting } from "../bench/setting.ts";
import { shownUrl } from "../lib/checkpoint/fetch.ts";
import { errorText } from "../lib/errors.ts";
import { type FlagTable, runTask } from "./flags.ts";
import { LOADING_FLAGS, loadingOptions, Progress } from "./progress.ts";

const FLAGS: FlagTable = {
  "model": [
    "text",
    "folder, URL, owner/name[@revision] or synthetic:…; synthetic:qwen3-0.6b by default",
  ],
  "only": ["text", "comma-separated list of rows; all by default"],
  "runs": ["number", "timed runs per measurement; 5 by default"],
  "max-tokens": ["number", "tokens per generation; 256 by default"],
  "peers": [
    "text",
    "also run llama.cpp, from a folder made by bench/peers/pack.sh",
  ],
  "json": ["switch", "print only the line of JSON"],
  "markdown": ["switch", "print the table as Markdown instead of JSON"],
  ...LOADING_FLAGS,
};

const DEFAULT_MODEL = "synthetic:qwen3-0.6b";

/** Every row, with what it measures. */
const KINDS = rowKinds();
const ROWS = [...KINDS].map(([name, { what }]) =>
  `  ${name.padEnd(14)} ${what}`
);

await runTask({
  usage: "deno task bench [flags]",
  flags: FLAGS,
  notes: `Rows:\n${ROWS.join("\n")}`,
  flagsOnly: "bench",
}, async (flags) => {
  const markdown = flags.on("markdown") ?? false;
  if (markdown && flags.on("json")) {
    throw new Error(
      "Cannot bench: --json and --markdown are both given, must be one of them",
    );
  }
  using progress = await Progress.start();
  const options = {
    opening: { ...loadingOptions(flags), ...progress.options },
    model: flags.text("model") ?? DEFAULT_MODEL,
    runs: flags.whole("runs", 1, 100) ?? 5,
    maxTokens: flags.whole("max-tokens", 8, 4096) ?? 256,
  };
  const chosen = chooseRows(KINDS, flags.text("only"));
  const peers = flags.text("peers");
  if (peers !== undefined) requirePeers(peers);
  const say = flags.on("json") ? () => {} : (text: string) => {
    if (text) console.error(text);
  };

  const began = performance.now();
  using setting = await BenchSetting.open(options);
  const { gpu, peaks } = setting;
  say(`${shownUrl(options.model)} on ${gpu.name}, Deno ${Deno.version.deno}`);
  say(peaksText(peaks));
  const rows: Row[] = [];
  for (const row of chosen) {
    const done = await measureRow(row, KINDS.get(row)!, setting);
    rows.push(done);
    say(rowText(done));
  }
  setting.freeModel();
  const peersFailed = peers === undefined ? [] : await runPeers({
    folder: peers,
    rows,
    kinds: KINDS,
    model: options.model,
    runs: options.runs,
    onProgress: (what) => say(`${what} …`),
  });
  for (const row of rows) say(peersText(row));
  for (const failure of peersFailed) say(`peer failed: ${failure}`);
  const report: BenchReport = {
    model: shownUrl(options.model),
    adapter: gpu.name,
    software: gpu.software,
    choices: gpu.choices,
    deno: Deno.version.deno,
    peaks,
    runs: options.runs,
    maxTokens: options.maxTokens,
    rows,
    peersFailed,
    seconds: (performance.now() - began) / 1000,
  };
  console.log(markdown ? reportMarkdown(report) : JSON.stringify(report));
  return rows.some(({ failed }) => failed) || peersFailed.length ? 1 : 0;
});

/** Measures one row; if it fails, the others still run. */
async function measureRow(
  row: string,
  kind: RowKind,
  setting: BenchSetting,
): Promise<Row> {
  const { what, targets } = kind;
  const start: Row = { row, what, targets, measures: [], peers: [] };
  try {
    return { ...start, ...await kind.measure(setting) };
  } catch (error) {
    const why = errorText(error);
    return error instanceof Unmeasurable
      ? { ...start, unmeasured: why }
      : { ...start, failed: why };
  }
}
