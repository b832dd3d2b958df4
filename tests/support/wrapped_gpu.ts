/** WebGPU as on another machine: this adapter with other names and limits. */

/** What the wrapped adapter pretends. */
export interface Pretence {
  /** E.g. `{ description: "Test GPU", isFallbackAdapter: false }`. */
  info?: Partial<GPUAdapterInfo>;
  /** Limits, smaller than the real ones. */
  limits?: Record<string, number>;
  /** Features to leave out. */
  without?: string[];
  /** Features that the device does not have, and how its shaders do without. */
  more?: string[];
  shader?: (code: string) => string;
  /** Bytes of memory; larger allocations fail. */
  memory?: number;
}

/** A `gpu` for loadQwen3 and openDevice, with the devices it made. */
export interface WrappedGpu {
  gpu: GPU;
  devices: GPUDevice[];
}

/** A large NVIDIA GPU, where nothing says that workgroups see each other's results. */
export const LARGE_NVIDIA: Pretence = {
  info: {
    vendor: "nvidia",
    description: "NVIDIA H200",
    isFallbackAdapter: false,
  },
};

/** Wraps `navigator.gpu`. */
export function wrapGpu(pretence: Pretence): WrappedGpu {
  const { info = {}, limits = {}, without = [], memory } = pretence;
  const { more = [], shader = (code: string) => code } = pretence;
  const devices: GPUDevice[] = [];
  const restrict = <T extends GPUAdapter | GPUDevice>(target: T, own: object) =>
    override(target, {
      limits: override(target.limits, limits),
      features: new Set(
        [...target.features, ...more].filter((name) => !without.includes(name)),
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
          const device = await adapter.requestDevice({
            ...options,
            requiredFeatures: [...options.requiredFeatures ?? []]
              .filter((name) => !more.includes(name)),
          });
          devices.push(device);
          return restrict(device, {
            createShaderModule: (module: GPUShaderModuleDescriptor) =>
              device.createShaderModule({
                ...module,
                code: shader(module.code),
              }),
            ...memory ? withMemory(device, memory) : {},
          });
        },
      });
    },
  });
  return { gpu, devices };
}

/** An adapter that looks like hardware. */
export const HARDWARE: Pretence = {
  info: { description: "Test GPU", isFallbackAdapter: false },
};

/** WebGPU without an adapter. */
export const NO_ADAPTER = override(navigator.gpu, {
  requestAdapter: () => Promise.resolve(null),
});

/** `target` with some properties replaced; native methods stay bound to it. */
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

/** Methods of a device with `left` bytes, which reports larger allocations to its error scopes. */
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
    pushErrorScope(filter: GPUErrorFilter) {
      scopes.unshift(null);
      device.pushErrorScope(filter);
    },
    async popErrorScope() {
      const error = await device.popErrorScope();
      return scopes.shift() ?? error;
    },
  };
}
