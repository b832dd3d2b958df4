/** WebGPU as another machine has it: the adapter here under other names and limits. */

/** What the wrapped adapter says instead of what is true. */
export interface Pretence {
  /** E.g. `{ description: "Test GPU", isFallbackAdapter: false }`. */
  info?: Partial<GPUAdapterInfo>;
  /** Only smaller ones make sense. */
  limits?: Record<string, number>;
  /** Features that it lacks. */
  without?: string[];
  /** Bytes of memory; buffers beyond them are out of memory. */
  memory?: number;
}

/** A `gpu` for loadQwen3 and openDevice, and every device that was made with it. */
export interface WrappedGpu {
  gpu: GPU;
  devices: GPUDevice[];
}

/** Wraps `navigator.gpu`. */
export function wrapGpu(pretence: Pretence): WrappedGpu {
  const { info = {}, limits = {}, without = [], memory } = pretence;
  const devices: GPUDevice[] = [];
  const restrict = <T extends GPUAdapter | GPUDevice>(target: T, own: object) =>
    override(target, {
      limits: override(target.limits, limits),
      features: new Set(
        [...target.features].filter((name) => !without.includes(name)),
      ),
      ...own,
    });
  const gpu = override(navigator.gpu, {
    async requestAdapter(options: GPURequestAdapterOptions) {
      const adapter = await navigator.gpu.requestAdapter(options);
      return adapter && restrict(adapter, {
        info: override(adapter.info, info),
        async requestDevice(options: GPUDeviceDescriptor) {
          const refused = [...options.requiredFeatures ?? []]
            .filter((name) => without.includes(name));
          if (refused.length) throw new TypeError(`no ${refused.join()} here`);
          const device = await adapter.requestDevice(options);
          devices.push(device);
          return restrict(device, memory ? withMemory(device, memory) : {});
        },
      });
    },
  });
  return { gpu, devices };
}

/** An adapter that nothing tells from hardware. */
export const HARDWARE: Pretence = {
  info: { description: "Test GPU", isFallbackAdapter: false },
};

/** WebGPU without an adapter. */
export const NO_ADAPTER = override(navigator.gpu, {
  requestAdapter: () => Promise.resolve(null),
});

/** `target` with some properties of its own; the rest are native and know their object. */
function override<T extends object>(target: T, own: object): T {
  return new Proxy(target, {
    get(target, name) {
      if (name in own) return Reflect.get(own, name);
      const value = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
    set: (target, name, value) => Reflect.set(target, name, value, target),
  });
}

/** Methods of a device with `left` bytes, which tells its error scopes of more. */
function withMemory(device: GPUDevice, left: number) {
  const scopes: (GPUOutOfMemoryError | null)[] = [];
  return {
    createBuffer(descriptor: GPUBufferDescriptor) {
      left -= descriptor.size;
      if (left < 0) scopes[0] ??= new GPUOutOfMemoryError("Not enough memory");
      const buffer = device.createBuffer(descriptor);
      const destroy = buffer.destroy.bind(buffer);
      buffer.destroy = () => (left += descriptor.size, destroy());
      return buffer;
    },
    pushErrorScope: () => void scopes.unshift(null),
    popErrorScope: () => Promise.resolve(scopes.shift() ?? null),
  };
}
