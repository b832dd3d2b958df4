/** Passes of one row in which an MLP is one dispatch, as on a large NVIDIA GPU. */
import { assert, assertEquals, assertMatch } from "@std/assert";
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
import type { Gpu } from "../../lib/webgpu/device.ts";
import { Plan } from "../../lib/webgpu/plan.ts";
import { Tensor } from "../../lib/webgpu/tensor.ts";
import { loadQwen3, type Qwen3 } from "../../mod.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
import { gpuTest, Trial } from "../support/gpu.ts";
import { copyCheckpoint, scaleWeights } from "../support/temp_checkpoint.ts";
import type { Random } from "../support/random.ts";
import { randomWeights } from "../support/random_weights.ts";
import { LARGE_NVIDIA, wrapGpu } from "../support/wrapped_gpu.ts";

const CONTEXT = 64;
const PASS = { first: 0, sequences: 1, tokens: 1 };

const small = (layers: number, vocab = 61): Qwen3Config => ({
  ...parseSynthetic(`synthetic:qwen3-0.6b?layers=${layers}&vocab=${vocab}`)
    .config,
  hiddenSize: 96,
  intermediateSize: 64,
  numAttentionHeads: 2,
  numKeyValueHeads: 2,
  headDim: 32,
});

/** A model on both sides; layers have one of `formats` in turns. */
class Model implements Disposable {
  readonly ops: GpuOps;
  readonly cpu: CpuOps;
  readonly cache: GpuKvCache;
  readonly tokens: Tensor;
  readonly #weights;
  readonly #onDevice;

  constructor(
    readonly gpu: Gpu,
    readonly config: Qwen3Config,
    trial: Trial,
    formats = ["bf16"],
  ) {
    const { random } = trial;
    this.#weights = randomWeights(random, config, {
      format(label) {
        const layer = /layers\.(\d+)/.exec(label)?.[1];
        return layer ? formats[Number(layer) % formats.length] : "bf16";
      },
    });
    this.#onDevice = mapWeights(
      this.#weights,
      (matrix) => withPlanes(matrix, (plane) => trial.upload(plane)),
    );
    this.cpu = new CpuOps(config, { simd: false });
    this.ops = new GpuOps(gpu, config);
    this.cache = new GpuKvCache(gpu, config, 1, CONTEXT, "f32");
    this.tokens = Tensor.create(gpu, "u32", [1], new Uint32Array(1));
  }

  /** A pass of one row; `during` is called after `steps` verbs. */
  record(steps = Infinity, during = () => true): Recorded | undefined {
    const { ops, cache, tokens, gpu } = this;
    const plan = new Plan(gpu, cache.literals(1));
    ops.plan = plan;
    cache.record(PASS);
    const verbs = forward(ops, this.#onDevice, tokens, cache);
    let next = verbs.next();
    for (let i = 1; !next.done; i++) {
      if (i === steps) {
        if (!during()) return undefined;
        ops.plan = plan;
        cache.record(PASS);
      }
      next = verbs.next(next.value);
    }
    plan.seal();
    return { plan, logits: next.value };
  }

  /** Runs passes, and compares logits with the CPU's. */
  async check(
    { plan, logits }: Recorded,
    random: Random,
    tolerance = 2e-4,
  ): Promise<void> {
    using onCpu = this.cpu.createCache(1, CONTEXT);
    for (const length of [0, 5]) {
      const ids = Uint32Array.of(random.int(0, 60));
      for (const each of [this.cache, onCpu]) {
        each.reset([length]);
        each.begin(PASS);
      }
      this.tokens.write(0, ids);
      const input: CpuTensor = { dtype: "u32", shape: [1], data: ids };
      const expected = finish(forward(this.cpu, this.#weights, input, onCpu));
      plan.run({ length });
      assertAllClose(await logits.read(), toF32(expected), {
        ...{ absolute: tolerance, relative: tolerance / 10 },
      }, `after ${length} tokens`);
    }
  }

  [Symbol.dispose](): void {
    for (const one of [this.cache, this.ops, this.cpu]) one[Symbol.dispose]();
  }
}

interface Recorded {
  plan: Plan;
  logits: Tensor;
}

const large = () => openDevice({ gpu: wrapGpu(LARGE_NVIDIA).gpu });
const kernels = ({ plan }: Recorded) =>
  plan.dispatches.map(({ kernel }) => kernel);

gpuTest(
  "a pass is right however many layers it has, and when it is recorded again",
  async (_, { draw }) => {
    using gpu = await large();
    for (const [layers, vocab] of [[1, 61], [3, 61], [2, 32768]]) {
      using trial = new Trial(gpu, draw);
      using model = new Model(gpu, small(layers, vocab), trial);
      for (let i = 0; i < 2; i++) {
        const pass = model.record()!;
        using _ = pass.plan;
        const made = kernels(pass);
        const of = (name: string) => made.filter((one) => one === name).length;
        // A small LM head reads what is pending by itself.
        assertEquals([of("feedForward"), of("addPending")], [
          layers,
          vocab > 61 ? 1 : 0,
        ]);
        await model.check(pass, trial.random);
      }
    }
  },
);

gpuTest(
  "passes are right that are recorded between the verbs of others, or after some were given up",
  async (_, { draw }) => {
    using gpu = await large();
    using trial = new Trial(gpu, draw);
    using model = new Model(gpu, small(3), trial, ["bf16", "q8_0", "f16"]);
    for (const steps of [1, 2, 3, 4, 5, 6, 7, 9, 11, 13]) {
      let inner: Recorded | undefined;
      const outer = model.record(steps, () => {
        inner = model.record()!;
        return true;
      })!;
      for (const pass of [outer, inner!]) {
        using _ = pass.plan;
        await model.check(pass, trial.random, 2e-3); // q8_0 rounds rows
      }
      assertEquals(model.record(steps, () => false), undefined);
      const after = model.record()!;
      using _ = after.plan;
      await model.check(after, trial.random, 2e-3);
      assert(kernels(after).includes("gemvInt8"));
    }
  },
);

/** The story model with the weights of a layer's down_proj `2 ** power` times as large. */
async function withLarge(power: number) {
  const folder = new URL("../../models/stories-3m/", import.meta.url);
  const name = "model.safetensors";
  const file = await Deno.readFile(new URL(name, folder));
  return await copyCheckpoint(folder, {
    [name]: scaleWeights(file, /layers\.2\.mlp\.down_proj/, power),
  });
}

gpuTest(
  "sums that do not fit fixed point are computed again, and the choices say so",
  async () => {
    await using folder = await withLarge(26);
    const options = { temperature: 0, maxTokens: 6 };
    const prompt = "Once upon a time";
    using cpu = await loadQwen3(folder.path, { device: "cpu" });
    const { tokenIds } = await cpu.generate(prompt, options);
    const load = async () =>
      await loadQwen3(folder.path, {
        ...{ device: "gpu", gpu: wrapGpu(LARGE_NVIDIA).gpu, onNotice: null },
      });
    const separated = (qwen: Qwen3) =>
      qwen.device.choices.filter(({ what }) => /^MLP and/.test(what));
    {
      using qwen = await load();
      for (let i = 0; i < 2; i++) {
        const reply = await qwen.generate(prompt, options);
        assertEquals(reply.tokenIds, tokenIds);
        const [{ value, reason }, ...more] = separated(qwen);
        assertEquals(value, "a dispatch for each matmul");
        assertMatch(reason, /too large for sums in fixed point: 2²⁰/);
        assertEquals(more, []);
      }
    }
    using qwen = await load();
    using engine = await qwen.engine({ slots: 1 });
    const reply = await engine.submit(prompt, options);
    assertEquals(reply.tokenIds, tokenIds);
    assertEquals(separated(qwen).length, 1);
    const [id] = tokenIds;
    const close = { absolute: 1e-3, relative: 1e-3 };
    assertAllClose(await qwen.logits([id]), await cpu.logits([id]), close);
  },
);

gpuTest(
  "long texts whose last pass has one row are embedded although sums do not fit",
  async () => {
    await using folder = await withLarge(26);
    const gpu = wrapGpu(LARGE_NVIDIA).gpu;
    using qwen = await loadQwen3(folder.path, {
      ...{ device: "gpu", gpu, onNotice: null, precision: "f32" },
    });
    using cpu = await loadQwen3(folder.path, { device: "cpu" });
    const { runner } = qwen;
    Object.defineProperty(runner, "prefillRows", { value: 8 });
    const texts = [9, 10].map((n) =>
      Array.from({ length: n }, (_, i) => 5 + i)
    );
    const states = await runner.states(texts);
    const expected = await cpu.runner.states(texts);
    states.forEach((state, i) =>
      assertAllClose(state, expected[i], { absolute: 1e-3, relative: 1e-3 })
    );
    assert(qwen.device.choices.some(({ what }) => /^MLP and/.test(what)));
  },
);
