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
scope.onmessage = async ({ data }) => {
  try {
    await compileAll(data);
    scope.postMessage({});
  } catch (error) {
    scope.postMessage({ error: errorText(error) });
  }
};

async function compileAll(
  { adapter: name, device: descriptor, shaders }: CompileJob,
): Promise<void> {
  const adapter = await navigator.gpu.requestAdapter({
    powerPreference: "high-performance",
  });
  const found = adapter ? adapterName(adapter.info) : "gone";
  if (!adapter || found !== name) {
    throw new Error(`Cannot compile for ${name}: the adapter is ${found}`);
  }
  const device = await adapter.requestDevice(descriptor);
  for (const shader of shaders) createPipeline(device, shader);
  device.destroy();
}
