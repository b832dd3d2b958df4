import { assertEquals, assertRejects } from "@std/assert";
import type { Qwen3Config } from "../../lib/checkpoint/config.ts";
import { syntheticCheckpoint } from "../../lib/checkpoint/synthetic.ts";
import type { Format } from "../../lib/formats/format.ts";
import type { Matrix } from "../../lib/formats/matrix.ts";
import { FORMATS } from "../../lib/formats/mod.ts";
import { Staging } from "../../lib/gpu/staging.ts";
import { gpuStore } from "../../lib/gpu/store.ts";
import { familyOf } from "../../lib/model/families.ts";
import { pairWeights } from "../../lib/model/family.ts";
import { loadWeights } from "../../lib/model/weights.ts";
import type { Gpu } from "../../lib/webgpu/device.ts";
import type { Tensor } from "../../lib/webgpu/tensor.ts";
import { loadQwen3 } from "../../lib/load.ts";
import { assertAllClose } from "../support/assert_all_close.ts";
import { HARDWARE, wrapGpu } from "../support/wrapped_gpu.ts";
import { gpuTest, type Trial } from "../support/gpu.ts";
import { nibbles } from "../support/nibbles.ts";
import { retyped } from "../support/retyped.ts";

const CONFIG: Qwen3Config = {
  modelType: "qwen3",
  vocabSize: 203,
  hiddenSize: 256,
  intermediateSize: 512,
  numHiddenLayers: 2,
  numAttentionHeads: 4,
  numKeyValueHeads: 1,
  headDim: 64,
  maxPositionEmbeddings: 64,
  rmsNormEps: 1e-6,
  ropeTheta: 1e4,
  ropeScaling: null,
  tieWordEmbeddings: false,
  bosTokenId: null,
  eosTokenIds: [],
};

/** Loads weights through `upload`, or without, and returns the bytes of all planes. */
async function planesOf(
  gpu: Gpu,
  trial: Trial,
  made: Awaited<ReturnType<typeof retyped>>,
  upload: Staging,
): Promise<Map<string, Uint8Array>> {
  using store = gpuStore(gpu, upload);
  const { config } = made.stored;
  const weights = await loadWeights<Tensor>(made.stored, {
    ...store,
    // Every byte has to be written.
    allocate: (bytes, label) => {
      const tensor = trial.own(store.allocate(bytes, label));
      tensor.write(0, new Uint8Array(bytes).fill(0xaa));
      return tensor;
    },
  });
  const planes = new Map<string, Uint8Array>();
  const matrices: Matrix<Tensor>[] = [];
  for (
    const [matrix] of pairWeights(weights, familyOf(config).weights(config))
  ) {
    matrices.push(matrix);
  }
  for (const { parts } of matrices) {
    for (const { begin, planes: own } of parts) {
      for (const { label, buffer, bytes } of own) {
        const read = await gpu.readBuffer(buffer, 0, bytes);
        planes.set(`${label} ${begin}`, new Uint8Array(read));
      }
    }
  }
  return planes;
}

/** Different formats next to each other, in rows that divide them all. */
const MIXES: [string, (name: string) => Format][] = [
  ...[0, 5, 10].map((shift): [string, (name: string) => Format] => [
    `formats from ${FORMATS[shift].name} on`,
    (name) => {
      const all = [...FORMATS, nibbles];
      const at = [...name].reduce((sum, c) => sum + c.charCodeAt(0), shift);
      // Norms have odd sizes.
      return /norm/.test(name) ? all[at % 3] : all[at % all.length];
    },
  ]),
];

for (const [what, formatOf] of MIXES) {
  gpuTest(
    `rows that are rearranged on the device lie as the host lays them, ${what}`,
    async (gpu, trial) => {
      const made = await retyped(
        syntheticCheckpoint("mixed", CONFIG, 3),
        formatOf,
      );
      const expected = await planesOf(
        gpu,
        trial,
        made,
        new Staging(gpu, { repacks: false }),
      );
      // Pieces of few rows and of whole tensors, batches of one and of many.
      for (const piece of [1 << 13, 1 << 22]) {
        for (const batch of [1, 1 << 17, 1 << 24]) {
          const staging = new Staging(gpu, { repacks: true, piece, batch });
          const actual = await planesOf(gpu, trial, made, staging);
          assertEquals([...actual.keys()], [...expected.keys()]);
          for (const [label, plane] of actual) {
            const wrong = plane.findIndex((byte, i) =>
              byte !== expected.get(label)![i]
            );
            assertEquals(wrong, -1, `${label} in ${piece} and ${batch}`);
          }
        }
      }
    },
  );
}

gpuTest(
  "a GPU rearranges blocks itself, a software renderer leaves them to the host",
  async () => {
    const model = "synthetic:qwen3-0.6b?layers=1&vocab=512&dtype=q5_k_m";
    const ids = [3, 1, 4, 1, 5];
    using onCpu = await loadQwen3(model, {
      device: "cpu",
      precision: "f32",
    });
    const expected = await onCpu.logits(ids);
    for (
      const [pretence, where] of [
        [HARDWARE, "the device"],
        [{}, "the host"],
      ] as const
    ) {
      const { gpu } = wrapGpu(pretence);
      using qwen = await loadQwen3(model, {
        gpu,
        device: "gpu",
        precision: "f32",
      });
      const { choices } = qwen.device;
      const choice = choices.find(({ what }) => what === "stored blocks");
      assertEquals(choice?.value, `rearranged on ${where}`);
      assertAllClose(await qwen.logits(ids), expected, {
        absolute: 1e-4,
        relative: 1e-4,
      });
    }
  },
);

gpuTest(
  "what was staged is freed, also when loading is aborted",
  async (gpu, trial) => {
    const checkpoint = syntheticCheckpoint("staged", CONFIG, 3, "q6_k");
    for (const abort of [false, true]) {
      const before = gpu.allocated, controller = new AbortController();
      const planes: Tensor[] = [];
      const staging = new Staging(gpu, { repacks: true, piece: 1 << 13 });
      const loading = async () => {
        using store = gpuStore(gpu, staging);
        await loadWeights<Tensor>(checkpoint, {
          ...store,
          allocate(bytes, label) {
            const plane = trial.own(store.allocate(bytes, label));
            planes.push(plane);
            return plane;
          },
        }, {
          signal: controller.signal,
          onProgress({ done, total }) {
            if (abort && done > total / 2) {
              controller.abort(new Error("enough"));
            }
          },
        });
      };
      if (abort) await assertRejects(loading, Error, "enough");
      else await loading();
      for (const plane of planes) plane[Symbol.dispose]();
      assertEquals(gpu.allocated, before);
    }
  },
);
