import { assertAlmostEquals, assertEquals } from "@std/assert";
import { causalPairs } from "../../../kernels/cost.ts";
import { type Costed, costsOf } from "../../../lib/tools/profile/costs.ts";
import {
  memoryMs,
  operationsOf,
  withBetween,
} from "../../../lib/tools/profile/operations.ts";

const config = {
  numAttentionHeads: 16,
  numKeyValueHeads: 8,
  headDim: 128,
  vocabSize: 151936,
};
const prompt = { config, sequences: 1, tokens: 5, length: 0 };
const step = { config, sequences: 1, tokens: 1, length: 511 };

const linear = (
  label: string,
  constants: Record<string, number | string>,
  m = 5,
): Costed => ({
  label,
  kernel: m > 1 ? "gemm" : "gemv",
  dims: { m, n: 2048, k: 1024 },
  constants,
});

Deno.test("a Linear layer counts every operand once", () => {
  const [cost, ...rest] = costsOf(
    linear("layers.3.q_proj", { B_DTYPE: "bf16", A_DTYPE: "f16" }),
    prompt,
  );
  assertEquals(rest, []);
  assertEquals(cost.name, "q_proj");
  assertEquals(cost.shape, "[5, 1024] × [1024, 2048]");
  assertEquals(cost.dtypes, "f16 × bf16 → f32");
  assertEquals(cost.flops, 2 * 5 * 2048 * 1024);
  assertEquals(cost.bytes, 2 * 2048 * 1024 + 2 * 5 * 1024 + 4 * 5 * 2048);
});

Deno.test("a residual is read and written, SwiGLU writes half", () => {
  const bytes = (EPILOGUE: string) =>
    costsOf(linear("x", { EPILOGUE, B_DTYPE: "f32" }), prompt)[0].bytes;
  const operands = 4 * (2048 * 1024 + 5 * 1024);
  assertEquals(bytes("store") - operands, 4 * 5 * 2048);
  assertEquals(bytes("add") - operands, 8 * 5 * 2048);
  assertEquals(bytes("swiglu") - operands, 4 * 5 * 1024);
});

Deno.test("a tied head is distinguished from the embedding by its kernel", () => {
  const head = costsOf(linear("embed_tokens", { W_DTYPE: "bf16" }, 1), step);
  assertEquals(head[0].name, "lm_head");
  const [gathered] = costsOf({
    label: "embed_tokens",
    kernel: "embed",
    dims: { m: 5, n: 151936, k: 1024 },
    constants: { TABLE_DTYPE: "bf16" },
  }, prompt);
  assertEquals(gathered.name, "embedding");
  assertEquals(gathered.bytes, 5 * 1024 * 6);
});

Deno.test("fused attention is two matmuls that share one time", () => {
  const fused = {
    kernel: "attendDecode",
    dims: {},
    label: "layers.0.attention",
  };
  const [scores, values] = costsOf(
    { ...fused, constants: { K_DTYPE: "f16" } },
    step,
  );
  assertEquals(scores.shape, "[1, 16, 1, 128] × [1, 8, 128, 512]");
  assertEquals(values.shape, "[1, 16, 1, 512] × [1, 8, 512, 128]");
  assertEquals(scores.part + values.part, 1);
  assertEquals(scores.flops, 2 * 16 * 128 * 512);
  assertEquals(scores.bytes, 2 * 8 * 512 * 128 + 4 * 16 * 128);
});

Deno.test("causal attention counts visible keys only", () => {
  for (const [tokens, length] of [[1, 0], [5, 0], [7, 30], [1, 511]]) {
    let pairs = 0;
    for (let t = 0; t < tokens; t++) pairs += length + t + 1;
    assertEquals(causalPairs(tokens, length), pairs);
  }
});

Deno.test("operations gather dispatches of all layers, per step", () => {
  const peaks = { readGBps: 1000, f32TFLOPS: 10, fillWorkgroups: 8 };
  const at = (layer: number, ms: number) => ({
    dispatch: {
      ...linear(
        `layers.${layer}.o_proj`,
        { W_DTYPE: "bf16", X_DTYPE: "f32" },
        1,
      ),
      reason: "why",
    },
    context: step,
    workgroups: 64,
    ms,
  });
  const [operation, ...rest] = operationsOf(
    [at(0, 0.01), at(1, 0.03), at(0, 0.02), at(1, 0.02)],
    2,
    peaks,
  );
  assertEquals(rest, []);
  assertEquals(operation.calls, 2);
  assertAlmostEquals(operation.ms!, 0.04, 1e-12);
  assertEquals(operation.share, 1);
  assertEquals(operation.bound, "memory");
  const bytes = 2 * (2 * 2048 * 1024 + 4 * 1024 + 4 * 2048);
  assertEquals(operation.bytes, bytes);
  assertAlmostEquals(operation.fraction!, bytes / 1e9 / 0.04, 1e-9);
});

Deno.test("a split matmul includes the dispatch that sums it", () => {
  const gemm = linear("layers.0.down_proj", { SPLITS: 2 });
  const sum = {
    label: "layers.0.down_proj",
    kernel: "sumSplits",
    dims: { m: 5, n: 2048 },
    constants: { SPLITS: 2, ADD: 1 },
  };
  const operations = operationsOf(
    [gemm, sum].map((dispatch) => ({
      dispatch: { ...dispatch, reason: "" },
      context: prompt,
      workgroups: 1,
      ms: 1,
    })),
    1,
  );
  assertEquals(operations.map(({ kernel }) => kernel), ["gemm + sumSplits"]);
  assertEquals([operations[0].ms, operations[0].calls], [2, 1]);
});

Deno.test("the time between operations has a share only if it is also spent unprofiled", () => {
  for (const real of [true, false]) {
    const operations = operationsOf([{
      dispatch: { ...linear("q", {}), reason: "" },
      context: prompt,
      workgroups: 1,
      ms: 3,
    }], 1);
    const all = withBetween(operations, 4, {
      name: "between",
      reason: "",
      calls: 1,
      real,
    });
    assertEquals(all.betweenMs, 1);
    assertEquals(
      all.operations.map(({ share }) => share),
      real ? [0.75, 0.25] : [1, undefined],
    );
  }
});

Deno.test("keys that grow from step to step are shown as a range", () => {
  const at = (length: number) => ({
    dispatch: {
      label: "layers.0.attention",
      kernel: "attendDecode",
      dims: {},
      constants: {},
      reason: "",
    },
    context: { ...step, length },
    workgroups: 1,
    ms: 1,
  });
  const operations = operationsOf([at(9), at(12), at(15)], 3);
  assertEquals(operations.map(({ shape, calls }) => [shape, calls]), [
    ["[1, 16, 1, 128] × [1, 8, 128, 10 … 16]", 1],
    ["[1, 16, 1, 10 … 16] × [1, 8, 10 … 16, 128]", 1],
  ]);
});

Deno.test("a buffer is read at the rate of buffers", () => {
  const peaks = { readGBps: 4, f32TFLOPS: 1, fillWorkgroups: 8 };
  const bytes = 8e6, both = { ...peaks, bufferGBps: 1 };
  assertEquals(memoryMs({ bytes, constants: {} }, peaks), 2);
  assertEquals(memoryMs({ bytes, constants: {} }, both), 8);
  const constants = { W_IN: "texture" };
  assertEquals(memoryMs({ bytes, constants }, both), 2);
});
