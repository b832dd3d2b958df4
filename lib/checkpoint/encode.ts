/**
 * Changes the format of stored weights, on one thread or in several.
 *
 * @module
 */
import { errorText } from "../errors.ts";
import type { Format } from "../formats/format.ts";
import { formatNamed } from "../formats/mod.ts";
import { quantizerOf } from "../formats/quantize.ts";
import { host, projectUrl, workerRefusal } from "../host.ts";

/** Sent to a worker: stored values of one element a block, and the formats' names. */
export interface EncodeJob {
  id: number;
  from: string;
  to: string;
  stored: Uint8Array<ArrayBuffer>;
}

/** Sent back by a worker. */
export interface EncodeReport {
  id: number;
  encoded?: Uint8Array<ArrayBuffer>;
  error?: string;
}

/** Values that are encoded at a time: f32s that stay in a core's cache. */
const AT_A_TIME = 1 << 14;
/** Values that are worth a worker's turn. */
const WORTH = 1 << 18;
const MOST_WORKERS = 32;

const WORKER = projectUrl(
  import.meta.url,
  "lib/checkpoint/encode",
  "lib/checkpoint/encode_worker",
);

/**
 * Encodes stored values in another format, whole blocks of it.
 *
 * @param stored of a format of one element a block, word-aligned
 * @throws {Error} if a value is infinite or no number
 */
export function encode(
  from: Format,
  to: Format,
  stored: Uint8Array,
): Uint8Array<ArrayBuffer> {
  const count = stored.length / from.bytes, quantize = quantizerOf(to);
  const encoded = new Uint8Array(count / to.elements * to.bytes);
  const values = new Float32Array(Math.min(count, AT_A_TIME));
  for (let done = 0; done < count; done += values.length) {
    const some = values.subarray(0, Math.min(values.length, count - done));
    const begin = done * from.bytes;
    const planes = [stored.subarray(begin, begin + some.length * from.bytes)];
    from.unpack(planes, 0, some.length, some);
    requireFinite(some);
    quantize(some, encoded.subarray(done / to.elements * to.bytes));
  }
  return encoded;
}

/** @throws {Error} if a value is infinite or no number */
function requireFinite(values: Float32Array): void {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i] * 0;
  if (sum === 0) return;
  throw new Error(
    `it has the value ${
      values.find((value) => !Number.isFinite(value))
    }, must have finite ones`,
  );
}

/** Encodes in as many threads as there are cores; disposing it ends them. */
export class Encoder implements Disposable {
  #workers: Worker[] = [];
  readonly #waiting = new Map<number, PromiseWithResolvers<Uint8Array>>();
  #next = 0;
  /** Why there are no workers, once that was found out. */
  refusal?: string;

  constructor(readonly threads: number = navigator.hardwareConcurrency) {}

  /** Threads beside the caller's that run now. */
  get workers(): number {
    return this.#workers.length;
  }

  /** As {@linkcode encode}, into `into`. */
  async encode(
    from: Format,
    to: Format,
    stored: Uint8Array<ArrayBuffer>,
    into: Uint8Array,
  ): Promise<void> {
    const blocks = into.length / to.bytes;
    const workers = this.#start(blocks * to.elements);
    const share = Math.ceil(blocks / Math.max(1, workers.length));
    if (workers.length === 0) return into.set(encode(from, to, stored));
    const reports = workers.map(async (worker, i) => {
      const first = i * share, count = Math.min(share, blocks - first);
      if (count <= 0) return;
      const begin = first * to.elements * from.bytes;
      const part = stored.slice(
        begin,
        begin + count * to.elements * from.bytes,
      );
      const id = this.#next++, waiting = Promise.withResolvers<Uint8Array>();
      this.#waiting.set(id, waiting);
      const job: EncodeJob = { id, from: from.name, to: to.name, stored: part };
      worker.postMessage(job, [part.buffer]);
      into.set(await waiting.promise, first * to.bytes);
    });
    await Promise.all(reports);
  }

  /** Workers for so many values; none if they are few or cannot start. */
  #start(values: number): Worker[] {
    const most = Math.min(this.threads, MOST_WORKERS);
    const useful = Math.min(most, Math.floor(values / WORTH));
    if (useful < 2 || this.refusal !== undefined) return [];
    this.refusal = host.base === undefined
      ? workerRefusal(WORKER)
      : "a page encodes in its own thread";
    if (this.refusal !== undefined) return [];
    while (this.#workers.length < useful) {
      const worker = new Worker(WORKER, { type: "module" });
      worker.addEventListener("message", ({ data }) => this.#take(data));
      worker.addEventListener("error", (event) => {
        event.preventDefault();
        this.#fail(new Error(`a thread failed: ${event.message}`));
      });
      this.#workers.push(worker);
    }
    return this.#workers.slice(0, useful);
  }

  #take({ id, encoded, error }: EncodeReport): void {
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (encoded) waiting?.resolve(encoded);
    else waiting?.reject(new Error(error));
  }

  #fail(error: Error): void {
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }

  [Symbol.dispose](): void {
    for (const worker of this.#workers) worker.terminate();
    this.#workers = [];
    this.#fail(new Error("it was closed"));
  }
}

/** Does a job; what a worker runs. */
export function report({ id, from, to, stored }: EncodeJob): EncodeReport {
  try {
    const formats = [formatNamed(from), formatNamed(to)] as const;
    return { id, encoded: encode(...formats, stored) };
  } catch (error) {
    return { id, error: errorText(error) };
  }
}
