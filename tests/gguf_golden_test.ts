/**
 * Models in GGUF files against exact logits or vectors of their dequantised weights. With
 * QWEN3_GGUF_SET, a folder with more such files, those are tested too.
 */
import { assert, assertEquals } from "@std/assert";
import { openCheckpoint } from "../lib/checkpoint/open.ts";
import { chooseCacheDtype } from "../lib/dispatch/precision.ts";
import { FEW_ROWS } from "../lib/dispatch/shapes.ts";
import { GpuOps } from "../lib/gpu/ops.ts";
import { GpuRunner } from "../lib/gpu/runner.ts";
import { GpuSequences } from "../lib/gpu/sequences.ts";
import { DEFAULT_MODEL, loadQwen3, type Qwen3 } from "../mod.ts";
import { ggufCases } from "./support/gguf_golden.ts";
import { relativeError } from "./support/golden.ts";
import {
  gpuTest,
  openTested,
  type Precision,
  PRECISIONS,
  precisionsOnGpu,
  someOf,
  testedOn,
} from "./support/gpu.ts";

const FILES = new URL("fixtures/gguf/files/", import.meta.url).pathname;
const F32_ERROR = 1e-4, F16_ERROR = 3e-3;
/** Files with types that are not read. */
const LEFT_OUT = /mix-iq/;

/** Compares vectors of an embedding model, one by one and all together. */
async function checkVectors(
  qwen: Qwen3,
  golden: string,
  bound: number,
): Promise<void> {
  for (const kind of ["exact", "exact_normalised"]) {
    const cases = await ggufCases(golden, kind);
    const options = { normalize: kind === "exact_normalised" };
    const together = await qwen.embed(
      cases.map(({ input_ids: ids }) => ids),
      options,
    );
    assert(cases.length > 0 && together.length === cases.length);
    for (const [i, { name, input_ids: ids, exact }] of cases.entries()) {
      const [alone] = await qwen.embed(ids, options);
      for (const vector of [alone, together[i]]) {
        const error = relativeError(vector, exact);
        assert(
          error <= bound,
          `${kind}/${name}: the relative error is ${error}`,
        );
      }
    }
  }
}

async function check(
  file: string,
  golden: string,
  device: "gpu" | "cpu",
  precision: "f32" | "auto",
): Promise<void> {
  const bound = precision === "f32" ? F32_ERROR : F16_ERROR;
  const options = { device, precision, context: 80, ...testedOn(device) };
  using qwen = await loadQwen3(file, options);
  if (/embedding/.test(golden)) return await checkVectors(qwen, golden, bound);
  const cases = await ggufCases(golden);
  assert(cases.length > 0);
  for (const { name, input_ids: ids, positions_kept: kept, exact } of cases) {
    const all = kept === "all";
    const actual = await qwen.logits(ids, { all });
    const error = relativeError(actual, exact);
    assert(
      error <= bound,
      `${name}, precision ${precision}: the relative error is ${error}, must be at most ${bound}`,
    );
  }
}

/** Checks `file` as a GPU with f16 runs it; software renderers multiply in f32 by default. */
async function checkHalf(
  file: string,
  golden: string,
  quantize?: string,
): Promise<void> {
  await using checkpoint = await openCheckpoint(file, { quantize });
  const { dtype: cacheDtype } = chooseCacheDtype(checkpoint.config.headDim);
  using runner = await GpuRunner.load(await openTested(), checkpoint, {
    ...{ context: 80, cacheDtype, f16Matmuls: true },
  });
  for (const one of await ggufCases(golden)) {
    const { name, input_ids: ids, positions_kept: kept, exact } = one;
    const actual = /embedding/.test(golden)
      ? (await runner.states([ids]))[0]
      : await runner.logits(ids, { all: kept === "all" });
    const error = relativeError(actual, exact);
    assert(
      error <= F16_ERROR,
      `${name} in f16: the relative error is ${error}, must be at most ${F16_ERROR}`,
    );
    // Rounding is visible, so f16 was used.
    if (runner.gpu.f16 && ids.length > FEW_ROWS) assert(error > 1e-5, name);
  }
}

/** Checks one token at a time, where kernels round their results for the next one. */
async function checkAhead(file: string, golden: string): Promise<void> {
  await using checkpoint = await openCheckpoint(file);
  const { config } = checkpoint, { dtype } = chooseCacheDtype(config.headDim);
  const gpu = await openTested();
  using runner = await GpuRunner.load(gpu, checkpoint, {
    ...{ context: 80, cacheDtype: dtype, f16Matmuls: true },
  });
  using ops = new GpuOps(gpu, config);
  using sequences = await GpuSequences.create(ops, runner.weights, {
    ...{ sequences: 1, context: 80, dtype },
  });
  for (const { name, input_ids: ids, exact } of await ggufCases(golden)) {
    if (exact.length < ids.length * config.vocabSize) continue;
    const actual = new Float32Array(exact.length);
    const options = { sequence: 0, rows: 1, all: true };
    sequences.cache.reset();
    let at = 0;
    for await (const logits of sequences.prefill(ids, options)) {
      actual.set(await logits.read(), at);
      at += config.vocabSize;
    }
    const error = relativeError(actual, exact);
    assert(error > 1e-5 && error <= F16_ERROR, `${name}: ${error}`);
  }
}

for (
  const name of someOf(["tiny-moe-bf16-Q4_K_M", "tiny-outlier-bf16-Q4_K_M"], 1)
) {
  gpuTest(
    `${name} with rows rounded ahead`,
    () => checkAhead(`${FILES}${name}.gguf`, FILES + name),
  );
}

function testHalf(file: string, golden: string, quantize?: string): void {
  const name = golden.replace(/.*\//, "");
  gpuTest(
    `${name} in f16, whatever the gpu`,
    () => checkHalf(file, golden, quantize),
  );
}

function testFile(
  file: string,
  golden: string,
  onGpu: readonly Precision[] = PRECISIONS,
): void {
  const name = file.replace(/.*\//, "");
  for (const precision of PRECISIONS) {
    Deno.test(
      `${name} on the cpu, precision ${precision}`,
      () => check(file, golden, "cpu", precision),
    );
    if (!onGpu.includes(precision)) continue;
    gpuTest(
      `${name} on the gpu, precision ${precision}`,
      () => check(file, golden, "gpu", precision),
    );
  }
}

/** Files, and what their exact values are named after. */
const NAMES = [
  "tiny-yarn-bf16-BF16",
  "tiny-outlier-bf16-Q4_K_M",
  "align64-v2",
  "fused-qkv-Q4_0",
  "embedding-F16",
  "embedding-Q8_0",
  "tiny-moe-bf16-Q4_K_M",
  "tiny-moe-bf16-MXFP4_MOE",
  "split-Q8_0-00001-of-00003",
];
const onGpu = precisionsOnGpu(NAMES, 2);
for (const name of NAMES) {
  const golden = name.replace(/^split-Q8_0.*/, "base-Q8_0");
  testFile(`${FILES}${name}.gguf`, FILES + golden, onGpu(name));
}

const HALVES: Parameters<typeof testHalf>[] = [
  ...[
    "fused-qkv-Q4_0",
    "embedding-F16",
    "tiny-moe-bf16-Q4_K_M",
    "tiny-outlier-bf16-Q4_K_M",
  ].map((name): [string, string] => [`${FILES}${name}.gguf`, FILES + name]),
  // Its heads have 64 values, so attention multiplies in f16 too.
  [DEFAULT_MODEL, `${FILES}stories-3m-Q8_0`, "q8_0"],
];
for (const half of someOf(HALVES, 1)) testHalf(...half);

// Software adapters multiply in f32 by default, so integers are asked for.
gpuTest(
  "one and a few rows as integers keep what is beside an outlier",
  async (gpu) => {
    const golden = `${FILES}tiny-outlier-bf16-Q4_K_M`;
    await using checkpoint = await openCheckpoint(`${golden}.gguf`);
    using runner = await GpuRunner.load(await openTested(), checkpoint, {
      ...{ context: 80, cacheDtype: "f32", f16Matmuls: true },
    });
    const few = (await ggufCases(golden)).filter(({ input_ids: ids }) =>
      ids.length <= FEW_ROWS
    );
    assert(few.some(({ input_ids: ids }) => ids.length === 1));
    assert(few.some(({ input_ids: ids }) => ids.length > 1));
    for (const { name, input_ids: ids, positions_kept: kept, exact } of few) {
      const actual = await runner.logits(ids, { all: kept === "all" });
      const error = relativeError(actual, exact);
      assert(error <= F16_ERROR, `${name} on ${gpu.name}: ${error}`);
    }
    // In these, a block of 32 has several outliers.
    using exact = await loadQwen3(`${golden}.gguf`, {
      device: "cpu",
      precision: "f32",
    });
    using rounded = await loadQwen3(`${golden}.gguf`, { device: "cpu" });
    for (const id of [36, 112, 324, 400]) {
      const expected = await exact.logits([id]);
      for (const model of [runner, rounded]) {
        const error = relativeError(await model.logits([id]), expected);
        assert(error <= F16_ERROR, `token ${id}: ${error}`);
      }
    }
  },
);

const SET = Deno.env.get("QWEN3_GGUF_SET");
if (SET !== undefined) {
  let found = 0;
  for (const { name: folder, isDirectory } of Deno.readDirSync(SET)) {
    if (!isDirectory || LEFT_OUT.test(folder)) continue;
    for (const { name } of Deno.readDirSync(`${SET}/${folder}`)) {
      if (!/\.gguf$/.test(name) || LEFT_OUT.test(name)) continue;
      const golden = `${SET}/${folder}/${name.slice(0, -5)}`;
      const json = await Deno.stat(`${golden}.json`).catch(() => undefined);
      if (json === undefined) continue; // parts of a split file, and bad files
      found++;
      testFile(`${SET}/${folder}/${name}`, golden);
      testHalf(`${SET}/${folder}/${name}`, golden);
    }
  }
  Deno.test("QWEN3_GGUF_SET names a folder with GGUF files", () => {
    assert(found > 0, `${SET} has none`);
  });
}

Deno.test("all parts of a split file give the tensors of the whole", async () => {
  const ids = [1, 2, 3];
  const logits = [];
  for (
    const file of [
      "base-Q8_0.gguf",
      "split-Q8_0-00001-of-00003.gguf",
      "split-Q8_0-00003-of-00003.gguf",
    ]
  ) {
    using qwen = await loadQwen3(FILES + file, { device: "cpu" });
    logits.push(await qwen.logits(ids));
  }
  assertEquals(logits[1], logits[0]);
  assertEquals(logits[2], logits[0]);
});
