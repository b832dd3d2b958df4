/**
 * Another checkout of this project in turns with this one: `deno task bench --against DIR`.
 * A turn is a process of each, so that anything may differ between them; what slows one turn
 * slows the other, so their ratio says more than two medians do.
 *
 * @module
 */
import { fileURLToPath, pathToFileURL } from "node:url";
import { WIDTH, wrap } from "../lib/text/messages.ts";
import { spread } from "../lib/webgpu/timing.ts";
import { cleanOnSignal } from "../tasks/interrupts.ts";
import { aligned, escaped, resultText } from "./markdown.ts";
import {
  type BenchReport,
  type Measure,
  measure,
  number,
  type Row,
} from "./report.ts";

/** One quantity of both checkouts, and ours over theirs in each pair. */
export interface Pairs {
  name: string;
  ours: Measure;
  theirs: Measure;
  ratio: { median: number; low: number; high: number };
}

/** One row of both. */
export interface RowPairs {
  row: string;
  pairs: Pairs[];
  /** Why there are none. */
  problem?: string;
  /** Whether measuring failed. */
  failed?: boolean;
}

/** Everything that `--against` measured. */
export interface AgainstReport {
  model: string;
  /** The other checkout. */
  against: string;
  adapter?: string;
  deno: string;
  pairs: number;
  maxTokens: number;
  rows: RowPairs[];
  seconds: number;
}

/** Which checkout has its turn. */
type Side = "ours" | "theirs";

/** This checkout. */
const HERE = new URL("..", import.meta.url);
/** Flags that a turn gets from here, and whether each has a value. */
const OWN = new Map([
  ...["against", "runs"].map((name) => [name, true] as const),
  ...["json", "markdown"].map((name) => [name, false] as const),
]);

/**
 * The folder of another checkout.
 *
 * @throws {Error} if it is none, or this bench is not on this machine
 */
export function requireCheckout(path: string): URL {
  if (HERE.protocol !== "file:") {
    throw new Error(
      "Cannot bench against another checkout: this one is not on this machine, run bench in a copy of the tree",
    );
  }
  try {
    const folder = pathToFileURL(`${Deno.realPathSync(path)}/`);
    Deno.statSync(new URL("tasks/bench.ts", folder));
    return folder;
  } catch {
    throw new Error(
      `Cannot bench against ${path}: it has no tasks/bench.ts, must be a checkout of this project`,
    );
  }
}

/** The flags of a turn: those of the whole but for its own. */
export function turnFlags(args: readonly string[]): string[] {
  const kept: string[] = [];
  for (let i = 0; i < args.length; i++) {
    const [flag, value] = args[i].split("=");
    const takesValue = flag.startsWith("--")
      ? OWN.get(flag.slice(2))
      : undefined;
    if (takesValue === undefined) kept.push(args[i]);
    else if (takesValue && value === undefined) i++;
  }
  return [...kept, "--runs", "1", "--json"];
}

/** Runs the pairs; the checkout that begins changes from one to the next. */
export async function runPairs(
  folder: URL,
  args: readonly string[],
  count: number,
  onProgress: (what: string) => void,
): Promise<{ ours: BenchReport[]; theirs: BenchReport[] }> {
  const reports = { ours: [] as BenchReport[], theirs: [] as BenchReport[] };
  for (let pair = 0; pair < count; pair++) {
    const sides: Side[] = pair % 2 ? ["theirs", "ours"] : ["ours", "theirs"];
    for (const side of sides) {
      onProgress(`pair ${pair + 1} of ${count}, ${side}`);
      const where = side === "ours" ? HERE : folder;
      reports[side].push(await turn(where, turnFlags(args)));
    }
  }
  return reports;
}

/** The report of one process. */
async function turn(folder: URL, flags: string[]): Promise<BenchReport> {
  const script = new URL("tasks/bench.ts", folder);
  const child = new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "-A", "--no-lock", "--no-check"],
      ...["--config", fileURLToPath(new URL("deno.json", folder))],
      ...[script.href, ...flags],
    ],
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  using _ = cleanOnSignal(() => child.kill("SIGINT"));
  const { stdout, stderr } = await child.output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes).trim();
  try {
    return JSON.parse(text(stdout).split("\n").at(-1)!);
  } catch {
    const lines = text(stderr).split("\n");
    const error = lines.find((line) => line.startsWith("error: "));
    const why = error?.slice("error: ".length) ?? lines.at(-1);
    throw new Error(`Cannot bench ${fileURLToPath(folder)}: ${why}`);
  }
}

/** Puts the reports of all pairs together, row by row. */
export function pairRows(
  { ours, theirs }: { ours: BenchReport[]; theirs: BenchReport[] },
): RowPairs[] {
  return ours[0].rows.map(({ row, measures }) => {
    const find = (reports: readonly BenchReport[]) =>
      reports.map(({ rows }) => rows.find((one) => one.row === row));
    const found = { ours: find(ours), theirs: find(theirs) };
    for (const [side, rows] of Object.entries(found)) {
      const [failed, problem] = rows.map(problemOf).find(Boolean) ?? [];
      if (problem) {
        return { row, pairs: [], failed, problem: `${side}: ${problem}` };
      }
    }
    const values = (rows: readonly (Row | undefined)[], name: string) =>
      rows.flatMap((one) =>
        one!.measures.filter((measure) => measure.name === name)
          .map(({ median }) => median)
      );
    const pairs = measures.flatMap(({ name, unit }) => {
      const a = values(found.ours, name), b = values(found.theirs, name);
      if (b.length !== a.length) return []; // the other one has no such measure
      return [{
        name,
        ours: measure(name, unit, a),
        theirs: measure(name, unit, b),
        ratio: spread(a.map((value, i) => value / b[i])),
      }];
    });
    return { row, pairs };
  });
}

function problemOf(
  row: Row | undefined,
): [failed: boolean, why: string] | void {
  if (row === undefined) return [false, "it has no such row"];
  if (row.failed !== undefined) return [true, `failed: ${row.failed}`];
  if (row.unmeasured !== undefined) {
    return [false, `not measured: ${row.unmeasured}`];
  }
}

/** `1.09 (1.08–1.10)` */
function ratioText({ ratio: { median, low, high }, ours: { runs } }: Pairs) {
  const text = (value: number) => value.toFixed(3);
  return runs > 1
    ? `${text(median)} (${text(low)}–${text(high)})`
    : text(median);
}

/** What was measured. */
export function againstHead(report: AgainstReport): string {
  const { model, adapter, deno, against, pairs } = report;
  const where = adapter === undefined ? "" : ` on ${adapter}`;
  return `${model}${where}, Deno ${deno}, against ${against}: medians of ${pairs} ${
    pairs === 1 ? "pair" : "pairs"
  }, ours ÷ theirs with its spread`;
}

/** The report as text. */
export function againstText(report: AgainstReport): string {
  const line = (cells: readonly string[]) =>
    cells.map((cell, i) =>
      i < 2 ? cell.padEnd([14, 27][i]) : cell.padStart([16, 16, 22][i - 2])
    ).join(" ").trimEnd();
  const value = ({ median, unit }: Measure) => `${number(median)} ${unit}`;
  return [
    ...wrap(againstHead(report), WIDTH, "", "  "),
    line(["row", "measure", "ours", "theirs", "ours ÷ theirs"]),
    ...report.rows.flatMap(({ row, pairs, problem }) =>
      problem === undefined
        ? pairs.map((one) =>
          line([
            row,
            one.name,
            value(one.ours),
            value(one.theirs),
            ratioText(one),
          ])
        )
        : wrap(`${row.padEnd(14)} ${problem}`, WIDTH, "", "  ")
    ),
  ].join("\n");
}

/** The report as Markdown, in the form that bench/log.md keeps. */
export function againstMarkdown(report: AgainstReport): string {
  const head = `${againstHead(report).replace(report.model, "`$&`")}.`;
  const lines = report.rows.flatMap(({ row, pairs, problem }) =>
    problem === undefined
      ? pairs.map((one, i) => [
        ...[i === 0 ? row : "", one.name, resultText(one.ours)],
        ...[resultText(one.theirs), ratioText(one)],
      ])
      : [[row, "", escaped(problem), "", ""]]
  );
  return [
    wrap(head, 80, "", "").join("\n"),
    aligned([["row", "measure", "ours", "theirs", "ours ÷ theirs"], ...lines]),
  ].join("\n\n");
}
