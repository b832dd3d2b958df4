/**
 * The outcome of tuning as text for a terminal, in lines of at most 100 columns.
 *
 * @module
 */
import { WIDTH, wrap } from "../../text/messages.ts";
import { candidateText } from "./candidates.ts";
import type { CaseReport, TuneReport } from "./tune.ts";

/** Widths of the columns; the last ones are numbers. */
const WIDTHS = [46, 28, 6, 7, 6], NUMBERS = 2;

/** The head of the table. */
export const TABLE_HEAD: string = row([
  ...["kernel and shape", "outcome", "gain", "spread", "timed"],
]);

function row(cells: string[]): string {
  return cells.map((cell, i) =>
    i < NUMBERS ? cell.padEnd(WIDTHS[i]) : cell.padStart(WIDTHS[i])
  ).join(" ").trimEnd();
}

/**
 * A row for a case: the share of a pass that its best candidate saves, the spread, and how
 * many candidates were timed. Below it are the constants that a winner changes, and what
 * kept other candidates from being timed.
 */
export function caseText(found: CaseReport): string {
  const { key, gain, spread, winner, timed, outcome } = found;
  const percent = (share?: number) =>
    share === undefined ? "" : `${(100 * share).toFixed(1)}%`;
  const changed = Object.entries(winner ?? {}).flatMap(([name, value]) => {
    const before = found.default[name];
    return before === value ? [] : [`${name} ${before} → ${value}`];
  });
  const counts = (["refused", "wrong", "untried"] as const)
    .filter((name) => found[name])
    .map((name) => `${found[name]} ${name}`);
  const [short, ...advice] = outcome.split(", ");
  const more = [...advice, changed.join(", "), counts.join(", ")]
    .filter(Boolean);
  return [
    row([key, short, percent(gain), percent(spread), String(timed)]),
    ...more.flatMap((line) => wrap(line, WIDTH, "    ", "      ")),
  ].join("\n");
}

/** Candidates with wrong results, one a paragraph. */
export function wrongText({ wrong }: TuneReport): string[] {
  return wrong.map(({ key, constants, problem }) =>
    wrap(
      `${key} is WRONG with ${candidateText(constants)}: ${problem}`,
      WIDTH,
      "✗ ",
      "  ",
    ).join("\n")
  );
}

/** How many shapes have a winner, and where that is stored. */
export function summaryText(report: TuneReport): string {
  const { winners, cases, file, seconds, adapter } = report;
  const stored = file ? `stored in ${file}` : "nothing was stored (--dry-run)";
  return wrap(
    `tuned constants beat the defaults for ${winners} of ${cases.length} shapes on ${adapter} (${
      seconds.toFixed(0)
    } s); ${stored}`,
    WIDTH,
    "",
    "  ",
  ).join("\n");
}
