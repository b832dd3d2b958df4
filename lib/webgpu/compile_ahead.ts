/**
 * Compiles pipelines in several threads before their first use. A WebGPU pipeline is
 * compiled by the thread that creates it, one at a time, in up to half a second each. But
 * a driver's disk cache may serve every device of a process: workers compile on devices
 * of their own, and this thread's device then finds the results in the cache
 * (bench/log.md, "Workers compile ahead").
 *
 * @module
 */
import type { Choice } from "../dispatch/choice.ts";
import { Rests } from "../dispatch/rests.ts";
import { host, workerRefusal } from "../host.ts";
import type { Gpu } from "./device.ts";
import { BACKENDS } from "./environment.ts";
import {
  compile,
  compileAll,
  isCompiled,
  parse,
  type Shader,
} from "./pipeline.ts";

/** Sent to a worker: what to compile, and for which device. */
export interface CompileJob {
  adapter: string;
  device: Gpu["descriptor"];
  shaders: Shader[];
  /** Whether no other job follows. */
  last: boolean;
}

/** Sent back by a worker when a job is done. */
export interface CompileReport {
  error?: string;
}

/** Maximum number of workers: each opens a device, and devices open one at a time. */
const MOST_WORKERS = 5;
/**
 * Slower than this is a miss in the driver's cache (10 to 15 ms for the shortest
 * shader; a hit takes 0.3).
 */
const COMPILED_MS = 3;
/** How long this thread waits for the workers after finishing its own share. */
const PATIENCE_MS = 30_000;
/**
 * Time to open a device, relative to compiling the longest shader: 0.1 to 0.2 s, one after
 * another.
 */
const OPENING = 0.3;

const WORKER = new URL("./compile_worker.ts", import.meta.url);
/** What GL is called there, in any case and between any spaces. */
const GL = /^\s*(gl|gles|opengl)\s*$/i;
/** Devices on which a worker has failed; other workers would fail too. */
const failing = new WeakSet<Gpu>();

/** What {@linkcode compileAhead} has begun; disposing of it ends its workers. */
export interface Ahead extends Disposable {
  /** What was decided, if anything. */
  readonly choice?: Choice;
  /**
   * Resolves when workers no longer compile the later shaders; with the choice that replaces
   * the first one, if a worker failed. Whoever needs them compiles them in any case.
   */
  readonly later: Promise<Choice | undefined>;
}

const nothing = (choice?: Choice): Ahead => ({
  choice,
  later: Promise.resolve(undefined),
  [Symbol.dispose]() {},
});

/** How {@linkcode compileAhead} works. */
export interface AheadOptions {
  /** Shaders that are needed after the others; workers compile them meanwhile. */
  later?: () => readonly Shader[];
  signal?: AbortSignal;
}

/**
 * Compiles the shaders that are not compiled yet, unless the driver turns out to have
 * them in its cache. Does so only where it is known to pay off: with Deno's Vulkan on
 * NVIDIA, whose driver shares its disk cache among the devices of a process, and through
 * Dawn, which has threads of its own. Elsewhere `shaders` is not called, because calling it
 * records passes.
 */
export async function compileAhead(
  gpu: Gpu,
  shaders: () => readonly Shader[],
  { later, signal }: AheadOptions = {},
): Promise<Ahead> {
  if (gpu.implementation === "dawn") {
    await compileAll(gpu, shaders(), signal);
    // Whoever needs what failed compiles it again, and throws.
    const rest = compileAll(gpu, later?.() ?? [], signal).catch(() => {});
    return { ...nothing(), later: rest.then(() => undefined) };
  }
  if (
    !gpu.vulkan || !gpu.adapterClass.startsWith("NVIDIA") ||
    failing.has(gpu) || !keepsCache()
  ) return nothing();
  const refusal = workerRefusal(WORKER);
  if (refusal !== undefined) {
    failing.add(gpu);
    return nothing(oneThread(refusal));
  }
  const missing = longestFirst(gpu, shaders());
  // Otherwise they are asked for when the workers have begun.
  const rest = missing.length < 3 && later
    ? restOf(gpu, later(), missing)
    : undefined;
  const workers = Math.min(
    MOST_WORKERS,
    navigator.hardwareConcurrency - 1,
    missing.length + (rest?.length ?? 0) - 2,
  );
  if (workers < 1) return nothing();
  const shortest = missing.length > 0 ? missing.pop()! : rest!.pop()!;
  if (compile(gpu, shortest).driverMs < COMPILED_MS) return nothing();
  const options = { later: rest ? () => rest : later, signal };
  return await compileInWorkers(gpu, missing, workers, options);
}

/**
 * Compiles shaders on this thread and up to `workers` more, or on this thread alone if a
 * worker fails; the workers go on with the later ones.
 *
 * @throws the reason of `signal` if it is aborted; the workers end then.
 */
export async function compileInWorkers(
  gpu: Gpu,
  shaders: readonly Shader[],
  workers: number,
  { patienceMs = PATIENCE_MS, later, signal }:
    & AheadOptions
    & { patienceMs?: number } = {},
): Promise<Ahead> {
  const refusal = limitBackends();
  if (refusal !== undefined) {
    failing.add(gpu);
    await compileAll(gpu, shaders, signal);
    return nothing({ ...ONE_THREAD, reason: refusal });
  }
  using end = new DisposableStack();
  const [own, ...others] = shares(shaders, workers);
  const started = new Map<number, CompileWorker>();
  const start = (i: number, shaders: Shader[], last: boolean) => {
    let worker = started.get(i);
    if (!worker) started.set(i, worker = end.use(new CompileWorker(gpu)));
    return worker.compile(shaders, last);
  };
  const first = others.flatMap((share, i) =>
    share.length > 0 ? [start(i, share, !later)] : []
  );
  await compileAll(gpu, own, signal);
  const rest = restOf(gpu, later?.() ?? [], shaders);
  const second = shares(rest, workers - 1, true).flatMap((share, i) =>
    share.length > 0 ? [start(i, share, true)] : []
  );
  // The workers are busy: this thread parses what it will find in the cache.
  const rests = new Rests();
  for (const shader of others.flat()) {
    parse(gpu, shader);
    await rests.rest(signal);
  }
  const failed = await failureOf(first, patienceMs, signal);
  if (failed) failing.add(gpu);
  await compileAll(gpu, shaders, signal);
  if (failed) return nothing(oneThread(failed));
  const choice = {
    what: "first compilation",
    value: `${1 + started.size} threads`,
    reason: "the driver shares compiled shaders among devices",
  };
  if (second.length === 0) return nothing(choice);
  return { choice, ...untilDone(gpu, second, patienceMs, end.move(), signal) };
}

/** Ends the workers after their last reports, or when it is disposed of. */
function untilDone(
  gpu: Gpu,
  reports: readonly Promise<CompileReport>[],
  patienceMs: number,
  workers: Disposable,
  signal?: AbortSignal,
): Pick<Ahead, "later"> & Disposable {
  const over = new AbortController();
  const either = AbortSignal.any([over.signal, ...signal ? [signal] : []]);
  const done = failureOf(reports, patienceMs, either).then(
    (failed) => {
      if (!failed) return undefined;
      failing.add(gpu);
      return oneThread(failed);
    },
    () => undefined, // aborted: no one is waiting for them
  );
  const later = done.finally(() => workers[Symbol.dispose]());
  return { later, [Symbol.dispose]: () => over.abort() };
}

/**
 * Waits for the reports of workers; returns why one failed, if it did.
 *
 * @throws the reason of `signal` if it is aborted.
 */
async function failureOf(
  reports: readonly Promise<CompileReport>[],
  patienceMs: number,
  signal?: AbortSignal,
): Promise<string | undefined> {
  if (reports.length === 0) return undefined;
  signal?.throwIfAborted();
  using end = new DisposableStack();
  const late = Promise.withResolvers<CompileReport[]>();
  const error = `no answer in ${patienceMs / 1000} s`;
  const timer = setTimeout(() => late.resolve([{ error }]), patienceMs);
  end.defer(() => clearTimeout(timer));
  const abort = () => late.reject(signal?.reason);
  signal?.addEventListener("abort", abort);
  end.defer(() => signal?.removeEventListener("abort", abort));
  return (await Promise.race([Promise.all(reports), late.promise]))
    .find(({ error }) => error !== undefined)?.error;
}

const ONE_THREAD = { what: "first compilation", value: "one thread" } as const;

const oneThread = (error: string): Choice => ({
  ...ONE_THREAD,
  reason: `a worker failed: ${error}`,
});

/**
 * Keeps workers from opening GL beside Vulkan, as Deno does by default: when several of them
 * end, one that closes GL and one that destroys its Vulkan device can wait for each other
 * forever, in NVIDIA's driver, and this thread for both.
 *
 * @returns why that cannot be done
 */
function limitBackends(): string | undefined {
  if (!host.isGranted("env", BACKENDS)) {
    return `Deno has no env permission for ${BACKENDS}, without which threads may block one another`;
  }
  const given = host.env(BACKENDS);
  if (given === undefined) host.setEnv(BACKENDS, "vulkan");
  return given?.split(",").some((name) => GL.test(name))
    ? `${BACKENDS} is ${given}: threads that open GL may block one another`
    : undefined;
}

function longestFirst(gpu: Gpu, shaders: readonly Shader[]): Shader[] {
  const distinct = new Map(shaders.map((shader) => [shader.code, shader]));
  return [...distinct.values()]
    .filter((shader) => !isCompiled(gpu, shader))
    .sort((a, b) => b.code.length - a.code.length);
}

/** What is missing of the later shaders, besides those that are compiled first. */
function restOf(
  gpu: Gpu,
  later: readonly Shader[],
  first: readonly Shader[],
): Shader[] {
  const known = new Set(first.map(({ code }) => code));
  return longestFirst(gpu, later.filter(({ code }) => !known.has(code)));
}

/**
 * Divides the shaders between this thread (first) and the workers, which open devices one
 * after another before they compile, unless they are `running`. Each shader, longest first,
 * goes to the thread with the least work.
 */
export function shares(
  shaders: readonly Shader[],
  workers: number,
  running = false,
): Shader[][] {
  const opening = running ? 0 : OPENING * (shaders[0]?.code.length ?? 0);
  const all = Array.from({ length: workers + 1 }, (_, i) => ({
    work: i * opening,
    shaders: [] as Shader[],
  }));
  for (const shader of shaders) {
    const least = all.reduce((a, b) => b.work < a.work ? b : a);
    least.work += shader.code.length;
    least.shaders.push(shader);
  }
  return all.map(({ shaders }) => shaders);
}

/** A worker that compiles one share after another. */
class CompileWorker implements Disposable {
  readonly #worker = new Worker(WORKER, { type: "module" });
  /** Who waits for the jobs that it has not reported on yet. */
  readonly #waiting: ((report: CompileReport) => void)[] = [];

  constructor(readonly gpu: Gpu) {
    this.#worker.addEventListener("message", ({ data }) => {
      this.#waiting.shift()?.(data);
    });
    this.#worker.addEventListener("error", (event) => {
      event.preventDefault();
      for (const report of this.#waiting.splice(0)) {
        report({ error: event.message });
      }
    });
  }

  /** Compiles shaders; after the `last` ones it gives up its device. */
  compile(shaders: Shader[], last: boolean): Promise<CompileReport> {
    const { promise, resolve } = Promise.withResolvers<CompileReport>();
    this.#waiting.push(resolve);
    const { name: adapter, descriptor: device } = this.gpu;
    const job: CompileJob = { adapter, device, shaders, last };
    this.#worker.postMessage(job);
    return promise;
  }

  [Symbol.dispose](): void {
    this.#worker.terminate();
  }
}

/**
 * Whether NVIDIA's driver caches compiled shaders, which it does unless the environment
 * turns that off.
 */
function keepsCache(): boolean {
  const name = "__GL_SHADER_DISK_CACHE";
  return !host.isGranted("env", name) || host.env(name) !== "0";
}
