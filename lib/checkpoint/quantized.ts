/**
 * A checkpoint whose tensors are encoded in other formats as they are read, so that
 * loading and writing files need not know that they are stored otherwise.
 *
 * @module
 */
import type { Checkpoint, TensorInfo } from "./checkpoint.ts";
import { Encoder } from "./encode.ts";
import { elements } from "../dtype.ts";
import { errorText } from "../errors.ts";
import type { Format } from "../formats/format.ts";
import { checkRange } from "./sources.ts";

/** Values that are read and encoded at a time. */
const AT_A_TIME = 1 << 24;

/**
 * Wraps a checkpoint.
 *
 * @param formats of the tensors that change, by name; their stored format has one element
 * a block. Rows are whole blocks.
 * @param onNotice is told if encoding has to do with one thread
 */
export function quantized(
  source: Checkpoint,
  formats: ReadonlyMap<string, Format>,
  onNotice?: (notice: string) => void,
): Checkpoint {
  const tensors = new Map<string, TensorInfo>();
  for (const [name, info] of source.tensors) {
    const format = formats.get(name);
    if (format === undefined) tensors.set(name, info);
    else {
      const blocks = elements(info.shape) / format.elements;
      tensors.set(name, { ...info, format, byteLength: blocks * format.bytes });
    }
  }
  const reader = new EncodingReader(source, formats, onNotice);
  return {
    ...source,
    tensors,
    original: source,
    // Its weights are not what the rule says any more.
    synthetic: undefined,
    pause: () => reader[Symbol.dispose](),
    async read(name, begin, into) {
      if (!formats.has(name)) return await source.read(name, begin, into);
      checkRange(name, tensors.get(name)!.byteLength, begin, into.length);
      await reader.read(name, begin, into);
    },
    async [Symbol.asyncDispose]() {
      reader[Symbol.dispose]();
      await source[Symbol.asyncDispose]();
    },
  };
}

/** Reads and encodes; disposing it ends its threads, until they are needed again. */
class EncodingReader implements Disposable {
  readonly #encoder = new Encoder();
  #told = false;

  constructor(
    readonly source: Checkpoint,
    readonly formats: ReadonlyMap<string, Format>,
    readonly onNotice?: (notice: string) => void,
  ) {}

  async read(name: string, begin: number, into: Uint8Array): Promise<void> {
    const { source, formats } = this;
    const from = source.tensors.get(name)!.format, to = formats.get(name)!;
    const end = begin + into.length, { bytes } = to;
    const step = Math.max(1, Math.floor(AT_A_TIME / to.elements));
    const last = Math.ceil(end / bytes);
    for (let first = Math.floor(begin / bytes); first < last; first += step) {
      const count = Math.min(step, last - first);
      const perBlock = to.elements * from.bytes;
      const stored = new Uint8Array(count * perBlock);
      await source.read(name, first * perBlock, stored);
      // The first and the last block may be wanted in part only.
      const at = first * bytes - begin;
      const isInside = at >= 0 && at + count * bytes <= into.length;
      const encoded = isInside
        ? into.subarray(at, at + count * bytes)
        : new Uint8Array(count * bytes);
      try {
        await this.#encoder.encode(from, to, stored, encoded);
      } catch (error) {
        throw new Error(
          `Cannot quantise ${name} of ${source.name}: ${errorText(error)}`,
        );
      }
      this.#tell();
      if (isInside) continue;
      const skip = Math.max(0, -at);
      into.set(encoded.subarray(skip, end - begin - at), at + skip);
    }
  }

  #tell(): void {
    const { refusal } = this.#encoder;
    if (refusal === undefined || this.#told) return;
    this.#told = true;
    this.onNotice?.(`Quantising on one thread: ${refusal}`);
  }

  [Symbol.dispose](): void {
    this.#encoder[Symbol.dispose]();
  }
}
