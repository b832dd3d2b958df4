/**
 * Opens a GPU for the kernels, with the constants that suit it.
 *
 * @module
 */
import { defaultsFor } from "./dispatch/defaults.ts";
import { loadTuning } from "./tuning_file.ts";
import { type DeviceOptions, type Gpu, openGpu } from "./webgpu/device.ts";

/**
 * Opens a GPU with the adapter's own limits (WebGPU's defaults allow bindings of
 * 128 MiB only), and with f16, subgroups and timestamps where the adapter has them;
 * kernels take the constants tuned for this adapter, or its defaults.
 *
 * @throws {NoAdapterError} if there is no adapter, or its workgroup memory is too small.
 */
export async function openDevice(options: DeviceOptions = {}): Promise<Gpu> {
  const gpu = await openGpu(options);
  gpu.choices.push({
    what: "kernel constants",
    value: `defaults for ${gpu.adapterClass}`,
    reason: defaultsFor(gpu).source,
  });
  gpu.choices.push(await loadTuning(gpu));
  return gpu;
}
