/**
 * Opens a GPU with the kernel constants for its adapter.
 *
 * @module
 */
import { defaultsFor } from "../dispatch/defaults.ts";
import { chooseLiterals } from "../dispatch/literals.ts";
import { chooseRepacking } from "../dispatch/loading.ts";
import { givenOptions } from "../text/options.ts";
import { loadTuning } from "./tuning_file.ts";
import { type Gpu, openGpu } from "../webgpu/device.ts";
import {
  checkImplementation,
  type DeviceOptions,
} from "../webgpu/implementation.ts";

/**
 * Opens a GPU with the adapter's own limits (WebGPU's default limits cap bindings at
 * 128 MiB), and with f16, subgroups and timestamps if the adapter supports them.
 * Kernels use the constants tuned for this adapter, or else the defaults for its class.
 *
 * @throws {NoAdapterError} if there is no adapter, its limits are too low, or Dawn cannot
 * be loaded.
 * @throws {OptionError} if an option is unknown or has a wrong value.
 */
export async function openDevice(options: DeviceOptions = {}): Promise<Gpu> {
  const cannot = "Cannot open a GPU";
  const given = givenOptions(cannot, options, {
    webgpu: "text",
    adapter: "text",
    gpu: "gpu",
  });
  checkImplementation(cannot, given);
  const gpu = await openGpu(given);
  gpu.addChoice({
    what: "kernel constants",
    value: `defaults for ${gpu.adapterClass}`,
    reason: defaultsFor(gpu).source,
  });
  gpu.addChoice(await loadTuning(gpu));
  const { onDevice: _, ...repacking } = chooseRepacking(gpu);
  gpu.addChoice(repacking);
  const { literal: __, ...sizes } = chooseLiterals(gpu);
  gpu.addChoice(sizes);
  return gpu;
}
