/** WebGPU that compiles edited WGSL. */

/** Wraps `navigator.gpu` so that `edit` changes the WGSL of kernel `name`. */
export function tamperedGpu(name: string, edit: (wgsl: string) => string): GPU {
  const wrap = <T extends object>(target: T, own: object): T =>
    new Proxy(target, {
      get(target, key) {
        if (key in own) return Reflect.get(own, key);
        const value = Reflect.get(target, key, target);
        return typeof value === "function" ? value.bind(target) : value;
      },
    });
  return wrap(navigator.gpu, {
    async requestAdapter(options: GPURequestAdapterOptions) {
      const adapter = await navigator.gpu.requestAdapter(options);
      if (!adapter) return null; // this machine may lack that kind
      return wrap(adapter, {
        async requestDevice(options: GPUDeviceDescriptor) {
          const device = await adapter.requestDevice(options);
          return wrap(device, {
            createShaderModule(module: GPUShaderModuleDescriptor) {
              if (module.label !== name) {
                return device.createShaderModule(module);
              }
              const code = edit(module.code);
              if (code === module.code) throw new Error("nothing was edited");
              return device.createShaderModule({ ...module, code });
            },
          });
        },
      });
    },
  });
}
