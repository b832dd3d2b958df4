/**
 * Writes a model as a GGUF file, quantised or not.
 *
 * @module
 */
import type { Checkpoint, TensorInfo } from "../checkpoint/checkpoint.ts";
import { ggufEntries, ggufTensors } from "../checkpoint/gguf_metadata.ts";
import { requireWritable, writeGguf } from "../checkpoint/gguf_writer.ts";
import { openCheckpoint } from "../checkpoint/open.ts";
import {
  fileFormats,
  notOneOf,
  PLAIN,
  type Quantization,
  quantizationNamed,
  QUANTIZATIONS,
} from "../checkpoint/quantization.ts";
import { quantized } from "../checkpoint/quantized.ts";
import type { OpenOptions } from "../checkpoint/sources.ts";
import { storedRowBytes } from "../formats/format.ts";
import { storedMatrix, unpackRow } from "../formats/tensor.ts";

/** What `--type` takes. */
export const FILE_TYPES: readonly Quantization[] = [...QUANTIZATIONS, ...PLAIN];

/** Tensors of one type in a file. */
export interface TypeReport {
  type: string;
  tensors: number;
  /** Bytes as the model stored them, and in the file. */
  before: number;
  after: number;
  /** ‖Δ‖ / ‖w‖ of some rows of each tensor; 0 if nothing was rounded. */
  error: number;
}

/** What {@linkcode quantizeModel} did. */
export interface QuantizeReport {
  model: string;
  file: string;
  type: string;
  /** Of the file. */
  bytes: number;
  seconds: number;
  types: TypeReport[];
}

/** Options of {@linkcode quantizeModel}. */
export interface QuantizeOptions {
  type: string;
  /** Replaces a file that is there. */
  force?: boolean;
  opening?: OpenOptions;
  signal?: AbortSignal;
}

/** Rows of a tensor that are compared with what became of them. */
const COMPARED_ROWS = 16;

/**
 * Writes a model as the GGUF file `file`.
 *
 * @throws {Error} if the type is unknown, the file cannot be written, the model cannot be
 * read or is quantised already
 * @throws the reason of `signal` if it is aborted; nothing is left of the file then
 */
export async function quantizeModel(
  model: string,
  file: string,
  { type, force, opening, signal }: QuantizeOptions,
): Promise<QuantizeReport> {
  const began = performance.now();
  const way = quantizationNamed(type, FILE_TYPES);
  if (way === undefined) {
    throw new Error(
      `Cannot quantise ${model}: type is ${notOneOf(type, FILE_TYPES)}`,
    );
  }
  await requireWritable(file, force);
  const { onNotice, onProgress } = opening ?? {};
  const source = await openCheckpoint(model, {
    ...opening,
    quantize: undefined,
    signal,
  });
  await using checkpoint = quantized(
    source,
    fileFormats(source, way),
    onNotice ?? undefined,
  );
  for (const notice of source.notices) onNotice?.(notice);
  const bytes = await writeGguf(
    file,
    checkpoint,
    await ggufEntries(checkpoint, way),
    ggufTensors(checkpoint),
    { force, onProgress, signal },
  );
  const types = await typesOf(source, checkpoint);
  const seconds = (performance.now() - began) / 1000;
  return { model: source.name, file, type: way.name, bytes, seconds, types };
}

/** Lists types, the one with the most bytes first. */
async function typesOf(
  source: Checkpoint,
  checkpoint: Checkpoint,
): Promise<TypeReport[]> {
  const reports: TypeReport[] = [];
  const groups = Map.groupBy(
    ggufTensors(checkpoint),
    ({ infos: [{ format }] }) => format.name,
  );
  for (const [type, tensors] of groups) {
    const infos = tensors.flatMap(({ infos }) => infos);
    let missed = 0, size = 0, before = 0, after = 0;
    for (const info of infos) {
      const stored = source.tensors.get(info.name)!;
      before += stored.byteLength;
      after += info.byteLength;
      if (stored.format === info.format) continue;
      const [own, original] = [
        await someRows(checkpoint, info),
        await someRows(source, stored),
      ];
      original.forEach((value, i) => {
        missed += (own[i] - value) ** 2;
        size += value ** 2;
      });
    }
    const error = size === 0 ? 0 : Math.sqrt(missed / size);
    reports.push({ type, tensors: tensors.length, before, after, error });
  }
  return reports.sort((a, b) => b.after - a.after);
}

/** Some rows of a tensor, spread evenly, as f32. */
async function someRows(
  checkpoint: Checkpoint,
  { name, format, shape }: TensorInfo,
): Promise<Float32Array> {
  const k = shape.at(-1)!, all = shape.length > 1 ? shape[0] : 1;
  const count = Math.min(COMPARED_ROWS, all);
  const values = new Float32Array(count * k);
  const bytes = new Uint8Array(storedRowBytes(format, k));
  for (let i = 0; i < count; i++) {
    const row = Math.floor(i * all / count);
    await checkpoint.read(name, row * bytes.length, bytes);
    unpackRow(
      storedMatrix(format, bytes, k),
      0,
      values.subarray(i * k, (i + 1) * k),
    );
  }
  return values;
}
