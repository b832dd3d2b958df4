/**
 * Threads that share the chunks of one job at a time. The caller works too and
 * returns when all chunks are done; it never waits for a thread to start, so a
 * thread that is late or cannot start costs speed, not correctness.
 *
 * @module
 */
import { projectUrl, workerRefusal } from "../host.ts";
import {
  decodeJob,
  encodeJob,
  type Job,
  JOB_SIZE,
  type RowJob,
  runChunk,
} from "./jobs.ts";
import type { BoundMemory } from "./row_jobs.ts";
import type { WasmKernels } from "./wasm_kernels.ts";

/** A message to a worker, with all memories so far. A later message replaces it. */
export interface Message {
  control: Int32Array;
  module: WebAssembly.Module;
  memories: WebAssembly.Memory[];
  thread: number;
  mail: number;
}

// Words of the shared control block. All changes are atomic.
/** The next chunk: the job's number in the upper bits, the index (or CLOSED) in the lower. */
const CLAIM = 0;
/** Chunks that are finished. */
const DONE = 1;
/** Changes when there is work; idle workers wait for it to change. */
const BELL = 2;
/** Changes when a message is posted or the pool is disposed. */
const MAIL = 3;
/** Nonzero if a chunk threw. */
const FAILED = 4;
const CHUNKS = 5;
const MEMORY = 6;
/** How many memories there are: a job may use several. */
const MEMORIES = 7;
const JOB = 8;
/** Per thread: whether a worker is running or starting. */
const ALIVE = JOB + JOB_SIZE;

const INDEX_BITS = 12;
const CLOSED = (1 << INDEX_BITS) - 1;
/** The most chunks that a job can have. */
export const MAX_CHUNKS = CLOSED - 1;

/**
 * Idle workers end after this time, so that a forgotten pool lets the process exit. Not
 * measured: a second is longer than most tokens take.
 */
const IDLE_MS = 1000;
/**
 * How often a thread polls a shared word before it sleeps. Jobs follow each other within
 * 100 µs, in which the caller norms and rotates rows; waking a thread takes about as long.
 * So many polls take 100 to 200 µs with a pause each, so that a thread that shares the
 * core does not mind.
 */
const POLLS = 5000;
/**
 * Jobs with fewer multiplications run on one thread. Not measured: by estimate, they take
 * about 10 µs, and waking a thread takes longer.
 */
export const ALONE = 1 << 18;
/** Chunks of a thread in a job on rows. Not measured: threads begin at different times. */
const ROW_CHUNKS_EACH = 2;
/**
 * Elements of rows below which such a job runs on one thread. Not measured: by estimate, they
 * take 10 µs, and waking a thread takes longer.
 */
const ROWS_ALONE = 1 << 15;
/** Lets other threads of the core run, where there is such an instruction. */
const pause: () => void =
  (Atomics as Partial<typeof Atomics>).pause?.bind(Atomics) ?? (() => {});

const WORKER = projectUrl(
  import.meta.url,
  "lib/cpu/pool",
  "lib/cpu/worker",
);

/** Binds the kernels to a memory. */
export function bind(
  module: WebAssembly.Module,
  memory: WebAssembly.Memory,
): BoundMemory {
  const { exports } = new WebAssembly.Instance(module, { work: { memory } });
  return { memory, kernels: exports as unknown as WasmKernels };
}

/** Threads and the memories that they share. */
export class CpuPool implements Disposable {
  readonly memories: BoundMemory[] = [];
  /** Why workers cannot run, if one failed to start. */
  failure: string | undefined = workerRefusal(WORKER);
  readonly #control: Int32Array;
  readonly #workers = new Map<number, Worker>();
  #job = 0;

  /** `threads` includes the caller's. */
  constructor(readonly threads: number, readonly module: WebAssembly.Module) {
    const bytes = 4 * (ALIVE + threads);
    this.#control = new Int32Array(
      this.failure === undefined
        ? new SharedArrayBuffer(bytes)
        : new ArrayBuffer(bytes),
    );
    this.#control[CLAIM] = CLOSED;
  }

  /** Shares a memory with all threads; returns its number. */
  add(memory: WebAssembly.Memory): number {
    const index = this.memories.push(bind(this.module, memory)) - 1;
    Atomics.add(this.#control, MAIL, 1);
    for (const [thread, worker] of this.#workers) this.#post(worker, thread);
    this.#ring();
    return index;
  }

  /** Runs all chunks of a job on a memory, on the caller's thread only if `alone`. */
  run(
    memory: number,
    job: readonly number[],
    chunks: number,
    alone: boolean,
  ): void {
    const control = this.#control;
    control[CHUNKS] = chunks; // workers ignore it while the job is closed
    control[MEMORY] = memory;
    control[MEMORIES] = this.memories.length;
    control.set(job, JOB);
    Atomics.store(control, DONE, 0);
    Atomics.store(control, FAILED, 0);
    this.#job = this.#job + 1 << INDEX_BITS >> INDEX_BITS;
    Atomics.store(control, CLAIM, this.#job << INDEX_BITS);
    if (!alone && chunks > 1) {
      this.#start();
      this.#ring();
    }
    try {
      work(control, this.memories, 0);
    } finally {
      for (let done; (done = Atomics.load(control, DONE)) < chunks;) {
        waitWhile(control, DONE, done);
      }
      Atomics.store(control, CLAIM, this.#job << INDEX_BITS | CLOSED);
    }
    if (Atomics.load(control, FAILED)) {
      throw new Error(
        "Cannot compute on the CPU: a thread failed, its error is on stderr",
      );
    }
  }

  /** Runs a job on rows of `size` elements, which has one chunk, in as many as are faster. */
  runRows(memory: number, all: RowJob, size: number): void {
    const { job } = all, { rows } = job;
    if (rows * size < ROWS_ALONE) {
      return runChunk(this.memories, memory, all, 0, 0);
    }
    job.chunk = Math.ceil(rows / (ROW_CHUNKS_EACH * this.threads));
    this.run(memory, encodeJob(all), Math.ceil(rows / job.chunk), false);
  }

  [Symbol.dispose](): void {
    Atomics.add(this.#control, MAIL, 1);
    this.#ring(); // a waiting worker cannot be terminated
    for (const worker of this.#workers.values()) worker.terminate();
    this.#workers.clear();
    this.memories.length = 0;
  }

  #ring(): void {
    Atomics.add(this.#control, BELL, 1);
    Atomics.notify(this.#control, BELL);
  }

  /** Starts workers that have not run yet, or ended when idle. */
  #start(): void {
    if (this.failure) return;
    for (let thread = 1; thread < this.threads; thread++) {
      if (Atomics.exchange(this.#control, ALIVE + thread, 1)) continue;
      const worker = new Worker(WORKER, { type: "module" });
      worker.addEventListener("error", (event) => {
        event.preventDefault();
        // Where a script cannot be loaded, browsers say nothing.
        this.failure = event.message || `${WORKER} cannot be loaded`;
      });
      this.#workers.set(thread, worker);
      this.#post(worker, thread);
    }
  }

  #post(worker: Worker, thread: number): void {
    const message: Message = {
      control: this.#control,
      module: this.module,
      memories: this.memories.map(({ memory }) => memory),
      thread,
      mail: Atomics.load(this.#control, MAIL),
    };
    worker.postMessage(message);
  }
}

/**
 * Runs jobs until the next message.
 *
 * @returns whether the worker should end because it was idle too long
 */
export function serve(
  { control, module, memories, thread, mail }: Message,
): boolean {
  const bound = memories.map((memory) => bind(module, memory));
  for (;;) {
    const bell = Atomics.load(control, BELL);
    if (Atomics.load(control, MAIL) !== mail) return false;
    work(control, bound, thread);
    if (!waitWhile(control, BELL, bell, IDLE_MS)) {
      Atomics.store(control, ALIVE + thread, 0);
      return true;
    }
  }
}

/** Claims and runs chunks until none are left; then throws the first error, if any. */
function work(
  control: Int32Array,
  memories: readonly BoundMemory[],
  thread: number,
): void {
  const errors: unknown[] = [];
  let job: Job | undefined, number = 0, memory = 0;
  for (;;) {
    const claim = Atomics.load(control, CLAIM);
    const index = claim & CLOSED;
    if (index === CLOSED || index >= control[CHUNKS]) break;
    if (memories.length < control[MEMORIES]) break; // their message has not arrived yet
    if (!job || claim >> INDEX_BITS !== number) {
      number = claim >> INDEX_BITS;
      job = decodeJob(control.subarray(JOB, JOB + JOB_SIZE));
      memory = control[MEMORY];
    }
    // The job just read is current if its number and chunk are still next.
    if (Atomics.compareExchange(control, CLAIM, claim, claim + 1) !== claim) {
      continue;
    }
    try {
      runChunk(memories, memory, job, index, thread);
    } catch (error) {
      errors.push(error);
      Atomics.store(control, FAILED, 1);
    }
    Atomics.add(control, DONE, 1);
    Atomics.notify(control, DONE);
  }
  if (errors.length > 0) throw errors[0];
}

/** Waits while a word has a value: polls, then sleeps. False after `sleepMs` of sleep. */
function waitWhile(
  control: Int32Array,
  word: number,
  value: number,
  sleepMs?: number,
): boolean {
  for (let poll = 0; poll < POLLS; poll++) {
    if (Atomics.load(control, word) !== value) return true;
    pause();
  }
  if (!MAY_SLEEP) {
    while (Atomics.load(control, word) === value);
    return true;
  }
  return Atomics.wait(control, word, value, sleepMs) !== "timed-out";
}

/** False in a page, whose own thread must not sleep; it has work until a job's end. */
const MAY_SLEEP = !("document" in globalThis);
