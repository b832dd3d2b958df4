import { assert, assertEquals, assertMatch } from "@std/assert";
import {
  againstMarkdown,
  type AgainstReport,
  againstText,
  pairRows,
  turnFlags,
} from "../../bench/against.ts";
import { type BenchReport, measure, type Row } from "../../bench/report.ts";

const row = (row: string, more: Partial<Row>): Row => ({
  ...{ row, what: "", measures: [], peers: [] },
  ...more,
});
const generate = (rate: number) => ({
  measures: [measure("generate", "tokens/s", [rate])],
});
const report = (...rows: Row[]): BenchReport => ({
  ...{ model: "a model", software: false, deno: "2.9.6", runs: 1 },
  ...{ maxTokens: 8, rows, peersFailed: [], seconds: 1 },
});

/** Three pairs in which ours is 2, 3 and 4 times as fast, whatever else went on. */
const PAIRS = {
  ours: [20, 60, 4].map((rate) =>
    report(
      row("decode-128", generate(rate)),
      row("new", generate(1)),
      row("memory", rate === 4 ? { failed: "a | b" } : generate(1)),
      row("f16", { unmeasured: "no f16" }),
    )
  ),
  theirs: [10, 20, 1].map((rate) =>
    report(
      row("decode-128", {
        measures: [...generate(rate).measures, measure("old", "ms", [1])],
      }),
      row("memory", generate(1)),
      row("f16", generate(1)),
    )
  ),
};
const WHOLE: AgainstReport = {
  ...{ model: "a model", against: "../before", adapter: "GPU" },
  ...{ deno: "2.9.6", pairs: 3, maxTokens: 8, seconds: 1 },
  rows: pairRows(PAIRS),
};

Deno.test("ratios are those of pairs, not of medians", () => {
  const [decode, added, memory, half] = pairRows(PAIRS);
  const [{ ours, theirs, ratio }, ...rest] = decode.pairs;
  assertEquals(rest, []);
  assertEquals([ours.median, theirs.median, ratio.median], [20, 10, 3]);
  assertEquals([ratio.low, ratio.high], [2, 4]);
  assertEquals(added, {
    ...{ row: "new", pairs: [], failed: false },
    problem: "theirs: it has no such row",
  });
  assertEquals(memory, {
    ...{ row: "memory", pairs: [], failed: true },
    problem: "ours: failed: a | b",
  });
  assertEquals(half.problem, "ours: not measured: no f16");
});

Deno.test("a turn gets the flags but for those of the whole", () => {
  assertEquals(
    turnFlags([
      ...["--against", "../before", "--only=cpu", "--runs=9", "--model", "m"],
      ...["--markdown", "--json", "--against=x", "--runs", "3", "--no-cache"],
    ]),
    ["--only=cpu", "--model", "m", "--no-cache", "--runs", "1", "--json"],
  );
});

Deno.test("pairs as text fit 100 columns, as Markdown one line", () => {
  const text = againstText(WHOLE);
  for (const line of text.split("\n")) assert(line.length <= 100, line);
  assertMatch(
    text,
    /^decode-128 +generate +20 .* +10 .* +3.000 \(2.000–4.000\)$/m,
  );
  assertMatch(text, /^memory +ours: failed: a \| b$/m);
  const markdown = againstMarkdown(WHOLE);
  assertMatch(markdown, /^`a model` on GPU, Deno 2.9.6, against/);
  assertMatch(markdown, /\| 3.000 \(2.000–4.000\) \|/);
  assertMatch(
    markdown,
    /^\| memory +\| +\| ours: failed: a \\\| b +\| +\| +\|$/m,
  );
});
