import { assertEquals } from "@std/assert";
import { batchRow } from "../../bench/batch_row.ts";
import { compareRow } from "../../bench/cpu_rows.ts";
import { BenchSetting } from "../../bench/setting.ts";
import { gpuTest } from "../support/gpu.ts";
import { HARDWARE, wrapGpu } from "../support/wrapped_gpu.ts";

const STORIES = new URL("../../models/stories-3m", import.meta.url).pathname;

gpuTest("rows that profile do so on the GPU that was asked for", async () => {
  const { gpu, devices } = wrapGpu(HARDWARE);
  using setting = await BenchSetting.open({
    ...{ model: STORIES, runs: 1, maxTokens: 3 },
    ...{ device: { gpu }, kv: "q8_0" },
  });
  const { measures } = await batchRow(setting, 4, 2);
  assertEquals(measures.map(({ name }) => name), [
    "generateBatch",
    "over one sequence",
    "generate, one sequence",
    "GPU time",
  ]);
  assertEquals(devices.length, 3); // peaks, the model, its profile
  await compareRow(setting, 4);
  assertEquals(devices.length, 4);
});
