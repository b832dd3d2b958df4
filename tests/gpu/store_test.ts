/** Weights that the device quantises as they are uploaded. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import type { Checkpoint } from "../../lib/checkpoint/checkpoint.ts";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import type { MatrixPart } from "../../lib/formats/matrix.ts";
import { Staging } from "../../lib/gpu/staging.ts";
import { gpuStore } from "../../lib/gpu/store.ts";
import { listWeights } from "../../lib/model/family.ts";
import { loadWeights } from "../../lib/model/weights.ts";
import type { Gpu } from "../../lib/webgpu/device.ts";
import type { Tensor } from "../../lib/webgpu/tensor.ts";
import { gpuTest, type Trial } from "../support/gpu.ts";

const STORY = new URL("../../models/stories-3m/", import.meta.url).pathname;
const FIXTURES = new URL("../fixtures/", import.meta.url).pathname;

/** Loads a checkpoint; tensors end with the trial. Counts what the device quantised. */
async function load(
  gpu: Gpu,
  trial: Trial,
  checkpoint: Checkpoint,
  onDevice: boolean,
) {
  using store = gpuStore(gpu, undefined, onDevice);
  let quantised = 0;
  const weights = await loadWeights(checkpoint, {
    ...store,
    allocate: (bytes, label) => trial.own(store.allocate(bytes, label)),
    async quantize(...given) {
      quantised++;
      await store.quantize!(...given);
    },
  });
  const parts = listWeights(weights).flatMap(({ label, parts }) =>
    parts.map((part) => ({ label, part }))
  );
  return { parts, quantised };
}

const bytesOf = async ({ planes }: MatrixPart<Tensor>) =>
  await Promise.all(
    planes.map(async ({ gpu, buffer, bytes }) =>
      new Uint8Array(await gpu.readBuffer(buffer, 0, bytes))
    ),
  );

for (
  const [folder, quantize] of [
    [STORY, "q8_0"],
    [STORY, "q4_0"],
    [`${FIXTURES}tiny-outlier-bf16`, "q4_k_m"], // q5_0 and q8_0
    [`${FIXTURES}tiny-moe-bf16`, "q8_0"],
  ]
) {
  const name = folder.split("/").at(-1) || "the story model";
  gpuTest(
    `the device quantises ${name} as ${quantize} like the CPU`,
    async (gpu, trial) => {
      const loaded = [];
      for (const onDevice of [false, true]) {
        await using checkpoint = await openCheckpoint(folder, { quantize });
        loaded.push(await load(gpu, trial, checkpoint, onDevice));
      }
      const [byCpu, byDevice] = loaded;
      assertEquals(byCpu.quantised, 0);
      assert(byDevice.quantised > 0);
      for (const [i, { label, part }] of byCpu.parts.entries()) {
        const other = byDevice.parts[i].part;
        assertEquals(other.format, part.format, label);
        assertEquals(await bytesOf(other), await bytesOf(part), label);
      }
    },
  );
}

gpuTest(
  "a value that is not finite is refused by the tensor's name",
  async (gpu, trial) => {
    await using checkpoint = await openCheckpoint(STORY, { quantize: "q8_0" });
    const name = "model.layers.3.mlp.up_proj.weight";
    const { original } = checkpoint;
    const broken: Checkpoint = {
      ...checkpoint,
      original: {
        ...original!,
        async read(tensor, begin, into) {
          await original!.read(tensor, begin, into);
          if (tensor === name) into.set([0x80, 0xff], 64); // -Infinity
        },
      },
    };
    await assertRejects(
      () => load(gpu, trial, broken, true),
      Error,
      `Cannot quantise ${name}: it has values that are infinite or no numbers`,
    );
  },
);

gpuTest(
  "an aborted load frees what quantising took, which was little at a time",
  async (gpu) => {
    await using checkpoint = await openCheckpoint(STORY, { quantize: "q8_0" });
    const before = gpu.allocated, abort = new AbortController();
    const reason = new Error("enough");
    let sent = 0, most = 0, waits = 0, left = 3;
    const upload = new class extends Staging {
      override async flush() {
        waits++;
        sent = 0;
        await super.flush();
      }
    }(gpu);
    const tensors: Tensor[] = [];
    {
      using store = gpuStore(gpu, upload, true);
      await assertRejects(
        () =>
          loadWeights(checkpoint, {
            ...store,
            allocate(bytes, label) {
              const tensor = store.allocate(bytes, label);
              tensors.push(tensor);
              return tensor;
            },
            // As if the model were larger: every tensor is sent many times.
            async quantize(rows, from, stored, label) {
              for (let i = 0; i < 40; i++) {
                sent += stored.length;
                most = Math.max(most, sent);
                await store.quantize!(rows, from, stored, label);
              }
              if (--left === 0) abort.abort(reason);
            },
          }, { signal: abort.signal }),
        Error,
        reason.message,
      );
    }
    for (const tensor of tensors) tensor[Symbol.dispose]();
    assertEquals(gpu.allocated, before);
    assert(waits > 0 && most < 16 << 20, `${most} bytes, ${waits} waits`);
  },
);
