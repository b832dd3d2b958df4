/** The whole model against transformers: tiny, synthetic and story checkpoints on GPU and CPU. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { DEFAULT_MODEL, loadQwen3, type Qwen3 } from "../mod.ts";
import {
  assertGreedy,
  generateGreedily,
  type Golden,
  largestError,
  readGolden,
  readSyntheticGolden,
  relativeError,
} from "./golden.ts";
import { gpuTest } from "./gpu.ts";

type Device = "gpu" | "cpu";
type Precision = "f32" | "auto";

const F32_ERROR = 1e-4;
/** Between GPU and CPU. */
const DEVICE_ERROR = 1e-3;
/** Prompts up to this length; longer ones take minutes on a software renderer. */
const LONGEST = Deno.env.get("QWEN3_ALL_LENGTHS") === "1" ? Infinity : 300;

const TINY = [
  "tiny-tied-bf16",
  "tiny-tied-with-head-bf16",
  "tiny-untied-f32",
  "tiny-sharded-f16",
  "tiny-yarn-bf16",
  "tiny-outlier-bf16",
];
const SYNTHETIC = [
  "qwen3-0.6b",
  "qwen3-1.7b-2layer",
  "qwen3-4b-2layer",
  "qwen3-8b-2layer",
  "qwen3-14b-1layer",
  "qwen3-32b-1layer",
];

for (const name of TINY) testGolden(name, () => readGolden(name));
testGolden("stories-3m", () => readGolden("demo", DEFAULT_MODEL));
for (const name of SYNTHETIC) {
  testGolden(name, () => readSyntheticGolden(name));
}

function testGolden(name: string, read: () => Promise<Golden>) {
  const golden = once(async () => {
    const { cases, ...rest } = await read();
    const short = cases.filter(({ tokenIds }) => tokenIds.length <= LONGEST);
    return { ...rest, cases: short };
  });
  /** Logits of the cases by device and precision, for the comparison of devices. */
  const known = new Map<string, Float32Array[]>();

  async function check(device: Device, precision: Precision) {
    const { model, cases } = await golden();
    using qwen = await loadQwen3(model, {
      device,
      precision,
      context: Math.max(
        ...cases.map(({ tokenIds, greedy }) => tokenIds.length + greedy.length),
      ),
    });
    const logits: Float32Array[] = [];
    let margin = 0;
    for (const one of cases) {
      const actual = await qwen.logits(one.tokenIds);
      const error = relativeError(actual, one.logits);
      const bound = precision === "f32" || device === "cpu"
        ? F32_ERROR
        : one.bf16Error;
      if (Deno.env.get("SHOW")) {
        console.log(
          name,
          device,
          precision,
          one.name,
          error,
          performance.now() | 0,
        );
      }
      assert(
        error <= bound,
        `${one.name}: the relative error is ${error}, must be at most ${bound}`,
      );
      // Two logits may be off, and a later step more than the prompt.
      margin = Math.max(margin, 4 * largestError(actual, one.logits));
      logits.push(actual);
    }
    known.set(`${device} ${precision}`, logits);
    for (const one of cases) {
      const { tokenIds } = await generateGreedily(
        qwen,
        one.tokenIds,
        one.greedy.length,
      );
      assertGreedy(tokenIds, one, margin, one.name);
      if (Deno.env.get("SHOW")) {
        console.log(
          name,
          device,
          precision,
          one.name,
          "greedy",
          margin,
          performance.now() | 0,
          tokenIds.findIndex((t, i) => t !== one.greedy[i]),
        );
      }
    }
    return logits;
  }

  for (const precision of ["f32", "auto"] as const) {
    gpuTest(`${name} on the GPU, precision ${precision}`, async () => {
      await check("gpu", precision);
    });
  }
  Deno.test(`${name} on the CPU`, async () => {
    await check("cpu", "auto"); // f32 throughout, whatever the precision
  });
  gpuTest(`${name}: the GPU agrees with the CPU`, async () => {
    const cpu = known.get("cpu auto") ?? await check("cpu", "auto");
    for (const precision of ["f32", "auto"] as const) {
      const gpu = known.get(`gpu ${precision}`) ??
        await check("gpu", precision);
      for (const [i, logits] of gpu.entries()) {
        const error = relativeError(logits, cpu[i]);
        const { name } = (await golden()).cases[i];
        assert(
          error <= DEVICE_ERROR,
          `${name}, precision ${precision}: they differ by ${error}, must by at most ${DEVICE_ERROR}`,
        );
      }
    }
  });
}

function once<T>(make: () => Promise<T>): () => Promise<T> {
  let made: Promise<T> | undefined;
  return () => made ??= make();
}
