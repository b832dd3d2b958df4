/**
 * The whole model against transformers, on GPU and CPU.
 *
 * A software adapter needs minutes where a GPU needs milliseconds, so prompts and greedy
 * texts that cost too much, or repeat what others show, are left out unless
 * QWEN3_ALL_LENGTHS=1.
 */
import { assert, assertEquals } from "@std/assert";
import { elements } from "../lib/dtype.ts";
import { familyOf } from "../lib/model/families.ts";
import { tensorShapes } from "../lib/model/family.ts";
import { DEFAULT_MODEL, loadQwen3, type Qwen3 } from "../mod.ts";
import {
  assertGreedy,
  generateGreedily,
  type Golden,
  type GoldenCase,
  largestError,
  perplexity,
  readGolden,
  readSyntheticGolden,
  relativeError,
} from "./support/golden.ts";
import {
  gpuTest,
  type Precision,
  PRECISIONS,
  precisionsOnGpu,
  testedOn,
} from "./support/gpu.ts";
import { slowTest } from "./support/quick.ts";

type Device = "gpu" | "cpu";

/** Relative errors allowed: of precision f32, and between GPU and CPU. */
const F32_ERROR = 1e-4, DEVICE_ERROR = 1e-3;

/** Multiplications allowed for a prompt or a greedy text: seconds each on two cores. */
const ALL_LENGTHS = Deno.env.get("QWEN3_ALL_LENGTHS") === "1";
const AFFORDABLE = ALL_LENGTHS
  ? { gpu: Infinity, cpu: Infinity }
  : { gpu: 6e9, cpu: 40e9 };
/** The one model with all its layers: prompts up to 17 tokens run at any cost. */
const WHOLE = "qwen3-0.6b", WHOLE_TOKENS = 17;
/**
 * Models whose text is written after the prompt of one token only: it runs a decode step's
 * matrices. What a step reads of a longer prompt's keys and values depends on the heads,
 * not on these matrices, and the smaller models read it.
 */
const LARGE = /^qwen3-(8|14|32)b/;
/**
 * Models that run the prompt of one token only where "auto" differs from "f32" in nothing
 * but the type of the cache: 4b has heads like theirs, and longer prompts are checked in
 * f32, in this run or another.
 */
const SAME_IN_F32 = /^qwen3-(0\.6|1\.7|8|14|32)b/;

const TINY = [
  "tiny-tied-bf16",
  "tiny-tied-with-head-bf16",
  "tiny-untied-f32",
  "tiny-sharded-f16",
  "tiny-yarn-bf16",
  "tiny-outlier-bf16",
  "tiny-moe-bf16",
];
const SYNTHETIC = [
  WHOLE,
  "qwen3-1.7b-2layer",
  "qwen3-4b-2layer",
  "qwen3-8b-2layer",
  "qwen3-14b-1layer",
  "qwen3-32b-1layer",
];

const STORIES = "stories-3m";
const small = precisionsOnGpu([...TINY, STORIES], 3);
const large = precisionsOnGpu(SYNTHETIC, 1);
for (const name of [...TINY, STORIES]) {
  const read = name === STORIES ? readStories : () => readGolden(name);
  testGolden(name, read, small(name), Deno.test);
}
for (const name of SYNTHETIC) {
  const read = () => readSyntheticGolden(name);
  const precisions = large(name);
  // Seconds each. What the GPU computes in f32 is as close to the same reference.
  const byGpu = precisions.length === 1 && precisions[0] === "f32";
  testGolden(name, read, precisions, byGpu ? undefined : slowTest);
}

function assertPerplexity(actual: number, expected: number): void {
  assert(
    Math.abs(actual / expected - 1) <= 1e-3,
    `it is ${actual}, expected ${expected}`,
  );
}

Deno.test("the story model's perplexity equals transformers' on the cpu", async () => {
  using qwen = await loadQwen3(DEFAULT_MODEL, { device: "cpu" });
  const { prompts, expected } = await textsOfStories(qwen);
  assertPerplexity(await perplexity(qwen, prompts), expected);
});

gpuTest(
  "the story model's perplexity equals transformers' on the gpu",
  async (_, trial) => {
    const options = { device: "gpu", ...testedOn("gpu") } as const;
    using qwen = await loadQwen3(DEFAULT_MODEL, options);
    const { prompts, expected } = await textsOfStories(qwen);
    // A software adapter computes some of them, which the reference has only together.
    const some = trial.some(prompts, 2);
    if (some.length === prompts.length) {
      return assertPerplexity(await perplexity(qwen, prompts), expected);
    }
    using onCpu = await loadQwen3(DEFAULT_MODEL, { device: "cpu" });
    assertPerplexity(
      await perplexity(qwen, some),
      await perplexity(onCpu, some),
    );
  },
);

/** Prompts whose perplexity the reference has. */
async function textsOfStories({ tokenizer }: Qwen3) {
  const { json } = await readStories();
  const { texts, max_tokens, perplexity: expected } = json.perplexity;
  const prompts: number[][] = texts.map((text: string) =>
    tokenizer.encode(text).slice(0, max_tokens)
  );
  return { prompts, expected };
}

function readStories(): Promise<Golden> {
  return readGolden("demo", DEFAULT_MODEL);
}

/**
 * Tests logits and greedy tokens of every case on the GPU in `precisions`, and on the CPU
 * if `cpuTest` registers that.
 */
function testGolden(
  name: string,
  read: () => Promise<Golden>,
  precisions: readonly Precision[],
  cpuTest?: (name: string, fn: () => Promise<void>) => void,
) {
  const logits = new Map<string, Promise<Logits>>();
  const logitsOf = (device: Device, precision: Precision, software = false) => {
    const key = `${device} ${precision}`;
    const known = logits.get(key) ??
      check(read(), device, precision, software);
    logits.set(key, known);
    return known;
  };
  for (const precision of precisions) {
    gpuTest(`${name} on the gpu, precision ${precision}`, async (gpu) => {
      await logitsOf("gpu", precision, gpu.software);
    });
  }
  if (!cpuTest) return;
  cpuTest(`${name} on the cpu`, async () => {
    await logitsOf("cpu", "auto"); // the CPU always computes in f32
  });
  if (!precisions.length) return;
  gpuTest(`${name}: gpu and cpu agree`, async ({ software }) => {
    const onCpu = await logitsOf("cpu", "auto");
    // On hardware auto multiplies in f16 and is held to the bf16 reference's error above.
    const compared = software ? precisions : PRECISIONS.slice(0, 1);
    for (const precision of compared) {
      for (const [name, onGpu] of await logitsOf("gpu", precision, software)) {
        const error = relativeError(onGpu, onCpu.get(name)!);
        assert(
          error <= DEVICE_ERROR,
          `${name}, precision ${precision}: they differ by ${error}, must be at most ${DEVICE_ERROR}`,
        );
      }
    }
  });
}

/** Logits by the name of the case. */
type Logits = Map<string, Float32Array>;

async function check(
  golden: Promise<Golden>,
  device: Device,
  precision: Precision,
  software: boolean,
): Promise<Logits> {
  const { name, model, cases } = await golden;
  const first = software && precision === "auto" && SAME_IN_F32.test(name);
  const affordable = AFFORDABLE[device];
  const lengths = cases.map((one) => one.tokenIds.length + one.greedy.length);
  const context = Math.max(...lengths);
  const options = { device, precision, context, ...testedOn(device) };
  using qwen = await loadQwen3(model, options);
  const weights = weightCount(qwen);
  const checked: GoldenCase[] = [], found: Logits = new Map();
  let off = 0;
  for (const one of cases) {
    const { length } = one.tokenIds;
    if (length > 1 && first && !ALL_LENGTHS) continue;
    const wanted = name === WHOLE && length <= WHOLE_TOKENS;
    if (!wanted && length * weights > affordable) continue;
    const logits = await qwen.logits(one.tokenIds);
    const error = relativeError(logits, one.logits);
    const bound = precision === "f32" || device === "cpu"
      ? F32_ERROR
      : one.bf16Error;
    assert(
      error <= bound,
      `${one.name}, precision ${precision}: the relative error is ${error}, must be at most ${bound}`,
    );
    off = Math.max(off, largestError(logits, one.logits));
    checked.push(one);
    found.set(one.name, logits);
  }
  for (const one of checked) {
    if (one.tokenIds.length > 1 && LARGE.test(name) && !ALL_LENGTHS) continue;
    // A decode step costs about two tokens of a prompt.
    const steps = Math.floor((affordable / weights - one.tokenIds.length) / 2);
    const most = Math.min(one.greedy.length, steps);
    if (most < 1) continue;
    if (one.text === undefined) {
      const { tokenIds } = await generateGreedily(qwen, one.tokenIds, most);
      // Two logits may be off, and in later steps by more than after the prompt.
      assertGreedy(tokenIds, one, 4 * off);
    } else {
      const written = await generateGreedily(qwen, one.name, most);
      assertEquals(written, { tokenIds: one.greedy, text: one.text });
    }
  }
  return found;
}

/** Weights that each token is multiplied by. */
function weightCount({ config }: Qwen3): number {
  const shapes = tensorShapes(familyOf(config).weights(config));
  let sum = 0;
  for (const shape of shapes.values()) sum += elements(shape);
  return sum;
}
