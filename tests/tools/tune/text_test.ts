import { assert, assertEquals } from "@std/assert";
import {
  caseText,
  summaryText,
  TABLE_HEAD,
  wrongText,
} from "../../../lib/tools/tune/text.ts";
import type { CaseReport, TuneReport } from "../../../lib/tools/tune/tune.ts";

const SHAPE: CaseReport = {
  key: "gemv bf16 1 640 192",
  labels: ["qkv_proj"],
  default: { WORKGROUP: 8, ROWS: 4, STEPS: 1 },
  gain: 0.0412,
  spread: 0.191,
  timed: 27,
  invalid: 18,
  refused: 0,
  wrong: 0,
  untried: 0,
  outcome: "the default stays",
};

const cells = (line: string) => line.split(/ {2,}/);

Deno.test("a row says how a shape was decided", () => {
  assertEquals(cells(TABLE_HEAD), [
    ...["kernel and shape", "outcome", "gain", "spread", "timed"],
  ]);
  const text = caseText(SHAPE);
  assertEquals(cells(text), [
    ...["gemv bf16 1 640 192", "the default stays", "4.1%", "19.1%", "27"],
  ]);
  assertEquals(text.length, TABLE_HEAD.length);
});

Deno.test("below it are only the constants that change, and what was not timed", () => {
  const winner = { WORKGROUP: 16, ROWS: 4, STEPS: 2 };
  const outcome = "tuned";
  const text = caseText({ ...SHAPE, outcome, winner, refused: 2, untried: 1 });
  assertEquals(text.split("\n").slice(1), [
    "    WORKGROUP 8 → 16, STEPS 1 → 2",
    "    2 refused, 1 untried",
  ]);
  const wrong = "the DEFAULT is wrong, run deno task doctor";
  const advised = caseText({
    ...SHAPE,
    outcome: wrong,
    gain: undefined,
    spread: undefined,
  });
  assertEquals(advised.split("\n")[1], "    run deno task doctor");
});

Deno.test("everything fits 100 columns", () => {
  const names = Array.from({ length: 20 }, (_, i) => `A_LONG_CONSTANT_${i}`);
  const all = (value: number) =>
    Object.fromEntries(names.map((name) => [name, value]));
  const shape = {
    ...SHAPE,
    key: "gemvRows bf16 swiglu 32 151936 25600",
    default: all(1),
    winner: all(1024),
    outcome: "no time was left to decide",
    gain: -12.345,
    spread: 123.456,
    timed: 12345,
  };
  const report: TuneReport = {
    model: "m",
    adapter: "NVIDIA GeForce RTX 4090 Laptop GPU (a driver of a long name)",
    seconds: 1234,
    file: `/home/${"somebody/".repeat(8)}tuning.json`,
    winners: 12,
    cases: [shape],
    wrong: [{
      key: shape.key,
      constants: all(7),
      problem:
        "gate_up_proj differs from the CPU at [3, 4]: 1 on the GPU, not 2",
    }],
    notes: [],
  };
  const lines = [TABLE_HEAD, caseText(shape), summaryText(report)]
    .concat(wrongText(report)).join("\n").split("\n");
  for (const line of lines) assert([...line].length <= 100, line);
  assert(lines.length > 10);
});
