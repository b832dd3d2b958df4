/**
 * Uploads rows of weights as they are stored. Usually, blocks are rearranged on the device.
 *
 * @module
 */
import { repack, repackTable } from "../../kernels/repack.ts";
import { chooseRepacking } from "../dispatch/loading.ts";
import { type Format, storedRowBytes } from "../formats/format.ts";
import { type MatrixPart, type Piece, writePiece } from "../formats/matrix.ts";
import type { StoredRows, Upload } from "../model/weights.ts";
import type { Gpu } from "../webgpu/device.ts";
import { Plan } from "../webgpu/plan.ts";
import { Tensor } from "../webgpu/tensor.ts";

/**
 * Bytes that are read at a time, few enough to be in a cache when they are copied to the
 * device; and bytes that are submitted at a time. Two such batches are on their way:
 * beyond about 32 MiB, `writeBuffer` waits for new memory from the driver, which took ten
 * times as long or more (bench/log.md, "Weights are rearranged on the device").
 */
const PIECE = 1 << 22, BATCH = 1 << 23;

const write = (to: Tensor, begin: number, bytes: Uint8Array<ArrayBuffer>) =>
  to.write(begin, bytes);

/** Rows from row `at` of a part, in bytes `begin` to `end` of a batch. */
interface Blocks {
  readonly part: MatrixPart<Tensor>;
  readonly k: number;
  readonly at: number;
  rows: number;
  readonly begin: number;
  end: number;
}

/** Options of {@linkcode Staging}. */
interface StagingOptions {
  /** Whether blocks are rearranged on the device. */
  repacks?: boolean;
  piece?: number;
  batch?: number;
}

/**
 * Reads a piece while the device copies the last ones. In Deno, mapped buffers are no
 * faster: `getMappedRange` and `unmap` copy as well, into new memory.
 */
export class Staging implements Upload<Tensor>, Disposable {
  readonly piece: number;
  readonly #repacks: boolean;
  readonly #batch: number;
  #memory = new Uint8Array();
  /** Blocks of this batch, as they are stored. */
  #stored?: Tensor;
  /** The batch's bytes; other rows count as if they were there too. */
  #used = 0;
  #blocks: Blocks[] = [];
  readonly #fields = new Map<Format, Tensor[]>();

  constructor(
    readonly gpu: Gpu,
    {
      piece = PIECE,
      batch = BATCH,
      repacks = chooseRepacking(gpu).onDevice,
    }: StagingOptions = {},
  ) {
    const most = gpu.limits.maxStorageBufferBindingSize;
    this.#repacks = repacks;
    this.piece = Math.min(piece, most);
    this.#batch = Math.min(batch, most);
  }

  async room(bytes: number, left: number): Promise<Uint8Array<ArrayBuffer>> {
    const reserved = this.#stored?.bytes ?? 0;
    const most = this.#repacks ? reserved : this.#batch;
    if (this.#used > 0 && this.#used + bytes > most) await this.flush();
    if (this.#repacks && bytes > reserved) {
      this.#reserve(Math.max(bytes, Math.min(left, this.#batch)));
    }
    if (bytes > this.#memory.length) {
      const size = Math.max(bytes, Math.min(left, this.piece));
      this.#memory = new Uint8Array(size);
    }
    return this.#memory.subarray(0, bytes);
  }

  /** Makes room for a batch on the device. */
  #reserve(bytes: number): void {
    this.#stored?.[Symbol.dispose]();
    const words = Math.ceil(bytes / 4), label = "stored blocks";
    this.#stored = Tensor.create(this.gpu, "u32", [words], undefined, label);
  }

  put(rows: readonly StoredRows<Tensor>[], bytes: number): void {
    const read = this.#memory.subarray(0, bytes);
    const repacks = (format: Format) => this.#repacks && format.gathers;
    if (rows.some(({ piece }) => repacks(piece.part.format))) {
      this.#stored!.write(this.#used, read);
    }
    for (const { piece, k, begin } of rows) {
      const { part: { format }, rows } = piece;
      const end = begin + rows * storedRowBytes(format, k);
      if (repacks(format)) {
        this.#join(piece, k, this.#used + begin, this.#used + end);
      } else writePiece(piece, k, read.subarray(begin, end), write);
    }
    this.#used += Math.ceil(bytes / 4) * 4;
  }

  /** Notes that a piece is in bytes `begin` to `end`, where the last may go on. */
  #join(
    { part, at, rows }: Piece<Tensor>,
    k: number,
    begin: number,
    end: number,
  ): void {
    const last = this.#blocks.at(-1);
    const goesOn = last?.part === part && last.end === begin &&
      last.at + last.rows === at;
    if (goesOn) {
      last.rows += rows;
      last.end = end;
    } else this.#blocks.push({ part, k, at, rows, begin, end });
  }

  /** Records how blocks are rearranged. */
  #repack(plan: Plan, { part, k, at, rows, begin, end }: Blocks): void {
    const { format, planes } = part, stored = this.#stored!;
    const fields = this.#fieldsOf(format);
    format.planes(k).forEach(({ rowBytes }, i) => {
      const { bytes, words } = format.gathers![i], plane = planes[i];
      plan.add(repack, { stored, fields: fields[i], plane }, {
        uniforms: {
          begin,
          end,
          bytes,
          period: words.length,
          to: at * rowBytes / 4,
          words: Math.ceil(rows * rowBytes / 4),
        },
      });
    });
  }

  #fieldsOf(format: Format): Tensor[] {
    let fields = this.#fields.get(format);
    if (!fields) {
      fields = format.gathers!.map((gather) => {
        const table = repackTable(gather);
        return Tensor.create(this.gpu, "u32", [table.length], table, "fields");
      });
      this.#fields.set(format, fields);
    }
    return fields;
  }

  /** Submits what was put, once the batch before is done. */
  async flush(): Promise<void> {
    const { device, readsAtOnce } = this.gpu;
    // In Deno the call itself waits, and its promise for another 10 ms.
    const done = device.queue.onSubmittedWorkDone();
    // Deno panics if the device is collected before. Errors are thrown by check().
    const keep = () => device;
    done.then(keep, keep);
    if (!readsAtOnce) await done;
    this.gpu.check();
    using plan = new Plan(this.gpu);
    for (const blocks of this.#blocks) this.#repack(plan, blocks);
    plan.run();
    device.queue.submit([]); // if there was nothing to rearrange
    this.#blocks = [];
    this.#used = 0;
  }

  [Symbol.dispose](): void {
    this.#stored?.[Symbol.dispose]();
    for (const fields of this.#fields.values()) {
      for (const one of fields) one[Symbol.dispose]();
    }
  }
}
