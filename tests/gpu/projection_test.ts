import { assert, assertEquals } from "@std/assert";
import { attendDecode, decodeGrid } from "../../kernels/attend_decode.ts";
import type { Qwen3Config } from "../../lib/checkpoint/config.ts";
import { parseSynthetic } from "../../lib/checkpoint/synthetic.ts";
import { CpuOps } from "../../lib/cpu/ops.ts";
import { openDevice } from "../../lib/device/open_device.ts";
import { type CpuTensor, toF32 } from "../../lib/formats/tensor.ts";
import { withPlanes } from "../../lib/formats/matrix.ts";
import { GpuKvCache } from "../../lib/gpu/kv_cache.ts";
import { GpuOps } from "../../lib/gpu/ops.ts";
import { finish, mapWeights } from "../../lib/model/family.ts";
import { forward } from "../../lib/model/qwen3.ts";
import { Plan } from "../../lib/webgpu/plan.ts";
import { Tensor } from "../../lib/webgpu/tensor.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
import { gpuTest, Trial } from "../support/gpu.ts";
import { makeCase } from "../support/kernel_case.ts";
import { randomWeights } from "../support/random_weights.ts";
import { LARGE_NVIDIA, wrapGpu } from "../support/wrapped_gpu.ts";

const SMALL: Qwen3Config = {
  ...parseSynthetic("synthetic:qwen3-0.6b?layers=2&vocab=61").config,
  hiddenSize: 256,
  intermediateSize: 64,
  numAttentionHeads: 4,
  numKeyValueHeads: 2,
  headDim: 64,
};

for (
  const [format, kernel, absolute] of [
    ["bf16", "gemv", 2e-4],
    ["q8_0", "gemvInt8", 2e-3], // which rounds activations to 15 bits
  ] as const
) {
  gpuTest(
    `a step of few keys multiplies attention by o_proj in ${format} at once, and agrees with the CPU`,
    async (_, { draw }) => {
      using gpu = await openDevice({ gpu: wrapGpu(LARGE_NVIDIA).gpu });
      using trial = new Trial(gpu, draw);
      const { random } = trial, context = 520;
      const weights = randomWeights(random, SMALL, { format: () => format });
      const onDevice = mapWeights(
        weights,
        (matrix) => withPlanes(matrix, (plane) => trial.upload(plane)),
      );
      using cpu = new CpuOps(SMALL, { simd: false });
      using ops = new GpuOps(gpu, SMALL);
      using cpuCache = cpu.createCache(1, context);
      using cache = new GpuKvCache(gpu, SMALL, 1, context, "f32");
      const pass = { first: 0, sequences: 1, tokens: 1 };
      using plan = new Plan(gpu, cache.literals(1));
      ops.plan = plan;
      const tokens = Tensor.create(gpu, "u32", [1], new Uint32Array(1));
      plan.own(tokens);
      cache.record(pass);
      const logits = finish(forward(ops, onDevice, tokens, cache));
      plan.seal();
      const attention = (length: number) =>
        plan.dispatches.filter(({ label, gridAt }) =>
          label.startsWith("layers.1.") && /attention|o_proj/.test(label) &&
          (!gridAt || gridAt({ length }))
        ).map(({ label, kernel }) => `${label.slice(9)} ${kernel}`);
      // The layout of few keys would never run by itself.
      const recorded = plan.dispatches.filter(({ label }) =>
        /^layers\.1\.attention/.test(label)
      );
      assertEquals(recorded.map(({ kernel }) => kernel), [
        ...["attendDecode", "attendDecode", "mergeSplits", "attendDecode"],
      ]);
      assertEquals(attention(0), ["attention_o_proj attendDecode"]);
      assertEquals(attention(511), ["attention_o_proj attendDecode"]);
      const [{ constants }] = plan.dispatches.filter(({ label }) =>
        label === "layers.1.attention_o_proj"
      );
      assertEquals(constants.LEAVES, kernel === "gemvInt8" ? 1 : 0);
      const mlp = plan.dispatches.filter(({ label }) =>
        /^layers\.1\..*(mlp|gate_up|down)/.test(label)
      );
      assertEquals(
        mlp.map(({ kernel }) => kernel),
        kernel === "gemv" ? ["feedForward"] : [kernel, kernel],
      );
      const apart = ["attention attendDecode", "attention mergeSplits"];
      assertEquals(attention(512), [...apart, `o_proj ${kernel}`]);
      for (const length of [0, 1, 2, 63, 300, 511, 512, 513]) {
        const ids = Uint32Array.of(random.int(0, 60));
        for (const each of [cache, cpuCache]) {
          each.reset([length]);
          each.begin(pass);
        }
        tokens.write(0, ids);
        const input: CpuTensor = { dtype: "u32", shape: [1], data: ids };
        const expected = finish(forward(cpu, weights, input, cpuCache));
        plan.run({ length });
        assertAllClose(
          await logits.read(),
          toF32(expected),
          { absolute, relative: absolute / 10 },
          `after ${length} tokens`,
        );
      }
    },
  );
}

gpuTest(
  "attention with o_proj adds up its heads, every time",
  async (gpu, trial) => {
    const given = attendDecode.cases.find((one) => one.project?.[0] === "bf16");
    const one = makeCase(attendDecode, trial, given!);
    if (!one) return; // lanes cannot exchange values
    const times = 50,
      operands = Object.fromEntries(
        Object.entries(one.operands).map(([name, operand]) => [
          name,
          "parts" in operand
            ? trial.uploadMatrix(operand)
            : trial.upload(operand),
        ]),
      );
    using plan = new Plan(gpu);
    for (let i = 0; i < times; i++) {
      plan.add(attendDecode, operands, {
        constants: one.constants,
        uniforms: one.uniforms,
        gridAt: () => one.grid ?? decodeGrid(1, 1, 1, 0),
      });
    }
    plan.run();
    const [{ values, norms }] = one.expected(), { y } = operands;
    const before = toF32(one.operands.y as CpuTensor)[0];
    const sums = await (y as Tensor).read();
    Array.from(values).forEach((value, i) => {
      const expected = before + times * (value - before);
      const off = Math.abs(sums[i] - expected) / (times * norms![i]);
      assert(off < 1e-5, `[${i}]: ${sums[i]}, must be ${expected}`);
    });
  },
);
