/**
 * The story model through Dawn, for tests/dawn_test.ts: prints what it computed as JSON,
 * and must then end by itself.
 *
 *   deno run -A tests/support/dawn_story.ts TOKENS
 */
import { DEFAULT_MODEL, loadQwen3 } from "../../mod.ts";
import { GpuRunner } from "../../lib/gpu/runner.ts";
import { generateGreedily, readGolden, relativeError } from "./golden.ts";

/** What the script prints. */
export interface DawnStory {
  implementation: string;
  compiler: string;
  /** The relative errors of the logits after each prompt. */
  errors: number[];
  /** Of transformers' own run in bf16. */
  allowed: number[];
  tokenIds: number[];
  greedy: number[];
  choices: string[];
}

const [tokens] = Deno.args;
const { cases } = await readGolden("demo", DEFAULT_MODEL);
const qwen = await loadQwen3(DEFAULT_MODEL, {
  device: "gpu",
  webgpu: "dawn",
});
if (!(qwen.runner instanceof GpuRunner)) throw new Error("no GPU");
const { implementation, compiler } = qwen.runner.gpu;
const errors: number[] = [];
for (const { tokenIds, logits } of cases) {
  errors.push(relativeError(await qwen.logits(tokenIds), logits));
}
const [{ name, greedy }] = cases;
const { tokenIds } = await generateGreedily(qwen, name, Number(tokens));
const story: DawnStory = {
  implementation,
  compiler,
  errors,
  allowed: cases.map(({ bf16Error }) => bf16Error),
  tokenIds,
  greedy: greedy.slice(0, tokenIds.length),
  choices: qwen.device.choices.map(({ what, value }) => `${what}: ${value}`),
};
console.log(JSON.stringify(story));
// Neither the open device nor Dawn may keep the process alive.
