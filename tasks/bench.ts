/**
 * Measures the speed targets on this machine: for each row, the median of several warm
 * runs, the spread, and the fraction of the adapter's measured peak.
 *
 *   deno task bench
 *   deno task bench --only decode-128,prefill-512 --peers .peers
 *   deno task bench --model models/stories-3m --only decode-128,load --runs 2
 *   deno task bench --markdown
 *   deno task bench --against ../before --only decode-128,decode-128-8b
 *
 * Rows go to stdout as they are done; a row that this machine or model cannot run says
 * why. What runs and about how long goes to stderr. With `--json` stdout is one line, a
 * `BenchReport` of bench/report.ts, and with `--markdown` it is the table that
 * bench/log.md keeps. Beside tokens/s are the GB/s at which the weights, as they are
 * stored and without the embedding table, and the cached keys and values have been read,
 * and the share of the peak. `--against DIR` runs the bench of another checkout in turns
 * with this one and prints both, with the median of the pairs' ratios. `deno bench` times single kernels, see bench/*_bench.ts.
 */
import {
  againstMarkdown,
  type AgainstReport,
  againstText,
  pairRows,
  requireCheckout,
  runPairs,
} from "../bench/against.ts";
import { reportMarkdown } from "../bench/markdown.ts";
import { modelOfPeers, requirePeers, runPeers } from "../bench/peers.ts";
import { aboutText, Speed } from "../bench/estimate.ts";
import {
  type BenchReport,
  headText,
  peersText,
  type Row,
  rowText,
  Unmeasurable,
} from "../bench/report.ts";
import { chooseRows, type RowKind, rowKinds, runsText } from "../bench/rows.ts";
import { BenchSetting, type OnGpu } from "../bench/setting.ts";
import { targetsOf } from "../bench/targets.ts";
import { shownUrl } from "../lib/checkpoint/fetch.ts";
import { errorText, NoAdapterError } from "../lib/errors.ts";
import { taskArgs } from "./command.ts";
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

const DEFAULTS = { model: "synthetic:qwen3-0.6b", runs: 5, maxTokens: 256 };

const FLAGS: FlagTable = {
  "model": [
    "text",
    "folder, .gguf file, URL, owner/name[@revision][:TYPE] or synthetic:…",
    DEFAULTS.model,
  ],
  "only": ["text", "comma-separated list of rows", "all"],
  ...KV_FLAG,
  ...DEVICE_FLAGS,
  "runs": ["number", "timed runs per measurement", DEFAULTS.runs],
  "max-tokens": ["number", "tokens per generation", DEFAULTS.maxTokens],
  "peers": [
    "text",
    "also run llama.cpp, from a folder made by bench/peers/pack.sh",
  ],
  "against": [
    "text",
    "another checkout, run in turns with this one, --runs pairs of them",
  ],
  "json": ["switch", "print the report as one line of JSON instead of text"],
  "markdown": ["switch", "print a table in Markdown instead of text"],
  ...LOADING_FLAGS,
  ...THREADS_FLAG,
};

/** An estimate from which it is worth to say how to shorten a run. */
const LONG_SECONDS = 600;

/** Every row, with what it measures. */
const KINDS = rowKinds();
/** Rows that run on the CPU path. */
const CPU_ROWS = ["cpu", "gpu-over-cpu"];
const ROWS = [...KINDS].map(([name, { what }]) =>
  `  ${name.padEnd(14)} ${what}`
);

await runTask({
  usage: "deno task bench [flags]",
  flags: FLAGS,
  notes: `Rows:\n${
    ROWS.join("\n")
  }\n\nBeside tokens/s: GB/s of weights and cache read, % of the measured peak.`,
  flagsOnly: "bench",
  examples: [
    "deno task bench --only decode-128,prefill-512",
    "deno task bench --model models/stories-3m --runs 2 --max-tokens 16",
    "deno task bench --against ../before --only decode-128",
  ],
}, async (flags) => {
  const markdown = flags.on("markdown") ?? false;
  const json = flags.on("json") ?? false;
  if (markdown && json) {
    throw new Error(
      "Cannot bench: --json and --markdown are both given, must be one of them",
    );
  }
  using progress = await Progress.start();
  const options = {
    opening: { ...loadingOptions(flags), ...progress.options },
    device: deviceOptions(flags),
    kv: cacheRequest(flags),
    model: flags.text("model") ?? DEFAULTS.model,
    runs: flags.whole("runs", 1, 100) ?? DEFAULTS.runs,
    maxTokens: flags.whole("max-tokens", 8, 4096) ?? DEFAULTS.maxTokens,
  };
  const chosen = chooseRows(KINDS, flags.text("only"));
  const { threads } = options.opening;
  if (threads !== undefined && !CPU_ROWS.some((row) => chosen.includes(row))) {
    throw new Error(
      `Cannot bench: --threads is ${threads}, must be left out without the rows ${
        CPU_ROWS.join(" and ")
      }`,
    );
  }
  const peers = flags.text("peers");
  const against = flags.text("against");
  if (peers !== undefined && against !== undefined) {
    throw new Error(
      "Cannot bench: --against and --peers are both given, must be one of them",
    );
  }
  if (peers !== undefined) requirePeers(peers);
  if (against !== undefined) {
    const form = json ? "json" : markdown ? "markdown" : "text";
    return await compare(against, options, form, progress);
  }
  const print = json || markdown ? () => {} : (text: string) => {
    progress.clear();
    if (text) console.log(text);
  };

  const began = performance.now();
  using setting = await BenchSetting.open(options);
  const peersModel = peers === undefined
    ? undefined
    : modelOfPeers(options.model, setting.location);
  const model = shownUrl(options.model);
  const on = await openGpu(setting, chosen, progress);
  const speed = new Speed(
    setting.size,
    options,
    on && { peaks: on.peaks, software: on.gpu.software },
  );
  const seconds = (row: string) => KINDS.get(row)!.seconds(speed);
  progress.notice(planText(chosen, model, speed));
  print(headText(model, on));
  const rows: Row[] = [];
  for (const [i, row] of chosen.entries()) {
    const time = seconds(row) > 0 ? `, ${aboutText(seconds(row))}` : "";
    progress.notice(`${row} (${i + 1} of ${chosen.length})${time} …`);
    const done = await measureRow(row, KINDS.get(row)!, setting);
    rows.push(done);
    print(rowText(done));
  }
  setting.freeModel();
  const peersFailed = peersModel === undefined ? [] : await runPeers({
    folder: peers!,
    rows,
    kinds: KINDS,
    model: peersModel,
    threads,
    runs: options.runs,
    onProgress: (what) => progress.notice(`${what} …`),
  });
  print(peersText(rows));
  for (const failure of peersFailed) {
    progress.notice(`peer failed: ${failure}`);
  }
  const report: BenchReport = {
    model,
    adapter: on?.gpu.name,
    software: on?.gpu.software,
    choices: on?.gpu.choices,
    deno: Deno.version.deno,
    peaks: on?.peaks,
    runs: options.runs,
    maxTokens: options.maxTokens,
    rows,
    peersFailed,
    seconds: (performance.now() - began) / 1000,
  };
  if (json) console.log(JSON.stringify(report));
  if (markdown) console.log(reportMarkdown(report));
  return rows.some(({ failed }) => failed) || peersFailed.length ? 1 : 0;
});

/** Measures another checkout in turns with this one. */
async function compare(
  against: string,
  { runs, maxTokens }: { runs: number; maxTokens: number },
  form: "json" | "markdown" | "text",
  progress: Progress,
): Promise<number> {
  const folder = requireCheckout(against), began = performance.now();
  const reports = await runPairs(
    folder,
    taskArgs(),
    runs,
    (what) => progress.notice(`${what} …`),
  );
  const [{ model, adapter, deno }] = reports.ours;
  const rows = pairRows(reports);
  const report: AgainstReport = {
    ...{ model, against, adapter, deno, pairs: runs, maxTokens, rows },
    seconds: (performance.now() - began) / 1000,
  };
  progress.clear();
  console.log(
    form === "json"
      ? JSON.stringify(report)
      : form === "markdown"
      ? againstMarkdown(report)
      : againstText(report),
  );
  return rows.some(({ failed }) => failed) ? 1 : 0;
}

/**
 * Opens the GPU if a row needs it. Without an adapter, rows that do not are measured.
 *
 * @throws {NoAdapterError} if there are none.
 */
async function openGpu(
  setting: BenchSetting,
  rows: readonly string[],
  progress: Progress,
): Promise<OnGpu | undefined> {
  const others = rows.filter((row) => KINDS.get(row)!.onCpu);
  if (others.length === rows.length) return undefined;
  try {
    return await setting.onGpu();
  } catch (error) {
    if (!(error instanceof NoAdapterError) || others.length === 0) throw error;
    progress.notice(
      `${errorText(error)}; only ${others.join(", ")} is measured`,
    );
    return undefined;
  }
}

/** What runs, and about how long. */
function planText(rows: readonly string[], model: string, speed: Speed) {
  const { runs, maxTokens } = speed.options;
  const seconds = rows.reduce(
    (sum, row) => sum + KINDS.get(row)!.seconds(speed),
    0,
  );
  const which = rows.length === KINDS.size
    ? `all ${rows.length} rows`
    : rows.join(", ");
  const times = runsText(rows.map((row) => KINDS.get(row)!), runs);
  const shorter = seconds > LONG_SECONDS
    ? "; --only, --runs, --max-tokens or a smaller --model make it shorter"
    : "";
  return `Measuring ${which} with ${model}: ${times} each, up to ${maxTokens} tokens, ${
    aboutText(seconds)
  }${shorter}`;
}

/** Measures one row; if it fails, the others still run. */
async function measureRow(
  row: string,
  kind: RowKind,
  setting: BenchSetting,
): Promise<Row> {
  const { what } = kind, targets = targetsOf(row, setting.kind, kind.targets);
  const start: Row = { row, what, targets, measures: [], peers: [] };
  try {
    if (!kind.onCpu) await setting.onGpu();
    return { ...start, ...await kind.measure(setting) };
  } catch (error) {
    const why = errorText(error);
    return error instanceof Unmeasurable || error instanceof NoAdapterError
      ? { ...start, unmeasured: why }
      : { ...start, failed: why };
  }
}
