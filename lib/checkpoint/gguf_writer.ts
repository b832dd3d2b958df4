/**
 * Writes GGUF files, version 3, tensor by tensor: the whole is never in memory.
 *
 * @module
 */
import type { Checkpoint, TensorInfo } from "./checkpoint.ts";
import { errorText, OptionError } from "../errors.ts";
import { ggufTypeCode } from "./gguf.ts";
import { host } from "../host.ts";
import { bytesText, type LoadProgress } from "./sources.ts";

/** A key of the metadata with its value; `strings` and `i32s` are lists. */
export type GgufEntry =
  | readonly [key: string, kind: "u32" | "i32" | "f32", value: number]
  | readonly [key: string, kind: "bool", value: boolean]
  | readonly [key: string, kind: "string", value: string]
  | readonly [key: string, kind: "strings", value: readonly string[]]
  | readonly [key: string, kind: "i32s", value: readonly number[]];

/** A tensor by its name in the file: one of a checkpoint, or several in one format. */
export interface GgufTensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly infos: readonly TensorInfo[];
}

const bytesIn = ({ infos }: GgufTensor) =>
  infos.reduce((sum, { byteLength }) => sum + byteLength, 0);

/** Codes of the kinds of values. */
const KIND = { u32: 4, i32: 5, f32: 6, bool: 7, string: 8 } as const;
const LIST = 9;
const ALIGNMENT = 32;
/** Bytes that are read and written at a time. */
const PIECE = 1 << 24;
/** What llama.cpp refuses: longer names of tensors. */
const MOST_NAME = 63;

const aligned = (bytes: number) => Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;

/** A growing buffer of little-endian numbers and strings. */
class Bytes {
  #bytes = new Uint8Array(1 << 16);
  #view = new DataView(this.#bytes.buffer);
  #length = 0;

  /** Makes room for `count` bytes and returns where they begin. */
  #room(count: number): number {
    const begin = this.#length;
    this.#length += count;
    if (this.#length > this.#bytes.length) {
      const more = new Uint8Array(2 * this.#length);
      more.set(this.#bytes);
      this.#bytes = more;
      this.#view = new DataView(more.buffer);
    }
    return begin;
  }

  number(kind: "u32" | "i32" | "f32" | "bool", value: number): void {
    const at = this.#room(kind === "bool" ? 1 : 4), view = this.#view;
    if (kind === "bool") view.setUint8(at, value);
    else if (kind === "f32") view.setFloat32(at, value, true);
    else if (kind === "i32") view.setInt32(at, value, true);
    else view.setUint32(at, value, true);
  }

  u64(value: number): void {
    const at = this.#room(8);
    this.#view.setBigUint64(at, BigInt(value), true);
  }

  string(text: string): void {
    const bytes = new TextEncoder().encode(text);
    this.u64(bytes.length);
    const at = this.#room(bytes.length);
    this.#bytes.set(bytes, at);
  }

  value([, kind, value]: GgufEntry): void {
    if (kind === "strings" || kind === "i32s") {
      this.number("u32", LIST);
      this.number("u32", kind === "i32s" ? KIND.i32 : KIND.string);
      this.u64(value.length);
      if (kind === "strings") { for (const one of value) this.string(one); }
      else for (const one of value) this.number("i32", one);
      return;
    }
    this.number("u32", KIND[kind]);
    if (kind === "string") this.string(value);
    else this.number(kind, Number(value));
  }

  /** Everything, padded to the alignment. */
  take(): Uint8Array<ArrayBuffer> {
    this.#room(aligned(this.#length) - this.#length);
    return this.#bytes.subarray(0, this.#length);
  }
}

/** The header of a file: all that comes before the data of its tensors. */
export function ggufHeader(
  entries: readonly GgufEntry[],
  tensors: readonly GgufTensor[],
): Uint8Array<ArrayBuffer> {
  const header = new Bytes();
  header.number("u32", 0x46554747); // "GGUF"
  header.number("u32", 3);
  header.u64(tensors.length);
  header.u64(entries.length);
  for (const entry of entries) {
    header.string(entry[0]);
    header.value(entry);
  }
  let offset = 0;
  for (const tensor of tensors) {
    const { name, shape, infos: [{ format }] } = tensor;
    if (name.length > MOST_NAME) {
      throw new Error(
        `Cannot write ${name} to a GGUF file: its name has ${name.length} characters, at most ${MOST_NAME} are allowed`,
      );
    }
    header.string(name);
    header.number("u32", shape.length);
    for (const size of shape.toReversed()) header.u64(size);
    header.number("u32", ggufTypeCode(format));
    header.u64(offset);
    offset += aligned(bytesIn(tensor));
  }
  return header.take();
}

/** Options of {@linkcode writeGguf}. */
export interface WriteOptions {
  /** Replaces a file that is there. */
  force?: boolean;
  onProgress?: (progress: LoadProgress) => void;
  /** Aborts writing; what was written is removed. */
  signal?: AbortSignal;
}

/**
 * Checks that a file can be written, before anything else is done.
 *
 * @param bytes that it will have, if that is known
 * @throws {Error} if its name does not end in .gguf, its folder does not exist, it exists
 * and may not be replaced, or the disk is too full
 */
export async function requireWritable(
  path: string,
  force = false,
  bytes = 0,
): Promise<void> {
  const refuse = (why: string): never => {
    throw new Error(`Cannot write ${path}: ${why}`);
  };
  if (!/[^/\\]\.gguf$/i.test(path)) refuse("its name must end in .gguf");
  const folder = folderOf(path), { files } = host;
  const isFolder = (await files.find(folder))?.isDirectory;
  if (!isFolder) refuse(`there is no folder ${folder}`);
  const there = await files.find(path);
  if (there?.isDirectory) refuse("it is a folder, must be a file");
  if (there && !force) {
    throw new OptionError(
      "force",
      `Cannot write ${path}: force must be set to replace it: the file exists`,
    );
  }
  const free = await files.freeSpace(folder);
  if (free === undefined || bytes <= free) return;
  refuse(`it needs ${bytesText(bytes)}, the disk has ${bytesText(free)} left`);
}

/** The folder of a path; `.` if it names none. */
function folderOf(path: string): string {
  const [, folder] = /^(.*)[/\\][^/\\]*$/s.exec(path) ?? [];
  return folder === undefined ? "." : folder === "" ? "/" : folder;
}

/**
 * Writes a file: to a temporary name beside it, which it loses at the end.
 *
 * @returns the bytes of the file
 * @throws {Error} as {@linkcode requireWritable}, or if reading or writing fails
 * @throws the reason of `signal` if it is aborted
 */
export async function writeGguf(
  path: string,
  checkpoint: Checkpoint,
  entries: readonly GgufEntry[],
  tensors: readonly GgufTensor[],
  { force, onProgress, signal }: WriteOptions = {},
): Promise<number> {
  const header = ggufHeader(entries, tensors);
  const total = tensors.reduce(
    (sum, tensor) => sum + aligned(bytesIn(tensor)),
    header.length,
  );
  await requireWritable(path, force, total);
  const unfinished = `${path}.${crypto.randomUUID().slice(0, 8)}.part`;
  const { files } = host;
  try {
    {
      using file = await files.append(unfinished);
      await file.append(header);
      for (const tensor of tensors) {
        for await (const piece of piecesOf(checkpoint, tensor, signal)) {
          await file.append(piece);
          const stage = "weights", done = file.size;
          onProgress?.({ stage, file: tensor.name, done, total });
        }
      }
      await file.flush();
    }
    signal?.throwIfAborted();
    await files.move(unfinished, path);
    return total;
  } catch (error) {
    await files.remove(unfinished);
    signal?.throwIfAborted();
    throw explainedWrite(path, error);
  }
}

/** An error of the system does not say which file could not be written. */
function explainedWrite(path: string, error: unknown): unknown {
  const text = errorText(error);
  if (text.startsWith("Cannot ")) return error;
  return new Error(`Cannot write ${path}: ${text}`, { cause: error });
}

/** The bytes of a tensor, padded to the alignment. */
async function* piecesOf(
  checkpoint: Checkpoint,
  tensor: GgufTensor,
  signal?: AbortSignal,
): AsyncGenerator<Uint8Array, void> {
  const all = bytesIn(tensor);
  for (const { name, format, byteLength } of tensor.infos) {
    const step = Math.floor(PIECE / format.bytes) * format.bytes;
    for (let begin = 0; begin < byteLength; begin += step) {
      signal?.throwIfAborted();
      const piece = new Uint8Array(Math.min(step, byteLength - begin));
      await checkpoint.read(name, begin, piece);
      yield piece;
    }
  }
  if (aligned(all) > all) yield new Uint8Array(aligned(all) - all);
}
