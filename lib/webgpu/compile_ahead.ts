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
import { host, workerRefusal } from "../host.ts";
import type { Gpu } from "./device.ts";
import { BACKENDS } from "./environment.ts";
import { compile, compileAll, isCompiled, type Shader } from "./pipeline.ts";

/** Sent to a worker: what to compile, and for which device. */
export interface CompileJob {
  adapter: string;
  device: Gpu["descriptor"];
  shaders: Shader[];
}

/** Sent back by a worker when it is done. */
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
/** Time to open a device, relative to compiling the longest shader. */
const OPENING = 0.5;

const WORKER = new URL("./compile_worker.ts", import.meta.url);
/** What GL is called there, in any case and between any spaces. */
const GL = /^\s*(gl|gles|opengl)\s*$/i;
/** Devices on which a worker has failed; other workers would fail too. */
const failing = new WeakSet<Gpu>();

/**
 * Compiles the shaders that are not compiled yet, unless the driver turns out to have
 * them in its cache. Does so only where it is known to pay off: with Deno's Vulkan on
 * NVIDIA, whose driver shares its disk cache among the devices of a process, and through
 * Dawn, which has threads of its own. Elsewhere `shaders` is not called, because calling it
 * records passes.
 *
 * @returns what was decided, if anything.
 */
export async function compileAhead(
  gpu: Gpu,
  shaders: () => readonly Shader[],
  signal?: AbortSignal,
): Promise<Choice | undefined> {
  if (gpu.implementation === "dawn") {
    await compileAll(gpu, shaders(), signal);
    return undefined;
  }
  if (
    !gpu.vulkan || !gpu.adapterClass.startsWith("NVIDIA") ||
    failing.has(gpu) || !keepsCache()
  ) return undefined;
  const refusal = workerRefusal(WORKER);
  if (refusal !== undefined) {
    failing.add(gpu);
    return oneThread(refusal);
  }
  const missing = longestFirst(gpu, shaders());
  const workers = Math.min(
    MOST_WORKERS,
    navigator.hardwareConcurrency - 1,
    missing.length - 2,
  );
  if (workers < 1) return undefined;
  const { driverMs } = compile(gpu, missing.pop()!);
  if (driverMs < COMPILED_MS) return undefined;
  return await compileInWorkers(gpu, missing, workers, { signal });
}

/**
 * Compiles shaders on this thread and `workers` more, or on this thread alone if a
 * worker fails.
 *
 * @throws the reason of `signal` if it is aborted; the workers end then.
 */
export async function compileInWorkers(
  gpu: Gpu,
  shaders: readonly Shader[],
  workers: number,
  { patienceMs = PATIENCE_MS, signal }: {
    patienceMs?: number;
    signal?: AbortSignal;
  } = {},
): Promise<Choice> {
  const refusal = limitBackends();
  if (refusal !== undefined) {
    failing.add(gpu);
    await compileAll(gpu, shaders, signal);
    return { ...ONE_THREAD, reason: refusal };
  }
  using end = new DisposableStack();
  const [own, ...others] = shares(shaders, workers);
  const reports = others.filter((share) => share.length > 0).map((share) => {
    const { worker, report } = inWorker(gpu, share);
    end.defer(() => worker.terminate());
    return report;
  });
  await compileAll(gpu, own, signal);
  const late = Promise.withResolvers<CompileReport[]>();
  const error = `no answer in ${patienceMs / 1000} s`;
  const timer = setTimeout(() => late.resolve([{ error }]), patienceMs);
  end.defer(() => clearTimeout(timer));
  const abort = () => late.reject(signal?.reason);
  signal?.addEventListener("abort", abort);
  end.defer(() => signal?.removeEventListener("abort", abort));
  const failed = (await Promise.race([Promise.all(reports), late.promise]))
    .find(({ error }) => error !== undefined);
  if (failed) failing.add(gpu);
  await compileAll(gpu, shaders, signal);
  return failed ? oneThread(failed.error!) : {
    what: "first compilation",
    value: `${1 + reports.length} threads`,
    reason: "the driver shares compiled shaders among devices",
  };
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

/**
 * Divides the shaders between this thread (first) and the workers, which must open a
 * device before they compile. Each shader, longest first, goes to the thread with the
 * least work.
 */
export function shares(
  shaders: readonly Shader[],
  workers: number,
): Shader[][] {
  const opening = OPENING * (shaders[0]?.code.length ?? 0);
  const all = Array.from({ length: workers + 1 }, (_, i) => ({
    work: i === 0 ? 0 : opening,
    shaders: [] as Shader[],
  }));
  for (const shader of shaders) {
    const least = all.reduce((a, b) => b.work < a.work ? b : a);
    least.work += shader.code.length;
    least.shaders.push(shader);
  }
  return all.map(({ shaders }) => shaders);
}

function inWorker(
  gpu: Gpu,
  shaders: Shader[],
): { worker: Worker; report: Promise<CompileReport> } {
  const { promise: report, resolve } = Promise.withResolvers<CompileReport>();
  const worker = new Worker(WORKER, { type: "module" });
  worker.addEventListener("message", ({ data }) => resolve(data));
  worker.addEventListener("error", (event) => {
    event.preventDefault();
    resolve({ error: event.message });
  });
  const job: CompileJob = {
    adapter: gpu.name,
    device: gpu.descriptor,
    shaders,
  };
  worker.postMessage(job);
  return { worker, report };
}

/**
 * Whether NVIDIA's driver caches compiled shaders, which it does unless the environment
 * turns that off.
 */
function keepsCache(): boolean {
  const name = "__GL_SHADER_DISK_CACHE";
  return !host.isGranted("env", name) || host.env(name) !== "0";
}
