/**
 * The speed targets on this machine: a row for each, warmed up, the median of several
 * runs with its spread, and the fraction of what this adapter can do at best.
 *
 *   deno task bench
 *   deno task bench --only decode-128,prefill-512 --peers .peers
 *   deno task bench --model models/stories-3m --only decode-128,load --runs 2
 *
 * The table goes to stderr as rows are done; the last line of stdout is a
 * `BenchReport` of bench/report.ts as JSON. Rows that this machine or model cannot
 * have say why. `deno bench` times the kernels alone, see bench/*_bench.ts.
 */
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
import { type FlagTable, helpText, readFlags, runTask } from "./flags.ts";

const FLAGS: FlagTable = {
  "model": [
    "text",
    "directory, URL, owner/name[@revision] or synthetic:…; default: synthetic:qwen3-0.6b",
  ],
  "only": ["text", "these rows, a list with commas"],
  "runs": ["number", "timed runs of each measure; 5 by default"],
  "max-tokens": ["number", "tokens of a generation; 256 by default"],
  "peers": [
    "text",
    "a folder made by bench/peers/pack.sh: runs llama.cpp beside ours",
  ],
  "json": ["switch", "the line of JSON alone, no table"],
  "help": ["switch", "this text"],
};

await runTask(async () => {
  const flags = readFlags(Deno.args, FLAGS);
  const kinds = rowKinds();
  if (flags.on("help")) {
    const rows = [...kinds].map(([name, { what }]) =>
      `  ${name.padEnd(14)} ${what}`
    );
    const usage = helpText("deno task bench [flags]", FLAGS);
    console.log(`${usage}\n\nRows:\n${rows.join("\n")}`);
    return 0;
  }
  if (flags.words.length) {
    throw new Error(
      `Cannot bench: ${
        flags.words[0]
      } is not a flag, all there is to say is said by flags`,
    );
  }
  const options = {
    model: flags.text("model") ?? "synthetic:qwen3-0.6b",
    runs: whole("runs", flags.number("runs"), 5, 1, 100),
    maxTokens: whole("max-tokens", flags.number("max-tokens"), 256, 8, 4096),
  };
  const chosen = chooseRows(kinds, flags.text("only"));
  const peers = flags.text("peers");
  if (peers !== undefined) requirePeers(peers);
  const say = flags.on("json") ? () => {} : (text: string) => {
    if (text) console.error(text);
  };

  const began = performance.now();
  using setting = await BenchSetting.open(options);
  const { gpu, peaks } = setting;
  say(`${options.model} on ${gpu.name}, Deno ${Deno.version.deno}`);
  say(peaksText(peaks));
  const rows: Row[] = [];
  for (const row of chosen) {
    const done = await measureRow(row, kinds.get(row)!, setting);
    rows.push(done);
    say(rowText(done));
  }
  setting.freeModel();
  const peersFailed = peers === undefined ? [] : await runPeers({
    ...{ folder: peers, rows, kinds },
    ...{ model: options.model, runs: options.runs },
    onProgress: (what) => say(`${what} …`),
  });
  for (const row of rows) say(peersText(row));
  for (const failure of peersFailed) say(`peer failed: ${failure}`);
  const report: BenchReport = {
    model: options.model,
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
  console.log(JSON.stringify(report));
  return rows.some(({ failed }) => failed) || peersFailed.length ? 1 : 0;
});

/** One row; what goes wrong there leaves the others be. */
async function measureRow(
  row: string,
  kind: RowKind,
  setting: BenchSetting,
): Promise<Row> {
  const start: Row = { row, what: kind.what, measures: [], peers: [] };
  try {
    return { ...start, ...await kind.measure(setting) };
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    return error instanceof Unmeasurable
      ? { ...start, unmeasured: why }
      : { ...start, failed: why };
  }
}

function whole(
  name: string,
  value: number | undefined,
  otherwise: number,
  least: number,
  most: number,
): number {
  if (value === undefined) return otherwise;
  if (Number.isInteger(value) && value >= least && value <= most) return value;
  throw new RangeError(
    `Cannot bench: --${name} is ${value}, must be an integer from ${least} to ${most}`,
  );
}
