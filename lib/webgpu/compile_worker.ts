/**
 * A worker thread of {@link compileAhead}.
 *
 * @module
 */
import { errorText } from "../errors.ts";
import type { CompileJob, CompileReport } from "./compile_ahead.ts";
import { adapterName } from "./adapter.ts";
import { createPipeline } from "./pipeline.ts";

/** The part of a module worker's global scope that is used here. */
interface WorkerScope {
  onmessage: ((event: MessageEvent<CompileJob>) => void) | null;
  postMessage(report: CompileReport): void;
}

const scope = globalThis as unknown as WorkerScope;
let opened: Promise<GPUDevice> | undefined;
let before = Promise.resolve();
scope.onmessage = ({ data }) => {
  before = before.then(async () => scope.postMessage(await reportOf(data)));
};

async function reportOf(job: CompileJob): Promise<CompileReport> {
  try {
    const device = await (opened ??= open(job));
    for (const shader of job.shaders) createPipeline(device, shader);
    if (job.last) device.destroy();
    return {};
  } catch (error) {
    return { error: errorText(error) };
  }
}

async function open(
  { adapter: name, device }: CompileJob,
): Promise<GPUDevice> {
  const adapter = await navigator.gpu.requestAdapter({
    powerPreference: "high-performance",
  });
  const found = adapter ? adapterName(adapter.info) : "gone";
  if (!adapter || found !== name) {
    throw new Error(`Cannot compile for ${name}: the adapter is ${found}`);
  }
  return await adapter.requestDevice(device);
}
