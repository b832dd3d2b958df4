/**
 * The part of Vulkan's C interface that compiles a compute shader and queries its
 * statistics (VK_KHR_pipeline_executable_properties). Handles are u64; structures are
 * bytes, laid out as on 64-bit machines.
 *
 * @module
 */
import type { Shader } from "../../webgpu/pipeline.ts";
import type { CompiledShader } from "./radv.ts";

/** A compute shader as Deno passes it to a driver. */
export interface Spirv {
  words: Uint8Array<ArrayBuffer>;
  /** Types of the bindings, in order. */
  types: Shader["types"];
}

type Bytes = Uint8Array<ArrayBuffer>;

/** The loader's functions. */
export type Vulkan = ReturnType<typeof openVulkan>;

/** Opens the Vulkan loader; the environment selects the driver. */
export function openVulkan() {
  const create = {
    parameters: ["u64", "buffer", "pointer", "buffer"],
    result: "i32",
  } as const;
  return Deno.dlopen("libvulkan.so.1", {
    vkCreateInstance: {
      parameters: ["buffer", "pointer", "buffer"],
      result: "i32",
    },
    vkEnumeratePhysicalDevices: {
      parameters: ["u64", "buffer", "buffer"],
      result: "i32",
    },
    vkCreateDevice: create,
    vkCreateShaderModule: create,
    vkCreateDescriptorSetLayout: create,
    vkCreatePipelineLayout: create,
    vkCreateComputePipelines: {
      parameters: ["u64", "u64", "u32", "buffer", "pointer", "buffer"],
      result: "i32",
    },
    vkGetDeviceProcAddr: { parameters: ["u64", "buffer"], result: "pointer" },
  }).symbols;
}

/** The VkStructureType values used here. */
const TYPE = {
  applicationInfo: 0,
  instanceCreateInfo: 1,
  deviceQueueCreateInfo: 2,
  deviceCreateInfo: 3,
  shaderModuleCreateInfo: 16,
  pipelineShaderStageCreateInfo: 18,
  computePipelineCreateInfo: 29,
  pipelineLayoutCreateInfo: 30,
  descriptorSetLayoutCreateInfo: 32,
  robustness2Features: 1000286000,
  executablePropertiesFeatures: 1000269000,
  pipelineInfo: 1000269001,
  executableProperties: 1000269002,
  executableInfo: 1000269003,
  executableStatistic: 1000269004,
};
const INCOMPLETE = 5;

/** Memory that Vulkan reads, kept alive during a call. */
class Memory implements Disposable {
  #kept: Bytes[] = [];

  /** The address of `bytes`. */
  at(bytes: Bytes): bigint {
    this.#kept.push(bytes);
    return BigInt(Deno.UnsafePointer.value(Deno.UnsafePointer.of(bytes)));
  }

  /** The address of a text, ended by a 0. */
  text(text: string): bigint {
    return this.at(cText(text));
  }

  /** The address of an array of u64. */
  array(values: readonly bigint[]): bigint {
    return this.at(new Uint8Array(BigUint64Array.from(values).buffer));
  }

  [Symbol.dispose](): void {
    this.#kept = [];
  }
}

/** A structure of `size` bytes: u32 where a field is a number, u64 where it is a bigint. */
function struct(
  size: number,
  fields: Readonly<Record<number, number | bigint>>,
): Bytes {
  const bytes = new Uint8Array(size), view = new DataView(bytes.buffer);
  for (const [offset, value] of Object.entries(fields)) {
    if (typeof value === "bigint") {
      view.setBigUint64(Number(offset), value, true);
    } else view.setUint32(Number(offset), value, true);
  }
  return bytes;
}

const cText = (text: string): Bytes => new TextEncoder().encode(`${text}\0`);
const textAt = (bytes: Bytes, offset: number) =>
  new TextDecoder().decode(bytes.subarray(offset, bytes.indexOf(0, offset)));

/** Returns the handle that a call writes. */
function handle(
  what: string,
  call: (out: Bytes) => number,
  fine = [0],
): bigint {
  const out = new Uint8Array(8);
  const result = call(out);
  if (!fine.includes(result)) {
    throw new Error(
      `Cannot compile for RADV: ${what} returned VkResult ${result}`,
    );
  }
  return new BigUint64Array(out.buffer)[0];
}

/** A device on which pipelines are only compiled. */
export interface NullDevice {
  vulkan: Vulkan;
  device: bigint;
  /** VK_KHR_pipeline_executable_properties. */
  properties: Query;
  statistics: Query;
}
type Query = (device: bigint, info: Bytes, count: Bytes, out: Bytes) => number;

/** Opens a device of the chip in RADV_FORCE_FAMILY, with the features that Deno enables. */
export function openNullDevice(vulkan: Vulkan): NullDevice {
  using memory = new Memory();
  const application = struct(48, {
    0: TYPE.applicationInfo,
    44: 1 << 22 | 3 << 12,
  }); // Vulkan 1.3
  const instance = handle("vkCreateInstance", (out) =>
    vulkan.vkCreateInstance(
      struct(64, { 0: TYPE.instanceCreateInfo, 24: memory.at(application) }),
      null,
      out,
    ));
  const one = new Uint8Array(Uint32Array.of(1).buffer);
  const physical = handle(
    "vkEnumeratePhysicalDevices",
    (out) => vulkan.vkEnumeratePhysicalDevices(instance, one, out),
    [0, INCOMPLETE],
  );
  if (!physical) {
    throw new Error(
      `Cannot compile for RADV: this Mesa does not know the chip ${
        Deno.env.get("RADV_FORCE_FAMILY")
      }`,
    );
  }
  const executables = struct(24, {
    0: TYPE.executablePropertiesFeatures,
    16: 1,
  });
  // Robustness affects how loads compile: of buffers and images, as wgpu requests.
  const robustness = struct(32, {
    0: TYPE.robustness2Features,
    8: memory.at(executables),
    16: 1,
    20: 1,
  });
  const queue = struct(40, {
    0: TYPE.deviceQueueCreateInfo,
    24: 1,
    32: memory.at(new Uint8Array(Float32Array.of(1).buffer)),
  });
  const extensions = [
    "VK_EXT_robustness2",
    "VK_KHR_pipeline_executable_properties",
  ];
  const info = struct(72, {
    0: TYPE.deviceCreateInfo,
    8: memory.at(robustness),
    20: 1,
    24: memory.at(queue),
    48: extensions.length,
    56: memory.array(extensions.map((name) => memory.text(name))),
    64: memory.at(struct(220, { 0: 1 })), // VkPhysicalDeviceFeatures: robustBufferAccess
  });
  const device = handle(
    "vkCreateDevice",
    (out) => vulkan.vkCreateDevice(physical, info, null, out),
  );
  const query = (name: string): Query => {
    const pointer = vulkan.vkGetDeviceProcAddr(device, cText(name));
    if (!pointer) throw new Error(`Cannot compile for RADV: it has no ${name}`);
    const call = new Deno.UnsafeFnPointer(
      pointer as Deno.PointerObject<never>,
      { parameters: ["u64", "buffer", "buffer", "buffer"], result: "i32" },
    );
    return (...args) => call.call(...args);
  };
  return {
    vulkan,
    device,
    properties: query("vkGetPipelineExecutablePropertiesKHR"),
    statistics: query("vkGetPipelineExecutableStatisticsKHR"),
  };
}

/** RADV's statistics of one shader. */
export function compileOn(on: NullDevice, shader: Spirv): CompiledShader {
  using memory = new Memory();
  return statisticsOf(on, createPipeline(on, shader, memory));
}

/** A compute pipeline that keeps its statistics. */
function createPipeline(
  { vulkan, device }: NullDevice,
  { words, types }: Spirv,
  memory: Memory,
): bigint {
  const STORAGE = 7, UNIFORM = 6, SAMPLED_IMAGE = 2;
  const COMPUTE = 0x20, CAPTURE_STATISTICS = 0x40;
  const bindings = new Uint8Array(24 * types.length);
  types.forEach((of, i) => {
    const type = of === "texels"
      ? SAMPLED_IMAGE
      : of === "uniform"
      ? UNIFORM
      : STORAGE;
    bindings.set(struct(24, { 0: i, 4: type, 8: 1, 12: COMPUTE }), 24 * i);
  });
  const setInfo = struct(32, {
    0: TYPE.descriptorSetLayoutCreateInfo,
    20: types.length,
    24: memory.at(bindings),
  });
  const set = handle(
    "vkCreateDescriptorSetLayout",
    (out) => vulkan.vkCreateDescriptorSetLayout(device, setInfo, null, out),
  );
  const layoutInfo = struct(48, {
    0: TYPE.pipelineLayoutCreateInfo,
    20: 1,
    24: memory.array([set]),
  });
  const layout = handle(
    "vkCreatePipelineLayout",
    (out) => vulkan.vkCreatePipelineLayout(device, layoutInfo, null, out),
  );
  const moduleInfo = struct(40, {
    0: TYPE.shaderModuleCreateInfo,
    24: BigInt(words.length),
    32: memory.at(words),
  });
  const module = handle(
    "vkCreateShaderModule",
    (out) => vulkan.vkCreateShaderModule(device, moduleInfo, null, out),
  );
  const pipelineInfo = struct(96, {
    0: TYPE.computePipelineCreateInfo,
    16: CAPTURE_STATISTICS,
    24: TYPE.pipelineShaderStageCreateInfo,
    44: COMPUTE,
    48: module,
    56: memory.text("main"),
    72: layout,
  });
  return handle(
    "vkCreateComputePipelines",
    (out) =>
      vulkan.vkCreateComputePipelines(device, 0n, 1, pipelineInfo, null, out),
  );
}

function statisticsOf(
  { device, ...query }: NullDevice,
  pipeline: bigint,
): CompiledShader {
  const count = (n: number) => new Uint8Array(Uint32Array.of(n).buffer);
  const check = (what: string, result: number) => {
    if (result) {
      throw new Error(
        `Cannot compile for RADV: ${what} returned VkResult ${result}`,
      );
    }
  };
  const properties = struct(536, { 0: TYPE.executableProperties });
  check(
    "vkGetPipelineExecutablePropertiesKHR",
    query.properties(
      device,
      struct(24, { 0: TYPE.pipelineInfo, 16: pipeline }),
      count(1),
      properties,
    ),
  );
  const MOST = 64, SIZE = 544; // statistics at most, and bytes of each
  const statistics = new Uint8Array(SIZE * MOST), found = count(MOST);
  for (let i = 0; i < MOST; i++) {
    statistics.set(struct(4, { 0: TYPE.executableStatistic }), SIZE * i);
  }
  check(
    "vkGetPipelineExecutableStatisticsKHR",
    query.statistics(
      device,
      struct(32, { 0: TYPE.executableInfo, 16: pipeline }),
      found,
      statistics,
    ),
  );
  const view = new DataView(statistics.buffer);
  return {
    wave: new DataView(properties.buffer).getUint32(532, true),
    statistics: new Map(
      Array.from({ length: new Uint32Array(found.buffer)[0] }, (_, i) => [
        textAt(statistics, SIZE * i + 16),
        Number(view.getBigUint64(SIZE * i + 536, true)),
      ]),
    ),
  };
}
