import { assert, assertEquals } from "@std/assert";
import { rowKinds } from "../../bench/rows.ts";
import { kindOf, targetsOf } from "../../bench/targets.ts";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";

async function targets(model: string) {
  await using checkpoint = await openCheckpoint(model);
  const kind = kindOf(checkpoint);
  return (row: string) => targetsOf(row, kind, rowKinds().get(row)!.targets);
}

Deno.test("quantised models have targets of their own", async () => {
  for (
    const [model, row, expected] of [
      ["8b?dtype=q4_k_m", "decode-128", "2.0 × llama.cpp, better 2.6"],
      ["8b?dtype=q4_k_m", "decode-2048", "1.9 × llama.cpp, better 2.4"],
      ["8b?dtype=q8_0", "decode-128", "1.5 × llama.cpp, better 1.8"],
      ["8b?dtype=q8_0", "decode-2048", undefined],
      ["0.6b?dtype=q4_k_m", "decode-128", "2.2 × llama.cpp, better 2.8"],
      ["0.6b?dtype=q4_k_m", "prefill-512", undefined],
      ["0.6b?dtype=q8_0", "cpu", "0.7 × llama.cpp, better 1.0"],
      ["0.6b?dtype=q5_0", "decode-128", undefined],
      ["30b-a3b?dtype=q4_k_m", "decode-128", "1.5 × llama.cpp, better 2.5"],
      ["0.6b", "decode-128", "1.6 × llama.cpp, better 2"],
      ["0.6b", "cpu", undefined],
    ] as const
  ) {
    const found = (await targets(`synthetic:qwen3-${model}`))(row);
    assertEquals(found?.generate, expected, `${model} ${row}`);
  }
  const large = await targets("synthetic:qwen3-8b?dtype=q4_k_m");
  assertEquals(large("batch-16"), {
    generateBatch: "1.8 × llama.cpp, better 3",
  });
  // What does not depend on the model stays.
  assert(large("first-token") !== undefined);
});
