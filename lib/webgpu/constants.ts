/**
 * The constants of WebGPU, for runtimes without it whose caller passes an implementation:
 * npm's `webgpu` defines none of them by itself.
 *
 * Source: https://www.w3.org/TR/webgpu/#namespacedef-gpubufferusage and its like
 *
 * @module
 */

const CONSTANTS = {
  GPUBufferUsage: {
    MAP_READ: 0x1,
    MAP_WRITE: 0x2,
    COPY_SRC: 0x4,
    COPY_DST: 0x8,
    INDEX: 0x10,
    VERTEX: 0x20,
    UNIFORM: 0x40,
    STORAGE: 0x80,
    INDIRECT: 0x100,
    QUERY_RESOLVE: 0x200,
  },
  GPUMapMode: { READ: 0x1, WRITE: 0x2 },
  GPUShaderStage: { VERTEX: 0x1, FRAGMENT: 0x2, COMPUTE: 0x4 },
  GPUTextureUsage: {
    COPY_SRC: 0x1,
    COPY_DST: 0x2,
    TEXTURE_BINDING: 0x4,
    STORAGE_BINDING: 0x8,
    RENDER_ATTACHMENT: 0x10,
  },
};

/** Defines those that the runtime does not. */
export function defineConstants(): void {
  const scope = globalThis as unknown as Record<string, unknown>;
  for (const [name, constants] of Object.entries(CONSTANTS)) {
    scope[name] ??= constants;
  }
}
