/**
 * A script for lib/doctor_apart.ts to run. On its adapter the first kernel, embed, blocks
 * its thread (`?hang`), as Deno's WebGPU does while a kernel hangs, or ends its process
 * (`?crash`), as a driver may.
 */
import { openDevice } from "../lib/device.ts";
import { selfTest } from "../lib/doctor_device.ts";
import { printed } from "../lib/doctor_process.ts";
import { tamperedGpu } from "./tampered_gpu.ts";

const tampered = tamperedGpu("embed", () => {
  if (new URL(import.meta.url).search === "?hang") {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
  }
  console.error("driver: assertion failed");
  Deno.exit(3);
});
using gpu = await openDevice({ gpu: tampered });
await selfTest(gpu, printed);
