/**
 * A script for lib/tools/doctor/apart.ts whose adapter blocks its thread in the first
 * kernel, argmax (`?hang`), as Deno's WebGPU does while a kernel hangs, or ends its
 * process (`?crash`), as a driver may.
 */
import { openDevice } from "../../../lib/device/open_device.ts";
import { selfTest } from "../../../lib/tools/doctor/device.ts";
import { printer } from "../../../lib/tools/doctor/process.ts";
import { tamperedGpu } from "../../support/tampered_gpu.ts";

const tampered = tamperedGpu("argmax", () => {
  if (new URL(import.meta.url).search === "?hang") {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
  }
  console.error("driver: assertion failed");
  Deno.exit(3);
});
using gpu = await openDevice({ gpu: tampered });
await selfTest(gpu, printer);
