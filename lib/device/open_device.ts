/**
 * Opens a GPU with the kernel constants for its adapter.
 *
 * @module
 */
import { defaultsFor } from "../dispatch/defaults.ts";
import { chooseRepacking } from "../dispatch/loading.ts";
import { givenOptions } from "../text/options.ts";
import { loadTuning } from "./tuning_file.ts";
import { type DeviceOptions, type Gpu, openGpu } from "../webgpu/device.ts";

/**
 * Opens a GPU with the adapter's own limits (WebGPU's default limits cap bindings at
 * 128 MiB), and with f16, subgroups and timestamps if the adapter supports them.
 * Kernels use the constants tuned for this adapter, or else the defaults for its class.
 *
 * @throws {NoAdapterError} if there is no adapter, or its limits are too low.
 */
export async function openDevice(options: DeviceOptions = {}): Promise<Gpu> {
  const gpu = await openGpu(
    givenOptions("Cannot open a GPU", options, { gpu: "gpu" }),
  );
  gpu.addChoice({
    what: "kernel constants",
    value: `defaults for ${gpu.adapterClass}`,
    reason: defaultsFor(gpu).source,
  });
  gpu.addChoice(await loadTuning(gpu));
  const { onDevice: _, ...repacking } = chooseRepacking(gpu);
  gpu.addChoice(repacking);
  return gpu;
}
