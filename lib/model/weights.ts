/**
 * Loads a checkpoint's tensors as the weights of the forward pass, following the
 * family's weight table. Names and shapes are checked; bytes go from the file to the
 * device in pieces, so that the host never holds a second copy.
 *
 * @module
 */
import type { Checkpoint, TensorInfo } from "../checkpoint/checkpoint.ts";
import type { LoadProgress } from "../checkpoint/sources.ts";
import { Rests } from "../dispatch/rests.ts";
import { type Format, storedRowBytes } from "../formats/format.ts";
import {
  allocateMatrix,
  type Matrix,
  type Piece,
  piecesOf,
  writePiece,
} from "../formats/matrix.ts";
import { familyOf } from "./families.ts";
import {
  listWeights,
  mapWeights,
  type Weights,
  type WeightSpec,
} from "./family.ts";
import { selectTensors } from "./tensors.ts";
import { type SyntheticRule, syntheticRule } from "../checkpoint/synthetic.ts";

/** The device memory that weights are loaded into. */
export interface WeightStore<T> {
  /**
   * The largest buffer that a kernel can bind, in bytes; undefined if there is no
   * limit.
   */
  readonly most?: number;
  /** Allocates a buffer of zeros; `bytes` is a multiple of 4. */
  allocate(bytes: number, label: string): T;
  /** Writes to `buffer`, from byte `begin`. `bytes` may be reused on return. */
  write(buffer: T, begin: number, bytes: Uint8Array<ArrayBuffer>): void;
  /** Takes rows as they are stored. Without it, they are rearranged and written. */
  readonly upload?: Upload<T>;
  /**
   * Computes rows `row` to `row + rows` from a rule, on the device; false if it cannot.
   *
   * @throws the reason of `signal` if it is aborted.
   */
  synthesize?(
    matrix: Matrix<T>,
    row: number,
    rows: number,
    rule: SyntheticRule,
    signal?: AbortSignal,
  ): Promise<boolean>;
  /** Whether {@linkcode quantize} can do this; rows have whole blocks. */
  quantizes?(from: Format, to: Format): boolean;
  /**
   * Writes rows that are stored in the format `from`, quantised on the device; `stored` may
   * be reused on return.
   *
   * @param label of the tensor, for the error of `end` if a value is not finite
   */
  quantize?(
    rows: StoredRows<T>,
    from: Format,
    stored: Uint8Array<ArrayBuffer>,
    label: string,
  ): Promise<void>;
  /** Waits for all writes to finish. */
  settle(): Promise<void>;
  /**
   * Checks what was quantised, after the last write.
   *
   * @throws {Error} if a value was not finite
   */
  end?(): Promise<void>;
}

/** Takes rows as they are stored. */
export interface Upload<T> {
  /** About how many bytes to read at a time. */
  readonly piece: number;
  /**
   * Memory that `bytes` stored bytes can be read into, until `put`. `left` is how many have
   * yet to be loaded, these included.
   */
  room(bytes: number, left: number): Promise<Uint8Array<ArrayBuffer>>;
  /** Takes the rows that were read into the memory that `room` returned last. */
  put(rows: readonly StoredRows<T>[], bytes: number): void;
}

/** Rows that were read into memory from byte `begin` on, and where they belong. */
export interface StoredRows<T> {
  readonly piece: Piece<T>;
  /** The columns of the matrix. */
  readonly k: number;
  readonly begin: number;
}

/** Options of {@linkcode loadWeights}. */
export interface LoadOptions {
  onProgress?: (progress: LoadProgress) => void;
  signal?: AbortSignal;
}

const PIECE = 16 << 20;

/**
 * Pieces begin at multiples of this many rows, so that writes to planes are
 * word-aligned.
 */
const PIECE_ROWS = 8;

/**
 * Loads all weights of a model, each tensor in its stored format.
 *
 * @throws {Error} if tensors are missing or of the wrong shape; the message
 * names them.
 */
export async function loadWeights<T>(
  checkpoint: Checkpoint,
  store: WeightStore<T>,
  options: LoadOptions = {},
): Promise<Weights<Matrix<T>>> {
  const { config } = checkpoint;
  const table = familyOf(config).weights(config);
  const names = selectTensors(checkpoint.name, config, checkpoint.tensors)
    .names.keys();
  const loader = new Loader(checkpoint, store, options, [...names]);
  const loaded = new Map<WeightSpec, Matrix<T>>();
  try {
    for (const spec of listWeights(table)) {
      loaded.set(spec, await loader.load(spec));
    }
  } finally {
    checkpoint.pause?.();
  }
  await store.settle();
  await store.end?.();
  return mapWeights(table, (spec) => loaded.get(spec)!);
}

/** Reads tensors into a device's memory and reports progress. */
class Loader<T> {
  readonly #total: number;
  #done = 0;
  #staging = new Uint8Array();
  readonly #rests = new Rests();

  constructor(
    readonly checkpoint: Checkpoint,
    readonly store: WeightStore<T>,
    readonly options: LoadOptions,
    names: readonly string[],
  ) {
    this.#total = names.reduce(
      (sum, name) => sum + checkpoint.tensors.get(name)!.byteLength,
      0,
    );
  }

  /** Loads an entry's tensors, stacked into one matrix. */
  async load(spec: WeightSpec): Promise<Matrix<T>> {
    const { checkpoint, store } = this;
    const { label, kind, tensors, split, together, exact } = spec;
    const infos = tensors.map(({ name }) => checkpoint.tensors.get(name)!);
    const stack = infos.map(({ shape, format }) => ({
      rows: shape.length > 1 ? shape[0] : 1, // a norm is a matrix of one row
      format,
    }));
    const k = infos[0].shape.at(-1)!;
    const limits = {
      ...{ pairs: split === "pairs", most: store.most, together, exact },
    };
    const matrix = allocateMatrix(
      label,
      stack,
      k,
      limits,
      (bytes, label) => store.allocate(bytes, label),
    );
    let row = 0;
    for (const [i, info] of infos.entries()) {
      const { rows } = stack[i], { synthetic } = checkpoint;
      const rule = synthetic &&
        syntheticRule(info.name, kind, info.shape, synthetic.seed);
      const { signal } = this.options;
      if (
        rule && await store.synthesize?.(matrix, row, rows, rule, signal)
      ) {
        this.#report(info, info.byteLength);
      } else if (!await this.#quantize(info, matrix, row, rows)) {
        await this.#copy(info, matrix, row, rows);
      }
      await this.#rests.rest(signal);
      row += rows;
    }
    return matrix;
  }

  /** Copies a tensor into rows `row` to `row + rows` of a matrix. */
  async #copy(info: TensorInfo, matrix: Matrix<T>, row: number, rows: number) {
    const { checkpoint, store, options: { signal } } = this;
    const rowBytes = storedRowBytes(info.format, matrix.k);
    const { piece = PIECE } = store.upload ?? {};
    const fit = Math.floor(piece / rowBytes / PIECE_ROWS) * PIECE_ROWS;
    const step = Math.max(PIECE_ROWS, fit);
    for (let begin = 0; begin < rows; begin += step) {
      signal?.throwIfAborted();
      const count = Math.min(step, rows - begin), bytes = count * rowBytes;
      const left = this.#total - this.#done;
      const stored = await store.upload?.room(bytes, left) ?? this.#room(bytes);
      await checkpoint.read(info.name, begin * rowBytes, stored);
      const all = piecesOf(matrix, row + begin, count).map((piece) => ({
        piece,
        k: matrix.k,
        begin: (piece.row - row - begin) * rowBytes,
      }));
      if (store.upload) store.upload.put(all, bytes);
      else for (const one of all) this.#write(one, stored);
      this.#report(info, bytes);
      await this.#rests.rest(signal);
    }
  }

  /** Lets the device quantise a tensor; false if it need not or cannot. */
  async #quantize(
    { name, format: to }: TensorInfo,
    matrix: Matrix<T>,
    row: number,
    rows: number,
  ): Promise<boolean> {
    const { store, options: { signal } } = this, { k } = matrix;
    const { original } = this.checkpoint, info = original?.tensors.get(name);
    const from = info?.format;
    if (!from || from === to || !store.quantizes?.(from, to)) return false;
    const rowBytes = storedRowBytes(from, k);
    const { piece = PIECE } = store.upload ?? {};
    const fit = Math.floor(piece / rowBytes / PIECE_ROWS) * PIECE_ROWS;
    const step = Math.max(PIECE_ROWS, fit);
    for (let begin = 0; begin < rows; begin += step) {
      signal?.throwIfAborted();
      const count = Math.min(step, rows - begin);
      const stored = this.#room(count * rowBytes);
      await original!.read(name, begin * rowBytes, stored);
      for (const piece of piecesOf(matrix, row + begin, count)) {
        const at = (piece.row - row - begin) * rowBytes;
        const read = stored.subarray(at, at + piece.rows * rowBytes);
        await store.quantize!({ piece, k, begin: at }, from, read, name);
      }
      this.#report(info, count * storedRowBytes(to, k));
      await this.#rests.rest(signal);
    }
    return true;
  }

  #write(
    { piece, k, begin }: StoredRows<T>,
    stored: Uint8Array<ArrayBuffer>,
  ): void {
    const end = begin + piece.rows * storedRowBytes(piece.part.format, k);
    writePiece(
      piece,
      k,
      stored.subarray(begin, end),
      (plane, at, bytes) => this.store.write(plane, at, bytes),
    );
  }

  /** Returns memory of this loader, which grows if rows are longer than a piece. */
  #room(bytes: number): Uint8Array<ArrayBuffer> {
    if (bytes > this.#staging.length) {
      this.#staging = new Uint8Array(Math.max(bytes, PIECE));
    }
    return this.#staging.subarray(0, bytes);
  }

  #report({ name: file }: TensorInfo, bytes: number): void {
    this.#done += bytes;
    const progress = { done: this.#done, total: this.#total };
    this.options.onProgress?.({ stage: "weights", file, ...progress });
  }
}
