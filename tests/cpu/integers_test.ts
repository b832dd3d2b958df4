/** Quantised models whose quants the CPU multiplies as integers. */
import { assert, assertEquals } from "@std/assert";
import { DEFAULT_MODEL, loadQwen3 } from "../../mod.ts";
import { relativeError } from "../support/golden.ts";

/** The first token of stories, and some that follow it. */
const IDS = [1, 365, 400, 29];
const QUANTIZED = "quantised matmuls of few rows";

Deno.test("a model whose rows are rounded to 16 bits is as exact as promised", async () => {
  for (const quantize of ["q8_0", "q4_0", "q5_1"]) {
    const load = (precision: "auto" | "f32") =>
      loadQwen3(DEFAULT_MODEL, { device: "cpu", quantize, precision });
    using exact = await load("f32");
    using rounded = await load("auto");
    for (const id of IDS) {
      const expected = await exact.logits([id]);
      const error = relativeError(await rounded.logits([id]), expected);
      // Rounding is visible, so integers were multiplied; and it is small.
      assert(error > 1e-6 && error <= 1e-4, `${quantize}, ${id}: ${error}`);
    }
  }
});

Deno.test("rounding is a choice with its reason, where weights are quantised", async () => {
  const choiceOf = async (quantize?: string, precision?: "f32") => {
    using qwen = await loadQwen3(DEFAULT_MODEL, {
      device: "cpu",
      quantize,
      precision,
    });
    const choice = qwen.device.choices.find(({ what }) => what === QUANTIZED);
    return choice && `${choice.value}: ${choice.reason}`;
  };
  assertEquals(await choiceOf(), undefined);
  assertEquals(
    await choiceOf("q8_0"),
    "as integers, rows rounded to 16 bits: faster; what is beside an outlier stays in f32",
  );
  assertEquals(
    await choiceOf("q8_0", "f32"),
    "f32: precision f32 was asked for",
  );
});
