import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { fillAngles, ropeFrequencies } from "../../lib/model/rope.ts";
import { parseConfig } from "../../lib/model/families.ts";

const yarn = {
  factor: 4,
  originalMaxPositionEmbeddings: 128,
  attentionFactor: 0.1 * Math.log(4) + 1,
  betaFast: 32,
  betaSlow: 1,
  truncate: true,
};

/** Relative, as frequencies span many orders of magnitude. */
function assertClose(actual: number, expected: number) {
  assertAlmostEquals(actual / expected, 1, 2 ** -23);
}

Deno.test("plain RoPE has the frequencies theta^(-2i/d)", () => {
  const { inverse, scale } = ropeFrequencies({
    headDim: 128,
    ropeTheta: 1e6,
    ropeScaling: null,
  });
  assertEquals(scale, 1);
  assertEquals(inverse.length, 64);
  assertEquals(inverse[0], 1);
  for (const [i, value] of inverse.entries()) {
    assertEquals(value, Math.fround(Math.exp(-Math.log(1e6) * i / 64)));
  }
});

Deno.test("YaRN keeps fast pairs, slows slow ones down and blends between", () => {
  // The setting that Qwen3's model cards recommend for long texts.
  const headDim = 128, ropeTheta = 1e6, trained = 32768;
  const { inverse } = ropeFrequencies({
    headDim,
    ropeTheta,
    ropeScaling: { ...yarn, originalMaxPositionEmbeddings: trained },
  });
  // The pair that makes `times` turns in the trained context, found by bisection.
  const pair = (times: number) => {
    let low = 0, high = headDim;
    for (let n = 0; n < 100; n++) {
      const middle = (low + high) / 2;
      const turns = trained * ropeTheta ** (-2 * middle / headDim) /
        (2 * Math.PI);
      if (turns > times) low = middle;
      else high = middle;
    }
    return low;
  };
  const first = Math.floor(pair(32)), last = Math.ceil(pair(1));
  assert(first > 0 && last < headDim / 2 && first < last);
  for (const [i, value] of inverse.entries()) {
    const plain = ropeTheta ** (-2 * i / headDim);
    if (i <= first) assertClose(value, plain);
    else if (i >= last) assertClose(value, plain / 4);
    else {
      const kept = (last - i) / (last - first);
      assertClose(value, plain * (kept + (1 - kept) / 4));
    }
  }
});

Deno.test("YaRN's boundaries are fractional if the checkpoint says truncate: false", () => {
  const of = (truncate: boolean) =>
    ropeFrequencies({
      headDim: 64,
      ropeTheta: 1e4,
      ropeScaling: { ...yarn, originalMaxPositionEmbeddings: 4096, truncate },
    }).inverse;
  // d·ln(L / (2π·beta)) / (2·ln theta) = 10.46 and 22.51 here.
  const first = 32 * Math.log(4096 / (64 * Math.PI)) / Math.log(1e4);
  const last = 32 * Math.log(4096 / (2 * Math.PI)) / Math.log(1e4);
  const blended = (i: number, first: number, last: number) =>
    1e4 ** (-i / 32) * (1 - 0.75 * (i - first) / (last - first));
  assertClose(of(true)[15], blended(15, Math.floor(first), Math.ceil(last)));
  assertClose(of(false)[15], blended(15, first, last));
});

Deno.test("YaRN of the tiny checkpoint, where the first boundary is clamped to 0", async () => {
  const url = new URL(
    "../fixtures/tiny-yarn-bf16/config.json",
    import.meta.url,
  );
  const config = parseConfig(
    JSON.parse(await Deno.readTextFile(url)),
    "config.json",
  );
  const { inverse, scale } = ropeFrequencies(config);
  assertAlmostEquals(scale, 1.1386294361119891, 1e-15);
  // 32 turns in 128 positions: below pair 0. One turn: pair 5.23, rounded up to 6.
  for (let i = 0; i < 16; i++) {
    const kept = Math.max(1 - i / 6, 0);
    assertClose(inverse[i], 10 ** (-i / 4) * (kept + (1 - kept) / 4));
  }
});

Deno.test("fillAngles continues a table, with angles rounded to f32 before cos and sin", () => {
  const frequencies = {
    inverse: Float32Array.of(1, 0.3, 0.1),
    scale: 1.5,
  };
  const table = new Float32Array(40_000 * 6).fill(NaN);
  fillAngles(frequencies, table, 30_000);
  assert(table.subarray(0, 30_000 * 6).every(Number.isNaN));
  for (const position of [30_000, 33_333, 39_999]) {
    frequencies.inverse.forEach((inverse, i) => {
      const angle = Math.fround(position * inverse);
      const [cos, sin] = [0, 3].map((half) => table[position * 6 + half + i]);
      assertEquals(cos, Math.fround(1.5 * Math.cos(angle)));
      assertEquals(sin, Math.fround(1.5 * Math.sin(angle)));
    });
  }
});
