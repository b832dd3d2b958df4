/**
 * Runs the compiler of AMD's RADV without an AMD card. Deno's WebGPU passes a kernel to
 * Mesa's software driver, which dumps the SPIR-V it receives; the same SPIR-V then goes to
 * RADV with its null hardware.
 *
 * @module
 */
import { openDevice } from "../../device/open_device.ts";
import { bindingsOf, type Chip, type CompiledShader } from "./radv.ts";
import {
  compileOn,
  openNullDevice,
  openVulkan,
  type Spirv,
  type Vulkan,
} from "./vulkan.ts";
import { createPipeline } from "../../webgpu/pipeline.ts";

/** Mesa's drivers in a directory, separate from those installed on this machine. */
export class RadvCompiler implements Disposable {
  readonly #temp: string;
  readonly #libraries: string;
  #vulkan?: Vulkan;

  /**
   * @param mesa the folder with Debian's unpacked packages, or with the libraries
   * themselves
   * @param getMesa the script that gets them, for errors
   * @throws {Error} if Mesa's drivers are not there.
   */
  constructor(mesa: string | undefined, getMesa: string) {
    if (mesa === undefined) {
      throw new Error(
        `Cannot compile for RADV: --mesa DIR is missing; ${getMesa} DIR unpacks Mesa there`,
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
        }; ${getMesa} DIR unpacks them there`,
      );
    }
    this.#libraries = Deno.realPathSync(folder); // the loader wants an absolute path
    this.#temp = Deno.makeTempDirSync({ prefix: "radv_" });
    // The drivers' dependencies are in the same folder, which the loader does not search.
    for (const name of ["libdrm.so.2", "libdrm_amdgpu.so.1"]) {
      if (exists(`${this.#libraries}/${name}`)) {
        Deno.dlopen(`${this.#libraries}/${name}`, {});
      }
    }
    Deno.env.set("MESA_SHADER_CACHE_DISABLE", "true");
    Deno.env.set("MESA_VK_IGNORE_CONFORMANCE_WARNING", "true");
    Deno.env.set("DENO_WEBGPU_BACKEND", "vulkan");
  }

  /** Makes this the only driver that the Vulkan loader finds. */
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
   * Compiles each WGSL text to SPIR-V as Deno does.
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
      const types = bindingsOf(wgsl);
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
        types,
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
  compile(
    chip: Chip,
    shaders: readonly Spirv[],
    wave32 = false,
  ): CompiledShader[] {
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
