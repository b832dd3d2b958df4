/**
 * AMD's RADV as a compiler, on a machine without an AMD card: Deno's WebGPU hands a
 * kernel to Mesa's software driver, which writes down the SPIR-V that it was given;
 * the same SPIR-V then goes to RADV on its null hardware.
 *
 * @module
 */
import { openDevice } from "../../open_device.ts";
import type { Chip, Compiled } from "./radv.ts";
import {
  compileOn,
  openNullDevice,
  openVulkan,
  type Spirv,
  type Vulkan,
} from "./vulkan.ts";
import { createPipeline } from "../../webgpu/pipeline.ts";

const GET_MESA =
  "tasks/get_mesa.sh DIR unpacks Debian's mesa-vulkan-drivers (25 or later), libdrm2 and libdrm-amdgpu1 there";

/** Mesa's drivers in a directory, kept apart from whatever this machine has. */
export class RadvCompiler implements Disposable {
  readonly #temp: string;
  readonly #libraries: string;
  #vulkan?: Vulkan;

  /**
   * @param mesa where Debian's packages were unpacked, or the folder of the libraries itself
   * @throws {Error} if Mesa's drivers are not there.
   */
  constructor(mesa: string | undefined) {
    if (mesa === undefined) {
      throw new Error(
        `Cannot compile for RADV: --mesa DIR is missing; ${GET_MESA}`,
      );
    }
    const needed = ["libvulkan_radeon.so", "libvulkan_lvp.so"];
    const folders = [
      `${mesa}/usr/lib/x86_64-linux-gnu`,
      `${mesa}/lib/x86_64-linux-gnu`,
      mesa,
    ];
    const folder = folders.find((at) =>
      needed.every((name) => exists(`${at}/${name}`))
    );
    if (!folder) {
      throw new Error(
        `Cannot compile for RADV: ${mesa} has no ${
          needed.join(" and ")
        }; ${GET_MESA}`,
      );
    }
    this.#libraries = Deno.realPathSync(folder); // the loader wants an absolute path
    this.#temp = Deno.makeTempDirSync({ prefix: "radv_" });
    // What the drivers load is beside them, where the loader does not look.
    for (const name of ["libdrm.so.2", "libdrm_amdgpu.so.1"]) {
      if (exists(`${this.#libraries}/${name}`)) {
        Deno.dlopen(`${this.#libraries}/${name}`, {});
      }
    }
    Deno.env.set("MESA_SHADER_CACHE_DISABLE", "true");
    Deno.env.set("MESA_VK_IGNORE_CONFORMANCE_WARNING", "true");
    Deno.env.set("DENO_WEBGPU_BACKEND", "vulkan");
  }

  /** Leaves the Vulkan loader no driver but this one. */
  #use(driver: "lvp" | "radeon"): void {
    const manifest = `${this.#temp}/${driver}.json`;
    const library_path = `${this.#libraries}/libvulkan_${driver}.so`;
    Deno.writeTextFileSync(
      manifest,
      JSON.stringify({
        file_format_version: "1.0.0",
        ICD: { library_path, api_version: "1.3.0" },
      }),
    );
    Deno.env.set("VK_DRIVER_FILES", manifest);
  }

  /**
   * The SPIR-V of each WGSL text, as Deno makes it.
   *
   * @throws {Error} if one of them does not compile.
   */
  async spirv(
    kernels: readonly { wgsl: string; kernel: string }[],
  ): Promise<Spirv[]> {
    this.#use("lvp");
    Deno.env.set("MESA_SPIRV_DUMP_PATH", this.#temp);
    const made: Spirv[] = [];
    using gpu = await openDevice();
    for (const { wgsl, kernel } of kernels) {
      const { device } = gpu;
      for (const name of this.#dumps()) Deno.removeSync(name);
      device.pushErrorScope("validation");
      const storage = [...wgsl.matchAll(/var<storage, (read(?:_write)?)>/g)]
        .map(([, mode]): GPUBufferBindingType =>
          mode === "read" ? "read-only-storage" : "storage"
        );
      const types = [...storage, "uniform" as const];
      createPipeline(device, { label: kernel, code: wgsl, types });
      const error = await device.popErrorScope();
      const dumps = this.#dumps();
      if (error || dumps.length !== 1) {
        throw new Error(
          `Cannot compile ${kernel}: ${
            error?.message ??
              `${gpu.name} wrote ${dumps.length} SPIR-V files, must be 1`
          }`,
        );
      }
      made.push({
        words: Deno.readFileSync(dumps[0]),
        buffers: storage.length,
      });
    }
    Deno.env.delete("MESA_SPIRV_DUMP_PATH");
    return made;
  }

  #dumps(): string[] {
    return [...Deno.readDirSync(this.#temp)].map(({ name }) => name)
      .filter((name) => name.endsWith(".spirv")).map((name) =>
        `${this.#temp}/${name}`
      );
  }

  /** RADV's statistics of each shader on a chip; `wave32` as with RADV_PERFTEST=cswave32. */
  compile(chip: Chip, shaders: readonly Spirv[], wave32 = false): Compiled[] {
    this.#use("radeon");
    Deno.env.set("RADV_FORCE_FAMILY", chip.name);
    Deno.env.set("RADV_PERFTEST", wave32 ? "cswave32" : "");
    this.#vulkan ??= openVulkan();
    const device = openNullDevice(this.#vulkan);
    return shaders.map((shader) => compileOn(device, shader));
  }

  [Symbol.dispose](): void {
    Deno.removeSync(this.#temp, { recursive: true });
  }
}

function exists(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}
