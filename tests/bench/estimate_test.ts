import { assert, assertEquals } from "@std/assert";
import { aboutText, Speed } from "../../bench/estimate.ts";
import { rowKinds } from "../../bench/rows.ts";

/** Qwen3-0.6B in bf16. */
const MODEL = { bytes: 1.19e9, weights: 0.596e9, layers: 28, context: 40960 };
const OPTIONS = { model: "synthetic:qwen3-0.6b", runs: 5, maxTokens: 256 };
const H200 = {
  peaks: { readGBps: 4500, f32TFLOPS: 60, fillWorkgroups: 256 },
  software: false,
};
const SLOW = {
  peaks: { readGBps: 4, f32TFLOPS: 0.03, fillWorkgroups: 16 },
  software: true,
};

const kinds = rowKinds();
const seconds = (speed: Speed, rows = [...kinds.keys()]) =>
  rows.reduce((sum, row) => sum + kinds.get(row)!.seconds(speed), 0);

Deno.test("estimates tell a large GPU from a software renderer", () => {
  const fast = new Speed(MODEL, OPTIONS, H200, 16);
  const slow = new Speed(MODEL, OPTIONS, SLOW, 2);
  // Measured on an H200: 0.94 ms a token, 15 ms for a prompt of 512.
  const token = fast.generate(128, 257) - fast.generate(128, 256);
  assert(token > 0.4e-3 && token < 2e-3, `${token} s`);
  const prompt = fast.generate(512, 1);
  assert(prompt > 5e-3 && prompt < 60e-3, `${prompt} s`);
  assert(seconds(slow) > 100 * seconds(fast));
  assert(
    seconds(slow, ["cpu"]) ===
      seconds(new Speed(MODEL, OPTIONS, undefined, 2), ["cpu"]),
  );
});

Deno.test("more runs take longer, and rows beyond the context take no time", () => {
  const one = new Speed(MODEL, { ...OPTIONS, runs: 1 }, H200, 2);
  const many = new Speed(MODEL, { ...OPTIONS, runs: 50 }, H200, 2);
  for (const row of kinds.keys()) {
    assert(seconds(many, [row]) > seconds(one, [row]), row);
  }
  const short = new Speed({ ...MODEL, context: 1024 }, OPTIONS, H200, 2);
  for (const row of ["decode-2048", "prefill-2048", "context"]) {
    assertEquals(seconds(short, [row]), 0, row);
  }
});

Deno.test("times are said in words that promise no more than they know", () => {
  assertEquals([0.1, 12, 94, 96, 3000, 7200, 90000].map(aboutText), [
    "a few seconds",
    "about 20 s",
    "about 100 s",
    "about 2 min",
    "about 50 min",
    "about 2 h",
    "about 25 h",
  ]);
});
