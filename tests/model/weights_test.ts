import { assert, assertEquals, assertRejects } from "@std/assert";
import type {
  Checkpoint,
  TensorInfo,
} from "../../lib/checkpoint/checkpoint.ts";
import type { LoadProgress } from "../../lib/checkpoint/sources.ts";
import { openCheckpoint } from "../../lib/checkpoint/open.ts";
import { f32ToBf16Bits } from "../../lib/dtype.ts";
import { bf16 } from "../../lib/formats/bf16.ts";
import { f32 } from "../../lib/formats/f32.ts";
import type { Matrix } from "../../lib/formats/matrix.ts";
import {
  syntheticCheckpoint,
  type SyntheticRule,
} from "../../lib/checkpoint/synthetic.ts";
import { loadWeights, type WeightStore } from "../../lib/model/weights.ts";
import { fastClock } from "../support/fast_clock.ts";

const fixture = (name: string) =>
  openCheckpoint(new URL(`../fixtures/${name}/`, import.meta.url).href);

/** A buffer in memory. */
interface Stored {
  label: string;
  bytes: Uint8Array<ArrayBuffer>;
}

/** The data of a matrix's only part. */
function only({ n, k, parts }: Matrix<Stored>) {
  const [{ format, twin, planes: [{ bytes }] }, ...more] = parts;
  assertEquals(more, []);
  const size = n * k * format.bytes;
  return { shape: [n, k], twin, format, bytes: bytes.subarray(0, size) };
}

/** A store in memory that counts its calls. */
function memoryStore(): WeightStore<Stored> & {
  pieces: number[];
  settled: number;
} {
  return {
    pieces: [],
    settled: 0,
    allocate: (bytes, label) => ({ label, bytes: new Uint8Array(bytes) }),
    write(buffer, begin, bytes) {
      this.pieces.push(bytes.length);
      buffer.bytes.set(bytes, begin);
    },
    settle() {
      this.settled++;
      return Promise.resolve();
    },
  };
}

async function bytesOf(
  checkpoint: Checkpoint,
  ...names: string[]
): Promise<string> {
  const all: string[] = [];
  for (const name of names) {
    const bytes = new Uint8Array(checkpoint.tensors.get(name)!.byteLength);
    await checkpoint.read(name, 0, bytes);
    all.push(bytes.join());
  }
  return all.join();
}

Deno.test("projections that are read together are stacked, byte for byte", async () => {
  await using checkpoint = await fixture("tiny-untied-f32");
  const store = memoryStore();
  const weights = await loadWeights(checkpoint, store);
  assertEquals(weights.layers.length, 3);
  const [, layer] = weights.layers;
  const from = "model.layers.1.";
  // 6 heads of 16 on one KV head; hidden 80, intermediate 136.
  const qkv = only(layer.qkvProj), gateUp = only(layer.gateUpProj);
  assertEquals(qkv.shape, [(6 + 2) * 16, 80]);
  assertEquals(qkv.twin, undefined);
  assertEquals(layer.qkvProj.label, "layers.1.qkv_proj");
  assertEquals(
    qkv.bytes.join(),
    await bytesOf(
      checkpoint,
      `${from}self_attn.q_proj.weight`,
      `${from}self_attn.k_proj.weight`,
      `${from}self_attn.v_proj.weight`,
    ),
  );
  assertEquals(gateUp.shape, [2 * 136, 80]);
  assertEquals(gateUp.twin, 136);
  assertEquals(
    gateUp.bytes.join(),
    await bytesOf(
      checkpoint,
      `${from}mlp.gate_proj.weight`,
      `${from}mlp.up_proj.weight`,
    ),
  );
  assertEquals(only(weights.lmHead).shape, [500, 80]);
  assertEquals(
    only(weights.lmHead).bytes.join(),
    await bytesOf(checkpoint, "lm_head.weight"),
  );
  assert(weights.lmHead !== weights.embedTokens);
  assertEquals(store.settled, 1);
});

Deno.test("a tied checkpoint has one table, even if it carries a head", async () => {
  for (const name of ["tiny-tied-bf16", "tiny-tied-with-head-bf16"]) {
    await using checkpoint = await fixture(name);
    const weights = await loadWeights(checkpoint, memoryStore());
    assert(weights.lmHead === weights.embedTokens, name);
  }
});

Deno.test("loading reports its progress to the last byte", async () => {
  await using checkpoint = await fixture("tiny-sharded-f16");
  const seen: LoadProgress[] = [];
  await loadWeights(checkpoint, memoryStore(), {
    onProgress: (progress) => seen.push(progress),
  });
  let last = 0;
  for (const { stage, done, total } of seen) {
    assertEquals([stage, total], ["weights", 1034944]); // total_size of its index
    assert(done >= last);
    last = done;
  }
  assertEquals(last, 1034944);
});

Deno.test("weights are written in pieces, and the store settles after them", async () => {
  await using checkpoint = await openCheckpoint(
    "synthetic:qwen3-0.6b?layers=1&vocab=70000",
  );
  const store = memoryStore(), table = 70000 * 1024 * 2;
  const { embedTokens } = await loadWeights(checkpoint, store);
  assertEquals(only(embedTokens).bytes.length, table);
  assertEquals(Math.max(...store.pieces), 16 << 20);
  assertEquals(store.settled, 1);
});

Deno.test("stacked tensors of different types each keep their own", async () => {
  await using checkpoint = mixedTypes();
  const { layers: [layer], embedTokens } = await loadWeights(
    checkpoint,
    memoryStore(),
  );
  assertEquals(only(embedTokens).format, bf16);
  assertEquals(only(layer.gateUpProj).format, bf16);
  const [q, kv, ...more] = layer.qkvProj.parts;
  assertEquals(more, []);
  assertEquals([q.begin, q.rows, q.format], [0, 8, bf16]);
  const half = new Uint16Array(q.planes[0].bytes.buffer);
  assertEquals([half.length, new Set(half)], [
    64,
    new Set([f32ToBf16Bits(0.5)]),
  ]);
  assertEquals([kv.begin, kv.rows, kv.format], [8, 8, f32]);
  const values = new Float32Array(kv.planes[0].bytes.buffer);
  assertEquals([values.length, new Set(values)], [64, new Set([3])]);
});

/** One layer whose q_proj is bf16 (all 0.5) and whose k_proj and v_proj are f32 (all 3). */
function mixedTypes(): Checkpoint {
  const checkpoint = syntheticCheckpoint("mixed", {
    modelType: "qwen3",
    vocabSize: 16,
    hiddenSize: 8,
    intermediateSize: 8,
    numHiddenLayers: 1,
    numAttentionHeads: 2,
    numKeyValueHeads: 1,
    headDim: 4,
    maxPositionEmbeddings: 32,
    rmsNormEps: 1e-6,
    ropeTheta: 1e4,
    ropeScaling: null,
    tieWordEmbeddings: true,
    bosTokenId: null,
    eosTokenIds: [],
  }, 1);
  const wide = /[kv]_proj/;
  const tensors = new Map<string, TensorInfo>();
  for (const [name, info] of checkpoint.tensors) {
    tensors.set(
      name,
      wide.test(name)
        ? { ...info, format: f32, byteLength: 2 * info.byteLength }
        : info,
    );
  }
  return {
    ...checkpoint,
    tensors,
    synthetic: undefined,
    read(name, _, into) {
      const { buffer, byteOffset, byteLength } = into;
      if (wide.test(name)) {
        new Float32Array(buffer, byteOffset, byteLength / 4).fill(3);
      } else {
        new Uint16Array(buffer, byteOffset, byteLength / 2)
          .fill(f32ToBf16Bits(0.5));
      }
      return Promise.resolve();
    },
  };
}

Deno.test("a store that can make synthetic weights makes them", async () => {
  await using checkpoint = await openCheckpoint(
    "synthetic:qwen3-0.6b?layers=1&vocab=64&seed=9",
  );
  const made: [label: string, row: number, rows: number][] = [];
  const store: WeightStore<Stored> = {
    ...memoryStore(),
    // deno-lint-ignore require-await
    async synthesize(matrix, row, rows, { offset }: SyntheticRule) {
      if (offset !== 0) return false; // the host computes norms
      made.push([matrix.label, row, rows]);
      return true;
    },
  };
  const { norm } = await loadWeights(checkpoint, store);
  assertEquals(made, [
    ["embed_tokens", 0, 64],
    ["layers.0.qkv_proj", 0, 2048],
    ["layers.0.qkv_proj", 2048, 1024],
    ["layers.0.qkv_proj", 3072, 1024],
    ["layers.0.o_proj", 0, 1024],
    ["layers.0.gate_up_proj", 0, 3072],
    ["layers.0.gate_up_proj", 3072, 3072],
    ["layers.0.down_proj", 0, 1024],
  ]);
  assertEquals(
    only(norm).bytes.join(),
    await bytesOf(checkpoint, "model.norm.weight"),
  );
});

/** A checkpoint with other tensors. */
async function changed(
  change: (tensors: Map<string, TensorInfo>) => void,
): Promise<Checkpoint> {
  const checkpoint = await fixture("tiny-tied-bf16");
  const tensors = new Map(checkpoint.tensors);
  change(tensors);
  return { ...checkpoint, name: "changed", tensors };
}

Deno.test("missing tensors are listed, wrong shapes named", async () => {
  const info: TensorInfo = {
    name: "x",
    format: bf16,
    shape: [1],
    byteLength: 2,
  };
  const refused: [(tensors: Map<string, TensorInfo>) => void, string][] = [
    [
      (tensors) => {
        tensors.delete("model.norm.weight");
        tensors.delete("model.layers.1.self_attn.q_norm.weight");
      },
      "Cannot load changed: it lacks model.layers.1.self_attn.q_norm.weight, model.norm.weight, it must have the 24 tensors of a Qwen3 with 2 layers",
    ],
    [
      (tensors) => {
        tensors.clear();
        tensors.set("wte", info);
      },
      "model.layers.0.self_attn.o_proj.weight and 16 more and it has unknown tensors wte",
    ],
    [
      (tensors) =>
        tensors.set("model.layers.0.mlp.up_proj.weight", {
          ...info,
          shape: [64, 96],
        }),
      "Cannot load changed: model.layers.0.mlp.up_proj.weight has shape [64, 96], config.json requires [96, 64]",
    ],
  ];
  for (const [change, message] of refused) {
    await using checkpoint = await changed(change);
    const error = await assertRejects(
      () => loadWeights(checkpoint, memoryStore()),
      Error,
      message,
    );
    assert(!error.message.includes("\n"));
  }
});

Deno.test("a signal ends loading", async () => {
  await using checkpoint = await fixture("tiny-tied-bf16");
  const abort = new AbortController();
  let seen = 0;
  await assertRejects(
    () =>
      loadWeights(checkpoint, memoryStore(), {
        signal: abort.signal,
        onProgress: () => {
          if (++seen === 5) abort.abort(new Error("enough"));
        },
      }),
    Error,
    "enough",
  );
  assert(seen < 10, `${seen} reports after the fifth asked to end`);
});

Deno.test("the event loop turns while weights load, so an abort is heard", async () => {
  await using checkpoint = await openCheckpoint(
    "synthetic:qwen3-0.6b?layers=2&vocab=64",
  );
  using _clock = fastClock(60); // every piece takes long
  const abort = new AbortController();
  let pieces = 0;
  setTimeout(() => abort.abort(new Error("enough")), 0);
  await assertRejects(
    () =>
      loadWeights(checkpoint, memoryStore(), {
        signal: abort.signal,
        onProgress: () => pieces++,
      }),
    Error,
    "enough",
  );
  assert(pieces < 4, `${pieces} pieces`);
});
