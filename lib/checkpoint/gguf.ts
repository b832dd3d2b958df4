/**
 * Reads the header of a GGUF file
 * (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): metadata, and where the
 * tensors are. The file has a magic number, a version and two counts, then keys with
 * typed values, then tensors with their shapes, types and offsets, then the data.
 *
 * @module
 */
import { elements } from "../dtype.ts";
import { quoted } from "../errors.ts";
import { isGguf, weightsKind } from "./file_kind.ts";
import type { ByteSource, SafetensorsEntry } from "./safetensors.ts";

/** A value of the metadata. Integers beyond 2⁵³ are rounded. */
export type GgufValue = number | boolean | string | GgufList;

/** An array of the metadata; its elements have one type. */
export type GgufList = readonly (number | boolean | string)[];

/** What the header of a GGUF file holds. */
export interface GgufHeader<Source extends ByteSource = ByteSource> {
  /** Values by their keys. */
  metadata: ReadonlyMap<string, GgufValue>;
  /** Tensors by name, in the order of the header; shapes are outermost first. */
  tensors: ReadonlyMap<string, SafetensorsEntry<Source>>;
}

/** A stored type: its name, and the elements and bytes of a block. */
type Type = readonly [name: string, elements: number, bytes: number];

/** The types by their codes in files. */
const TYPES: ReadonlyMap<number, Type> = new Map<number, Type>([
  [0, ["F32", 1, 4]],
  [1, ["F16", 1, 2]],
  [2, ["Q4_0", 32, 18]],
  [3, ["Q4_1", 32, 20]],
  [6, ["Q5_0", 32, 22]],
  [7, ["Q5_1", 32, 24]],
  [8, ["Q8_0", 32, 34]],
  [9, ["Q8_1", 32, 36]],
  [10, ["Q2_K", 256, 84]],
  [11, ["Q3_K", 256, 110]],
  [12, ["Q4_K", 256, 144]],
  [13, ["Q5_K", 256, 176]],
  [14, ["Q6_K", 256, 210]],
  [15, ["Q8_K", 256, 292]],
  [16, ["IQ2_XXS", 256, 66]],
  [17, ["IQ2_XS", 256, 74]],
  [18, ["IQ3_XXS", 256, 98]],
  [19, ["IQ1_S", 256, 50]],
  [20, ["IQ4_NL", 32, 18]],
  [21, ["IQ3_S", 256, 110]],
  [22, ["IQ2_S", 256, 82]],
  [23, ["IQ4_XS", 256, 136]],
  [24, ["I8", 1, 1]],
  [25, ["I16", 1, 2]],
  [26, ["I32", 1, 4]],
  [27, ["I64", 1, 8]],
  [28, ["F64", 1, 8]],
  [29, ["IQ1_M", 256, 56]],
  [30, ["BF16", 1, 2]],
  [34, ["TQ1_0", 256, 54]],
  [35, ["TQ2_0", 256, 66]],
  [39, ["MXFP4", 32, 17]],
  [40, ["NVFP4", 64, 36]],
  [41, ["Q1_0", 128, 18]],
  [42, ["Q2_0", 64, 18]],
]);

/** The code that files have for a format. */
export function ggufTypeCode({ name }: { name: string }): number {
  for (const [code, [type]] of TYPES) {
    if (type === name.toUpperCase()) return code;
  }
  throw new Error(`Cannot write ${name} to a GGUF file: there is no such type`);
}

/** Types that llama.cpp has removed, by their codes. */
const REMOVED: ReadonlyMap<number, string> = new Map([
  [4, "Q4_2"],
  [5, "Q4_3"],
  [31, "Q4_0_4_4"],
  [32, "Q4_0_4_8"],
  [33, "Q4_0_8_8"],
  [36, "IQ4_NL_4_4"],
  [37, "IQ4_NL_4_8"],
  [38, "IQ4_NL_8_8"],
]);

const STRING = 8, ARRAY = 9;

/** The bytes of the kinds of values, and how they are read. */
const KINDS: ReadonlyMap<
  number,
  readonly [bytes: number, read: (view: DataView, at: number) => Scalar]
> = new Map([
  [0, [1, (view, at) => view.getUint8(at)]],
  [1, [1, (view, at) => view.getInt8(at)]],
  [2, [2, (view, at) => view.getUint16(at, true)]],
  [3, [2, (view, at) => view.getInt16(at, true)]],
  [4, [4, (view, at) => view.getUint32(at, true)]],
  [5, [4, (view, at) => view.getInt32(at, true)]],
  [6, [4, (view, at) => view.getFloat32(at, true)]],
  [7, [1, (view, at) => view.getUint8(at) !== 0]],
  [10, [8, (view, at) => Number(view.getBigUint64(at, true))]],
  [11, [8, (view, at) => Number(view.getBigInt64(at, true))]],
  [12, [8, (view, at) => view.getFloat64(at, true)]],
]);
type Scalar = number | boolean;

/** Bytes of the first read, which later ones exceed fourfold up to the most. */
const FIRST_READ = 1 << 18, MOST_READ = 1 << 22;
/** The most bytes of a header. That of Qwen3, with its tokenizer, has 6 MB. */
const MOST_HEADER = 2 ** 28;
/** The fewest bytes of a key with its value, and of a tensor's description. */
const LEAST_KEY = 13, LEAST_TENSOR = 24;
const MOST_NAME = 1000;
const MOST_DIMENSIONS = 4;
const DEFAULT_ALIGNMENT = 32, MOST_ALIGNMENT = 2 ** 20;

type Refuse = (problem: string) => never;

/**
 * Reads and checks the header of a GGUF file, version 2 or 3; no weights are read.
 *
 * @throws {Error} if the file is truncated or malformed, a type is unknown, or the
 * tensors do not cover the data exactly once
 */
export async function readGgufHeader<Source extends ByteSource>(
  source: Source,
): Promise<GgufHeader<Source>> {
  const refuse: Refuse = (problem) => {
    throw new Error(`Cannot read ${source.name}: ${problem}`);
  };
  await checkMagic(source, refuse);
  const cursor = new Cursor(source, refuse);
  await cursor.need(24, "its header");
  cursor.skip(4);
  const version = cursor.u32();
  if (version !== 2 && version !== 3) {
    refuse(
      version !== 0 && version % 65536 === 0
        ? "it is big-endian, must be little-endian"
        : `it is GGUF version ${version}, must be 2 or 3`,
    );
  }
  const tensorCount = cursor.count(), keyCount = cursor.count();
  for (
    const [what, count, least] of [
      ["tensors", tensorCount, LEAST_TENSOR],
      ["keys", keyCount, LEAST_KEY],
    ] as const
  ) {
    if (count * least > Math.min(source.size, MOST_HEADER)) {
      refuse(
        `its header announces ${count} ${what}, too many for ${source.size} bytes`,
      );
    }
  }
  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < keyCount; i++) {
    const key = await cursor.string(`key ${i + 1} of ${keyCount}`, MOST_NAME);
    if (metadata.has(key)) refuse(`it has the key ${quoted(key)} twice`);
    metadata.set(key, await readValue(cursor, quoted(key), refuse));
  }
  const alignment = metadata.get("general.alignment") ?? DEFAULT_ALIGNMENT;
  const usable = typeof alignment === "number" && alignment >= 1 &&
    alignment <= MOST_ALIGNMENT && Number.isInteger(Math.log2(alignment));
  if (!usable) {
    return refuse(
      `general.alignment is ${
        quoted(`${alignment}`)
      }, must be a power of two up to ${MOST_ALIGNMENT}`,
    );
  }
  const tensors = new Map<string, SafetensorsEntry<Source>>();
  for (let i = 0; i < tensorCount; i++) {
    const what = `tensor ${i + 1} of ${tensorCount}`;
    const entry = await readTensor(cursor, source, what, refuse);
    const { name } = entry;
    if (tensors.has(name)) refuse(`it has tensor ${quoted(name)} twice`);
    tensors.set(name, entry);
  }
  const data = padded(cursor.position, alignment);
  for (const entry of tensors.values()) {
    entry.begin += data;
    entry.end += data;
  }
  checkLayout(tensors, data, alignment, source.size, refuse);
  return { metadata, tensors };
}

const padded = (bytes: number, alignment: number) =>
  Math.ceil(bytes / alignment) * alignment;

/** @throws {Error} if the file is something else; the message says what. */
async function checkMagic(source: ByteSource, refuse: Refuse): Promise<void> {
  const head = new Uint8Array(Math.min(source.size, 400));
  await source.read(0, head);
  if (isGguf(head)) return;
  if (head.length === 0) refuse("it is empty, must be a GGUF file");
  const kind = weightsKind(head);
  if (kind !== undefined) refuse(`it is ${kind}, must be a GGUF file`);
  const magic = [...head.subarray(0, 4)]
    .map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
  refuse(`it begins with the bytes ${magic}, must begin with GGUF`);
}

/** Reads a file from its beginning in large pieces. */
class Cursor {
  #bytes = new Uint8Array();
  #view = new DataView(this.#bytes.buffer);
  #at = 0;
  /** Where `#bytes` begin in the file. */
  #begin = 0;
  #next = FIRST_READ;
  readonly #units = new Uint16Array(256);

  constructor(readonly source: ByteSource, readonly refuse: Refuse) {}

  /** Bytes of the file before the next one. */
  get position(): number {
    return this.#begin + this.#at;
  }

  /** Whether the next bytes have been read; most calls need no `await`. */
  has(count: number): boolean {
    return count <= this.#bytes.length - this.#at;
  }

  /** Reads on until the next `count` bytes are there. */
  async need(count: number, what: string): Promise<void> {
    if (this.has(count)) return;
    const { source, position } = this;
    if (count > source.size - position) {
      this.refuse(
        `${what} needs ${count} bytes from byte ${position} on, but the file has ${source.size}: it is truncated or damaged`,
      );
    }
    if (count > MOST_HEADER - position) {
      this.refuse(
        `its header has more than ${MOST_HEADER} bytes, which are not allowed`,
      );
    }
    const bytes = new Uint8Array(
      Math.min(Math.max(count, this.#next), source.size - position),
    );
    const rest = this.#bytes.subarray(this.#at);
    bytes.set(rest);
    await source.read(position + rest.length, bytes.subarray(rest.length));
    [this.#begin, this.#at] = [position, 0];
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer);
    this.#next = Math.min(4 * this.#next, MOST_READ);
  }

  skip(count: number): void {
    this.#at += count;
  }

  u32(): number {
    this.#at += 4;
    return this.#view.getUint32(this.#at - 4, true);
  }

  /** A 64-bit count or offset, rounded beyond 2⁵³. */
  count(): number {
    this.#at += 8;
    return Number(this.#view.getBigUint64(this.#at - 8, true));
  }

  scalar(bytes: number, read: (view: DataView, at: number) => Scalar): Scalar {
    this.#at += bytes;
    return read(this.#view, this.#at - bytes);
  }

  async string(what: string, most = MOST_HEADER): Promise<string> {
    if (!this.has(8)) await this.need(8, what);
    const length = this.count();
    if (length > most) {
      this.refuse(`${what} has ${length} bytes, must have at most ${most}`);
    }
    if (!this.has(length)) await this.need(length, what);
    return this.#text(length);
  }

  /** A string if all of it has been read; else undefined, and nothing is consumed. */
  stringHere(): string | undefined {
    if (!this.has(8)) return undefined;
    const length = this.count();
    if (this.has(length)) return this.#text(length);
    this.#at -= 8;
  }

  /**
   * Decodes UTF-8. Tokens are short and in characters below U+0800, which is ten times
   * as fast here as with a TextDecoder.
   */
  #text(length: number): string {
    const begin = this.#at, end = begin + length;
    const bytes = this.#bytes, units = this.#units;
    this.#at = end;
    let count = 0, at = length <= units.length ? begin : Infinity;
    while (at < end) {
      const byte = bytes[at++];
      if (byte < 0x80) units[count++] = byte;
      else {
        const next = at < end ? bytes[at++] : 0;
        const isPair = byte >= 0xc2 && byte < 0xe0 && (next & 0xc0) === 0x80;
        if (!isPair) at = Infinity;
        units[count++] = (byte & 0x1f) << 6 | next & 0x3f;
      }
    }
    if (at === end) {
      return String.fromCharCode.apply(
        null,
        units.subarray(0, count) as unknown as number[],
      );
    }
    return utf8.decode(bytes.subarray(begin, end));
  }
}

const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });

async function readValue(
  cursor: Cursor,
  what: string,
  refuse: Refuse,
): Promise<GgufValue> {
  await cursor.need(4, what);
  const kind = cursor.u32();
  if (kind === STRING) return await cursor.string(what);
  if (kind === ARRAY) return await readList(cursor, what, refuse);
  const known = KINDS.get(kind);
  if (known === undefined) {
    return refuse(`${what} has a value of the unknown kind ${kind}`);
  }
  const [bytes, read] = known;
  await cursor.need(bytes, what);
  return cursor.scalar(bytes, read);
}

async function readList(
  cursor: Cursor,
  what: string,
  refuse: Refuse,
): Promise<GgufList> {
  await cursor.need(12, what);
  const kind = cursor.u32(), count = cursor.count();
  const known = KINDS.get(kind);
  if (kind !== STRING && known === undefined) {
    return refuse(
      kind === ARRAY
        ? `${what} is a list of lists, which are not allowed`
        : `${what} is a list of the unknown kind ${kind}`,
    );
  }
  const least = known ? known[0] : 8;
  const room = Math.min(cursor.source.size, MOST_HEADER) - cursor.position;
  if (count * least > room) {
    return refuse(
      `${what} is a list of ${count} values, too many for the ${
        cursor.source.size - cursor.position
      } bytes that follow: it is truncated or damaged`,
    );
  }
  const list: (number | boolean | string)[] = [];
  if (known) {
    const [bytes, read] = known;
    for (let i = 0; i < count; i++) {
      if (!cursor.has(bytes)) await cursor.need(bytes, what);
      list.push(cursor.scalar(bytes, read));
    }
    return list;
  }
  for (let i = 0; i < count; i++) {
    list.push(cursor.stringHere() ?? await cursor.string(what));
  }
  return list;
}

/** Reads a tensor's description; its offsets are relative to the data. */
async function readTensor<Source extends ByteSource>(
  cursor: Cursor,
  source: Source,
  what: string,
  refuse: Refuse,
): Promise<SafetensorsEntry<Source>> {
  const name = await cursor.string(what, MOST_NAME);
  const tensor = `tensor ${quoted(name)}`;
  await cursor.need(4, tensor);
  const dimensions = cursor.u32();
  if (dimensions < 1 || dimensions > MOST_DIMENSIONS) {
    refuse(
      `${tensor} has ${dimensions} dimensions, must have 1 to ${MOST_DIMENSIONS}`,
    );
  }
  await cursor.need(8 * dimensions + 12, tensor);
  const shape = Array.from({ length: dimensions }, () => cursor.count());
  const code = cursor.u32(), begin = cursor.count();
  shape.reverse();
  const isSize = (size: number) => Number.isSafeInteger(size) && size >= 1;
  if (!shape.every(isSize) || !isSize(elements(shape))) {
    refuse(`${tensor} has the impossible shape [${shape.join(", ")}]`);
  }
  const type = TYPES.get(code);
  if (type === undefined) {
    const removed = REMOVED.get(code);
    return refuse(
      `${tensor} has type ${code}, ${
        removed === undefined
          ? "which is not known"
          : `${removed}, which llama.cpp has removed: convert the model again`
      }`,
    );
  }
  const [dtype, block, bytes] = type, row = shape.at(-1)!;
  if (row % block !== 0) {
    refuse(
      `${tensor} has rows of ${row}, must be whole blocks of ${block} for its type ${dtype}`,
    );
  }
  const end = begin + elements(shape) / block * bytes;
  if (!Number.isSafeInteger(end)) {
    refuse(`${tensor} begins at byte ${begin} of the data, which is too far`);
  }
  return { source, name, dtype, shape, begin, end };
}

/** Rejects overlaps and gaps, which the file format forbids. */
function checkLayout(
  tensors: ReadonlyMap<string, SafetensorsEntry>,
  data: number,
  alignment: number,
  size: number,
  refuse: Refuse,
): void {
  const inOrder = [...tensors.values()].sort((a, b) =>
    a.begin - b.begin || a.end - b.end
  );
  let due = data, before = "the header";
  for (const { name, begin, end } of inOrder) {
    if (begin !== due) {
      refuse(
        `tensor ${
          quoted(name)
        } begins at byte ${begin}, must begin at ${due}, after ${before}`,
      );
    }
    if (end > size) {
      refuse(
        `tensor ${
          quoted(name)
        } ends at byte ${end}, but the file has ${size} bytes: it is truncated`,
      );
    }
    due = padded(end, alignment);
    before = quoted(name);
  }
}
