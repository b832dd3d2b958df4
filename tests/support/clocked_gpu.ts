/** WebGPU with timestamps from a made-up clock, for tests of times that measure none. */

import { CALIBRATION } from "../../lib/webgpu/clock.ts";

/** How long things take on the made-up clock, in milliseconds. */
export interface Clock {
  /** How long a dispatch takes. */
  dispatchMs(workgroups: number): number;
  /** The time before each pass. */
  betweenPassesMs?: number;
  /** The time after each submit. */
  betweenSubmitsMs?: number;
  /** Nanoseconds per tick, and of the steps in which it moves; 1 by default. */
  period?: number;
  stepNs?: number;
}

/** This machine's adapter, with the timestamps of `clock`. */
export function clockedGpu(clock: Clock): GPU {
  const { dispatchMs, betweenPassesMs = 0, betweenSubmitsMs = 0 } = clock;
  const { period = 1, stepNs = 1 } = clock;
  const ticks = new WeakMap<GPUQuerySet, Map<number, bigint>>();
  let ms = 0;

  const clockPass = (
    pass: GPUComputePassEncoder,
    { label, timestampWrites: writes }: GPUComputePassDescriptor = {},
  ) => {
    const note = (index?: number) => {
      if (!writes || index === undefined) return;
      const { querySet } = writes;
      if (!ticks.has(querySet)) ticks.set(querySet, new Map());
      // What calibrates compares with the wall clock.
      const ns = 1e6 * (label === CALIBRATION ? performance.now() : ms);
      const tick = Math.round(ns / stepNs) * stepNs / period;
      ticks.get(querySet)!.set(index, BigInt(Math.round(tick)));
    };
    const dispatch = pass.dispatchWorkgroups.bind(pass),
      end = pass.end.bind(pass);
    ms += betweenPassesMs;
    note(writes?.beginningOfPassWriteIndex);
    pass.dispatchWorkgroups = (x, y = 1, z = 1) => {
      ms += dispatchMs(x * y * z);
      dispatch(x, y, z);
    };
    pass.end = () => {
      note(writes?.endOfPassWriteIndex);
      end();
    };
    return pass;
  };

  const clockDevice = (device: GPUDevice) => {
    const createEncoder = device.createCommandEncoder.bind(device);
    device.createCommandEncoder = (descriptor) => {
      const encoder = createEncoder(descriptor);
      const begin = encoder.beginComputePass.bind(encoder);
      encoder.beginComputePass = (descriptor) =>
        clockPass(begin(descriptor), descriptor);
      encoder.resolveQuerySet = (querySet, first, count, buffer, offset) => {
        const known = ticks.get(querySet);
        const values = Array.from(
          { length: count },
          (_, i) => known?.get(first + i) ?? 0n,
        );
        const staging = device.createBuffer({
          size: 8 * count,
          usage: GPUBufferUsage.COPY_SRC,
          mappedAtCreation: true,
        });
        new BigUint64Array(staging.getMappedRange()).set(values);
        staging.unmap();
        encoder.copyBufferToBuffer(staging, 0, buffer, offset, 8 * count);
      };
      return encoder;
    };
    const createBuffer = device.createBuffer.bind(device);
    device.createBuffer = (descriptor) =>
      createBuffer(
        descriptor.usage & GPUBufferUsage.QUERY_RESOLVE
          ? {
            ...descriptor,
            usage: descriptor.usage | GPUBufferUsage.COPY_DST,
          }
          : descriptor,
      );
    const { queue } = device, submit = queue.submit.bind(queue);
    queue.submit = (buffers) => {
      submit(buffers);
      ms += betweenSubmitsMs;
    };
    return device;
  };

  return {
    async requestAdapter(options: GPURequestAdapterOptions) {
      const adapter = await navigator.gpu.requestAdapter(options);
      if (!adapter) return null;
      const request = adapter.requestDevice.bind(adapter);
      adapter.requestDevice = async (descriptor) =>
        clockDevice(await request(descriptor));
      return adapter;
    },
  } as unknown as GPU;
}
