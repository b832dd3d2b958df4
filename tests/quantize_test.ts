/**
 * Models that are quantised on loading, against exact logits of the weights that
 * llama.cpp's quantiser makes.
 */
import { assert, assertRejects } from "@std/assert";
import { DEFAULT_MODEL, loadQwen3 } from "../mod.ts";
import { ggufCases } from "./support/gguf_golden.ts";
import { relativeError } from "./support/golden.ts";
import { gpuTest, someOf } from "./support/gpu.ts";

const FILES = new URL("fixtures/gguf/files/", import.meta.url).pathname;

const TYPES = ["Q8_0", "Q4_1", "Q5_0", "Q5_1"];
const ON_GPU = someOf(TYPES, 1);

for (const type of TYPES) {
  const test = (name: string, fn: (device: "cpu" | "gpu") => Promise<void>) => {
    Deno.test(`${name} (cpu)`, () => fn("cpu"));
    if (ON_GPU.includes(type)) gpuTest(`${name} (gpu)`, () => fn("gpu"));
  };
  test(`the story model quantised as ${type}`, async (device) => {
    using qwen = await loadQwen3(DEFAULT_MODEL, {
      device,
      precision: "f32",
      context: 80,
      quantize: type.toLowerCase(),
    });
    const cases = await ggufCases(`${FILES}stories-3m-${type}`);
    assert(cases.length > 0);
    for (const { name, input_ids: ids, positions_kept, exact } of cases) {
      const all = positions_kept === "all";
      const error = relativeError(await qwen.logits(ids, { all }), exact);
      assert(
        error <= 1e-4,
        `${name}: the relative error is ${error}, must be at most 1e-4`,
      );
    }
  });
}

Deno.test("an unknown quantisation is refused before anything is opened", async () => {
  await assertRejects(
    () => loadQwen3("no/such-model", { quantize: "q4" }),
    RangeError,
    `Cannot load no/such-model: quantize is "q4", must be such as q4_k_m, q4_k, q4_1, q4_0`,
  );
});
