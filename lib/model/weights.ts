/**
 * From a checkpoint's tensors to the weights of the forward pass, as the family's table
 * says. Names and shapes are checked; bytes go from the file to the device in pieces,
 * so that the host never holds a second copy.
 *
 * @module
 */
import type { Checkpoint, TensorInfo } from "../checkpoint/checkpoint.ts";
import type { LoadProgress } from "../checkpoint/sources.ts";
import type { Dtype } from "../dtype.ts";
import { BYTES, unpack } from "../dtype.ts";
import { familyOf } from "./families.ts";
import {
  type Family,
  listWeights,
  mapWeights,
  stackedShape,
  tensorShapes,
  type Weights,
  type WeightSpec,
} from "./family.ts";
import { type SyntheticRule, syntheticRule } from "../checkpoint/synthetic.ts";

/** The memory of a device, which weights are loaded into. */
export interface WeightStore<T> {
  /** Allocates a weight; `split` as in {@linkcode WeightSpec}. */
  allocate(
    dtype: Dtype,
    shape: readonly number[],
    label: string,
    split?: WeightSpec["split"],
  ): T;
  /** Writes stored bytes to `tensor`, from byte `begin`. `bytes` may be reused on return. */
  write(tensor: T, begin: number, bytes: Uint8Array<ArrayBuffer>): void;
  /** Computes rows `row` to `row + rows` of a synthetic bf16 tensor on the device; false if it cannot. */
  synthesize?(
    tensor: T,
    row: number,
    rows: number,
    rule: SyntheticRule,
  ): boolean;
  /** Waits for all writes to finish, which bounds staging memory. */
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
 * Loads all weights of a model.
 *
 * @throws {Error} naming the tensors that are missing, unknown or misshapen.
 */
export async function loadWeights<T>(
  checkpoint: Checkpoint,
  store: WeightStore<T>,
  { onProgress, signal }: LoadOptions = {},
): Promise<Weights<T>> {
  const { config, tensors, synthetic } = checkpoint;
  const family = familyOf(config), table = family.weights(config);
  checkTensors(checkpoint, family, table);
  let total = 0, done = 0, unsettled = 0;
  for (const name of tensorShapes(table).keys()) {
    total += tensors.get(name)!.byteLength;
  }
  const piece = new Uint8Array(PIECE);

  async function load(spec: WeightSpec): Promise<T> {
    const infos = spec.tensors.map(({ name }) => tensors.get(name)!);
    const [first] = infos;
    const dtype = infos.every((info) => info.dtype === first.dtype)
      ? first.dtype
      : "f32"; // different types can only be stacked in the widest
    const shape = stackedShape(spec);
    const tensor = store.allocate(dtype, shape, spec.label, spec.split);
    let row = 0, at = 0;
    for (const info of infos) {
      const rule = synthetic &&
        syntheticRule(info.name, spec.kind, info.shape, synthetic.seed);
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

  const loaded = new Map<WeightSpec, T>();
  for (const spec of listWeights(table)) loaded.set(spec, await load(spec));
  await store.settle();
  return mapWeights(table, (spec) => loaded.get(spec)!);
}

/** Checks names and shapes. A head next to tied embeddings is ignored. */
function checkTensors(
  { name, config, tensors }: Checkpoint,
  family: Family,
  table: Weights<WeightSpec>,
): void {
  const shapes = tensorShapes(table);
  const ignored = config.tieWordEmbeddings
    ? tensorShapes(family.weights({ ...config, tieWordEmbeddings: false }))
    : shapes;
  const list = (names: string[]) =>
    names.length > 8
      ? `${names.slice(0, 8).join(", ")} and ${names.length - 8} more`
      : names.join(", ");
  const missing = [...shapes.keys()].filter((tensor) => !tensors.has(tensor));
  const unknown = [...tensors.keys()].filter((tensor) =>
    !shapes.has(tensor) && !ignored.has(tensor)
  );
  if (missing.length || unknown.length) {
    const complaints = [
      missing.length ? `it lacks ${list(missing)}` : "",
      unknown.length ? `it has the unknown ${list(unknown)}` : "",
    ].filter(Boolean);
    throw new Error(
      `Cannot load ${name}: ${
        complaints.join(" and ")
      }, it must have the ${shapes.size} tensors of a ${family.name} with ${config.numHiddenLayers} layers`,
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
