import { finish } from "../../lib/model/family.ts";
import { assert, assertEquals } from "@std/assert";
import type { Qwen3Config } from "../../lib/checkpoint/config.ts";
import type { Dtype } from "../../lib/dtype.ts";
import { type CpuTensor, toF32 } from "../../lib/formats/tensor.ts";
import { GpuKvCache } from "../../lib/gpu/kv_cache.ts";
import type { CachePass } from "../../lib/model/kv_cache.ts";
import type { CpuKvCache } from "../../lib/cpu/kv_cache.ts";
import { CpuOps } from "../../lib/cpu/ops.ts";
import { FEW_ROWS } from "../../lib/dispatch/shapes.ts";
import { GpuOps } from "../../lib/gpu/ops.ts";
import { Plan } from "../../lib/webgpu/plan.ts";
import {
  mapWeights,
  stackedShape,
  type Weights,
} from "../../lib/model/family.ts";
import { qwen3 } from "../../lib/model/qwen3.ts";
import { type Matrix, matrixOf } from "../../lib/formats/matrix.ts";
import type { Tensor } from "../../lib/webgpu/tensor.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
import { gpuTest, someOf, type Trial, withBinding } from "../support/gpu.ts";
import { splitMatrix } from "../support/matrix.ts";

const ODD: Qwen3Config = {
  modelType: "qwen3",
  vocabSize: 301,
  hiddenSize: 80,
  intermediateSize: 52,
  numHiddenLayers: 2,
  numAttentionHeads: 6,
  numKeyValueHeads: 1,
  headDim: 16,
  maxPositionEmbeddings: 96,
  rmsNormEps: 1e-6,
  ropeTheta: 1e4,
  ropeScaling: null,
  tieWordEmbeddings: true,
  bosTokenId: null,
  eosTokenIds: [],
};
/** No size here is a multiple of a vec4 or of 16 bytes. */
const ODDER: Qwen3Config = {
  ...ODD,
  hiddenSize: 45,
  intermediateSize: 33,
  numAttentionHeads: 4,
  numKeyValueHeads: 2,
  headDim: 20,
};
const CLOSE = { absolute: 2e-5, relative: 2e-5 };

/** GPU and CPU implementations with equal caches. */
class Pair implements Disposable {
  readonly cpu: CpuOps;
  readonly gpu: GpuOps;
  readonly cpuCache: CpuKvCache;
  readonly gpuCache: GpuKvCache;

  constructor(
    readonly trial: Trial,
    readonly config: Qwen3Config,
    sequences: number,
    context = 2 * (2 * FEW_ROWS + 1),
  ) {
    this.cpu = new CpuOps(config, { simd: false });
    this.gpu = new GpuOps(trial.gpu, config);
    this.cpuCache = this.cpu.createCache(sequences, context);
    this.gpuCache = new GpuKvCache(
      trial.gpu,
      config,
      sequences,
      context,
      "f32",
    );
  }

  /** Runs what `record` records on the current caches and reads the result. */
  async run(record: (ops: GpuOps) => Tensor): Promise<Float32Array> {
    using plan = new Plan(this.trial.gpu);
    this.gpu.plan = plan;
    const y = record(this.gpu);
    plan.run({ length: Math.max(...this.gpuCache.lengths) });
    return await y.read();
  }

  /** Checks what `record` records against the CPU's result; `what` names it. */
  async agree(
    what: string,
    record: (ops: GpuOps) => Tensor,
    expected: CpuTensor,
  ): Promise<void> {
    assertAllClose(await this.run(record), toF32(expected), CLOSE, what);
  }

  /** Sets the next pass, after `lengths` cached tokens. */
  next(lengths: number[], pass: CachePass): void {
    for (const cache of [this.cpuCache, this.gpuCache]) {
      cache.reset(lengths);
      cache.begin(pass);
    }
  }

  [Symbol.dispose](): void {
    this.cpu[Symbol.dispose]();
    this.gpu[Symbol.dispose]();
    this.cpuCache[Symbol.dispose]();
    this.gpuCache[Symbol.dispose]();
  }
}

/** Random weights of a small model on the host, in the form that Ops takes. */
function weightsOf(
  { random }: Trial,
  config: Qwen3Config,
  dtype: Dtype,
): Weights<Matrix<CpuTensor>> {
  return mapWeights(qwen3.weights(config), (spec) => {
    const [rows, columns] = stackedShape(spec);
    const tensor = columns === undefined
      ? random.tensor(dtype, [rows], 0.3, 1)
      : random.tensor(dtype, [rows, columns], 1.5 / Math.sqrt(columns));
    return matrixOf(tensor, spec.label, spec.split === "pairs");
  });
}

/** A copy of the weights on the device. */
function uploaded(
  trial: Trial,
  weights: Weights<Matrix<CpuTensor>>,
): Weights<Matrix<Tensor>> {
  return mapWeights(weights, (matrix) => trial.uploadMatrix(matrix));
}

for (
  const [name, config, dtype] of someOf(
    [
      ["odd sizes, bf16", ODD, "bf16"],
      ["odder sizes, f16", ODDER, "f16"],
    ] as const,
    1,
  )
) {
  gpuTest(`each verb agrees with the CPU: ${name}`, async (_, trial) => {
    const { random } = trial, { headDim, hiddenSize, vocabSize } = config;
    using pair = new Pair(trial, config, 3);
    const { cpu } = pair;
    const host = weightsOf(trial, config, dtype), [layer] = host.layers;
    const device = uploaded(trial, host), [onDevice] = device.layers;
    // gemv, gemvRows once and twice, and gemm.
    for (const rows of [1, 3, FEW_ROWS + 1, 2 * FEW_ROWS + 1]) {
      const same: Pair["agree"] = (verb, record, expected) =>
        pair.agree(`${verb}, ${rows} rows`, record, expected);
      const ids = Array.from(
        { length: rows },
        () => random.int(0, vocabSize - 1),
      );
      const tokens = {
        dtype: "u32",
        shape: [rows],
        data: Uint32Array.from(ids),
      } as const;
      const idsOnDevice = trial.upload(tokens);
      await same(
        "embed",
        (ops) => ops.embed(device.embedTokens, idsOnDevice),
        cpu.embed(host.embedTokens, tokens),
      );
      const x = random.tensor("f32", [rows, hiddenSize], 2);
      const xOnDevice = trial.upload(x);
      await same(
        "normMatmul",
        (ops) =>
          ops.normMatmul(xOnDevice, onDevice.inputNorm, onDevice.qkvProj),
        cpu.normMatmul(x, layer.inputNorm, layer.qkvProj),
      );
      await same(
        "normSwiglu",
        (ops) =>
          ops.normSwiglu(xOnDevice, onDevice.postNorm, onDevice.gateUpProj),
        cpu.normSwiglu(x, layer.postNorm, layer.gateUpProj),
      );
      const gated = random.tensor("f32", [rows, config.intermediateSize]);
      const residual = random.tensor("f32", [rows, hiddenSize]);
      const sum = trial.upload(residual);
      await same(
        "matmulAdd",
        (ops) => ops.matmulAdd(trial.upload(gated), onDevice.downProj, sum),
        cpu.matmulAdd(gated, layer.downProj, residual),
      );
      // Two sequences of `rows` tokens each, first empty, then after as many tokens.
      const { numAttentionHeads: heads, numKeyValueHeads: kvHeads } = config;
      const width = (heads + 2 * kvHeads) * headDim;
      for (const lengths of [[0, 0, 0], [0, rows, rows]]) {
        pair.next(lengths, { first: 1, sequences: 2, tokens: rows });
        const qkv = random.tensor("f32", [2 * rows, width], 2);
        const given = trial.upload(qkv);
        const attended = cpu.attend(
          qkv,
          layer.qNorm,
          layer.kNorm,
          pair.cpuCache,
          1,
        );
        await same(
          "attend",
          (ops) =>
            ops.attend(given, onDevice.qNorm, onDevice.kNorm, pair.gpuCache, 1),
          attended,
        );
        await same(
          "lastRow",
          (ops) => ops.lastRow(given, pair.gpuCache),
          cpu.lastRow(qkv, pair.cpuCache),
        );
        const norm = random.tensor("f32", [qkv.shape[1]]);
        const data = Uint32Array.of(qkv.shape[0] - 1, 0);
        const index = { dtype: "u32", shape: [2], data } as const;
        const [uploaded, picked] = [trial.upload(norm), trial.upload(index)];
        await same(
          "normRows",
          (ops) => ops.normRows(given, picked, matrixOf(uploaded)),
          cpu.normRows(qkv, index, matrixOf(norm)),
        );
      }
    }
  });
}

gpuTest(
  "weights split over several buffers agree with the CPU",
  async (gpu, trial) => {
    const { random } = trial, small = withBinding(gpu, 32 * 160);
    using pair = new Pair(trial, ODD, 1);
    const host = weightsOf(trial, ODD, "bf16"), [layer] = host.layers;
    const split = (matrix: Matrix<CpuTensor>, pairs = false) => {
      const copy = splitMatrix(trial, small, matrix, pairs);
      assert(copy.parts.length > 1);
      return copy;
    };
    const table = split(host.embedTokens);
    const qkvProj = split(layer.qkvProj);
    const downProj = split(layer.downProj);
    const gateUp = split(layer.gateUpProj, true);
    const inputNorm = trial.uploadMatrix(layer.inputNorm);
    for (const rows of [2, 11]) {
      const ids = Array.from({ length: rows }, () => random.int(0, 300));
      const data = Uint32Array.from(ids);
      const tokens = { dtype: "u32", shape: [rows], data } as const;
      const onDevice = trial.upload(tokens);
      const x = random.tensor("f32", [rows, 80]), given = trial.upload(x);
      const gated = random.tensor("f32", [rows, 52]);
      const input = trial.upload(gated), sum = trial.upload(x);
      const { cpu } = pair;
      const same: Pair["agree"] = (verb, record, expected) =>
        pair.agree(`${verb}, ${rows} rows`, record, expected);
      await same(
        "embed",
        (ops) => ops.embed(table, onDevice),
        cpu.embed(host.embedTokens, tokens),
      );
      await same(
        "normMatmul",
        (ops) => ops.normMatmul(given, inputNorm, qkvProj),
        cpu.normMatmul(x, layer.inputNorm, layer.qkvProj),
      );
      await same(
        "normSwiglu",
        (ops) => ops.normSwiglu(given, inputNorm, gateUp),
        cpu.normSwiglu(x, layer.inputNorm, layer.gateUpProj),
      );
      await same(
        "matmulAdd",
        (ops) => ops.matmulAdd(input, downProj, sum),
        cpu.matmulAdd(gated, layer.downProj, x),
      );
    }
  },
);

gpuTest(
  "a prompt agrees with the CPU in one pass, in chunks and token by token",
  async (_, trial) => {
    const { random } = trial;
    using pair = new Pair(trial, ODD, 1);
    const host = weightsOf(trial, ODD, "bf16"), device = uploaded(trial, host);
    const ids = Array.from(
      { length: 23 },
      () => random.int(0, ODD.vocabSize - 1),
    );
    const pass = async (begin: number, end: number) => {
      pair.next([begin], { first: 0, sequences: 1, tokens: end - begin });
      const tokens = trial.u32(...ids.slice(begin, end));
      return await pair.run((ops) =>
        finish(qwen3.forward(ops, device, tokens, pair.gpuCache))
      );
    };
    pair.next([0], { first: 0, sequences: 1, tokens: ids.length });
    const data = Uint32Array.from(ids);
    const tokens = { dtype: "u32", shape: [ids.length], data } as const;
    const expected = toF32(
      finish(qwen3.forward(pair.cpu, host, tokens, pair.cpuCache)),
    )
      .slice();
    assertEquals(expected.length, ODD.vocabSize);
    const close = { absolute: 2e-4, relative: 1e-4 };
    assertAllClose(await pass(0, 23), expected, close, "one pass");
    // Passes of 1, 3, 10 and 23 tokens, as each number of rows compiles its own pipelines.
    for (
      const ends of [[10, 13, 23], [1, 11, 12, 22, 23], [10, 20, 21, 22, 23]]
    ) {
      let begin = 0, logits = new Float32Array();
      for (const end of ends) {
        logits = await pass(begin, end) as Float32Array<ArrayBuffer>;
        begin = end;
      }
      assertAllClose(logits, expected, close, `chunks to ${ends}`);
    }
    for (let at = 0; at < 22; at++) await pass(at, at + 1);
    assertAllClose(await pass(22, 23), expected, close, "token by token");
  },
);
