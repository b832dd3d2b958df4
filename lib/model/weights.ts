/**
 * From a checkpoint's tensors to the weights of the forward pass: names and shapes
 * are checked, q/k/v and gate/up are packed, bytes go by range from the file to the
 * device, so that the host never holds a second copy.
 *
 * @module
 */
import type { Checkpoint, TensorInfo } from "../checkpoint/checkpoint.ts";
import type { LoadProgress } from "../checkpoint/sources.ts";
import type { Dtype } from "../dtype.ts";
import { tensorShapes } from "../checkpoint/tensors.ts";
import { BYTES, unpack } from "../dtype.ts";
import type { Layer, Weights } from "./qwen3.ts";
import { type SyntheticRule, syntheticRule } from "../checkpoint/synthetic.ts";

/** Where weights are put: a device's memory. */
export interface WeightStore<T> {
  /** Room for `shape`; `pairs`: the two halves of the rows are read together. */
  allocate(
    dtype: Dtype,
    shape: readonly number[],
    label: string,
    split?: "rows" | "pairs",
  ): T;
  /** Copies bytes as stored to byte `begin` on. May return before they are read. */
  write(tensor: T, begin: number, bytes: Uint8Array<ArrayBuffer>): void;
  /** Makes rows `row … row + rows` of a synthetic bf16 tensor on the device, if it can. */
  synthesize?(
    tensor: T,
    row: number,
    rows: number,
    rule: SyntheticRule,
  ): boolean;
  /** Waits until what was written has arrived, so that staging memory stays bounded. */
  settle(): Promise<void>;
}

/** How weights are loaded. */
export interface LoadOptions {
  onProgress?: (progress: LoadProgress) => void;
  signal?: AbortSignal;
}

const PIECE = 16 << 20;
const SETTLE_EVERY = 128 << 20;

/**
 * Loads all weights of a dense Qwen3.
 *
 * @throws {Error} if tensors are missing, unknown or of another shape, naming them.
 */
export async function loadWeights<T>(
  checkpoint: Checkpoint,
  store: WeightStore<T>,
  { onProgress, signal }: LoadOptions = {},
): Promise<Weights<T>> {
  checkTensors(checkpoint);
  const { config } = checkpoint;
  const shapes = tensorShapes(config);
  let total = 0, done = 0, unsettled = 0;
  for (const name of shapes.keys()) {
    total += checkpoint.tensors.get(name)!.byteLength;
  }
  const piece = new Uint8Array(PIECE);

  /** Stacks the rows of `names` in one tensor. */
  async function load(
    label: string,
    names: string[],
    split?: "rows" | "pairs",
  ): Promise<T> {
    const infos = names.map((name) => checkpoint.tensors.get(name)!);
    const [first] = infos;
    const dtype = infos.every((info) => info.dtype === first.dtype)
      ? first.dtype
      : "f32"; // different types can only be stacked in the widest
    const rows = infos.reduce((sum, info) => sum + info.shape[0], 0);
    const shape = [rows, ...first.shape.slice(1)];
    const tensor = store.allocate(dtype, shape, label, split);
    let row = 0, at = 0;
    for (const info of infos) {
      const rule = checkpoint.synthetic &&
        syntheticRule(info.name, info.shape, checkpoint.synthetic.seed);
      if (rule && store.synthesize?.(tensor, row, info.shape[0], rule)) {
        at += info.byteLength;
        done += info.byteLength;
      } else at = await copy(info, tensor, dtype, at);
      row += info.shape[0];
      onProgress?.({ stage: "weights", file: info.name, done, total });
    }
    return tensor;
  }

  async function copy(info: TensorInfo, tensor: T, dtype: Dtype, at: number) {
    for (let begin = 0; begin < info.byteLength; begin += PIECE) {
      signal?.throwIfAborted();
      const bytes = piece.subarray(0, Math.min(PIECE, info.byteLength - begin));
      await checkpoint.read(info.name, begin, bytes);
      const stored = dtype === info.dtype ? bytes : widen(bytes, info.dtype);
      store.write(tensor, at, stored);
      at += stored.length;
      done += bytes.length;
      unsettled += stored.length;
      if (unsettled >= SETTLE_EVERY) {
        await store.settle();
        unsettled = 0;
      }
      onProgress?.({ stage: "weights", file: info.name, done, total });
    }
    return at;
  }

  const embedTokens = await load(
    "embed_tokens",
    ["model.embed_tokens.weight"],
    "rows",
  );
  const layers: Layer<T>[] = [];
  for (let i = 0; i < config.numHiddenLayers; i++) {
    const from = (...names: string[]) =>
      names.map((name) => `model.layers.${i}.${name}.weight`);
    const label = (name: string) => `layers.${i}.${name}`;
    layers.push({
      inputNorm: await load(label("input_norm"), from("input_layernorm")),
      qkvProj: await load(
        label("qkv_proj"),
        from("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "rows",
      ),
      qNorm: await load(label("q_norm"), from("self_attn.q_norm")),
      kNorm: await load(label("k_norm"), from("self_attn.k_norm")),
      oProj: await load(label("o_proj"), from("self_attn.o_proj"), "rows"),
      postNorm: await load(
        label("post_norm"),
        from("post_attention_layernorm"),
      ),
      gateUpProj: await load(
        label("gate_up_proj"),
        from("mlp.gate_proj", "mlp.up_proj"),
        "pairs",
      ),
      downProj: await load(label("down_proj"), from("mlp.down_proj"), "rows"),
    });
  }
  const norm = await load("norm", ["model.norm.weight"]);
  const lmHead = config.tieWordEmbeddings
    ? embedTokens
    : await load("lm_head", ["lm_head.weight"], "rows");
  await store.settle();
  return { embedTokens, layers, norm, lmHead };
}

/** Names and shapes against the configuration; a tied checkpoint may carry a head, it is ignored. */
function checkTensors({ name, config, tensors }: Checkpoint): void {
  const shapes = tensorShapes(config);
  const list = (names: string[]) =>
    names.length > 8
      ? `${names.slice(0, 8).join(", ")} and ${names.length - 8} more`
      : names.join(", ");
  const missing = [...shapes.keys()].filter((tensor) => !tensors.has(tensor));
  const unknown = [...tensors.keys()].filter((tensor) =>
    !shapes.has(tensor) &&
    !(config.tieWordEmbeddings && tensor === "lm_head.weight")
  );
  if (missing.length || unknown.length) {
    const complaints = [
      missing.length ? `it lacks ${list(missing)}` : "",
      unknown.length ? `it has the unknown ${list(unknown)}` : "",
    ].filter(Boolean);
    throw new Error(
      `Cannot load ${name}: ${
        complaints.join(" and ")
      }, it must have the ${shapes.size} tensors of a Qwen3 with ${config.numHiddenLayers} layers`,
    );
  }
  for (const [tensor, shape] of shapes) {
    const found = tensors.get(tensor)!.shape;
    if (found.join() !== shape.join()) {
      throw new Error(
        `Cannot load ${name}: ${tensor} has shape [${
          found.join(", ")
        }], config.json asks for [${shape.join(", ")}]`,
      );
    }
  }
}

function widen(
  bytes: Uint8Array<ArrayBuffer>,
  dtype: TensorInfo["dtype"],
): Uint8Array<ArrayBuffer> {
  if (dtype === "f32") return bytes;
  const count = bytes.length / BYTES[dtype];
  const data = new Uint16Array(bytes.buffer, bytes.byteOffset, count);
  const out = new Float32Array(count);
  unpack({ dtype, shape: [count], data }, 0, out);
  return new Uint8Array(out.buffer);
}
