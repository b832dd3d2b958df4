/**
 * Rows that need a fresh process: loading, memory, first use.
 *
 * @module
 */
import type { Fresh } from "./fresh.ts";
import type { DeviceOptions } from "../lib/webgpu/implementation.ts";
import { cleanOnSignal } from "../tasks/interrupts.ts";
import { CheckpointFolder } from "./checkpoint_folder.ts";
import { measure, type Measured, Unmeasurable } from "./report.ts";
import { type BenchSetting, FEW_RUNS } from "./setting.ts";

const PROMPT = 128;
/** Variables that set where drivers cache compiled shaders. */
const SHADER_CACHES = ["__GL_SHADER_DISK_CACHE_PATH", "MESA_SHADER_CACHE_DIR"];

/** Runs fresh processes, once for all rows. */
export class FreshProcesses {
  #seen?: Promise<{ runtime: Fresh; loaded: Required<Fresh>[] }>;

  /** From the call to `loadQwen3` until the weights are on the device. */
  async load(setting: BenchSetting): Promise<Measured> {
    const { loaded } = await this.#see(setting);
    return {
      measures: [
        measure("loadQwen3", "ms", loaded.map(({ loaded }) => loaded.loadMs)),
      ],
    };
  }

  /** Peak memory above that of a process that only opens a device. */
  async memory(setting: BenchSetting): Promise<Measured> {
    const { runtime, loaded } = await this.#see(setting);
    const above = (bytes: number) => (bytes - runtime.peakBytes) / 1e6;
    return {
      measures: [
        measure(
          "peak of loading",
          "MB",
          loaded.map(({ loaded }) => above(loaded.loadPeakBytes)),
        ),
        measure(
          "peak, first tokens too",
          "MB",
          loaded.map(({ peakBytes }) => above(peakBytes)),
        ),
        measure("the runtime's", "MB", [runtime.peakBytes / 1e6]),
      ],
      notes: (await setting.onGpu()).gpu.software
        ? ["a software renderer keeps device memory in host memory"]
        : [],
    };
  }

  /** From the call to `generate` to its first token, compiling every pipeline. */
  async firstUse(setting: BenchSetting): Promise<Measured> {
    const { loaded } = await this.#see(setting);
    return {
      measures: [
        measure(
          "generate",
          "ms",
          loaded.map(({ loaded }) => loaded.firstTokenMs),
        ),
        measure(
          "from the process's start",
          "ms",
          loaded.map(({ loaded }) => loaded.processMs),
        ),
      ],
      notes: ["the driver's shader cache is empty"],
    };
  }

  #see(setting: BenchSetting) {
    return this.#seen ??= see(setting);
  }
}

async function see(setting: BenchSetting) {
  if (Deno.build.os !== "linux") {
    throw new Unmeasurable(
      "peak memory of a process can be read on Linux only",
    );
  }
  const { model, runs, device = {} } = setting.options;
  setting.freeModel();
  await using folder = await CheckpointFolder.of(model);
  const runtime = await fresh(device);
  // The first run, which is discarded, reads the files into the page cache.
  const loaded = await setting.repeat(
    () =>
      fresh(device, folder.path, String(PROMPT)) as Promise<Required<Fresh>>,
    Math.min(runs, FEW_RUNS),
  );
  return { runtime, loaded };
}

async function fresh(
  device: DeviceOptions,
  ...args: string[]
): Promise<Fresh> {
  const script = new URL("fresh.ts", import.meta.url);
  const empty = await Deno.makeTempDir();
  const child = new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "-A", "--no-lock", "--no-check", script.href],
      ...[JSON.stringify(device), ...args],
    ],
    env: Object.fromEntries(SHADER_CACHES.map((name) => [name, empty])),
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  using _ = cleanOnSignal(() => {
    child.kill("SIGKILL");
    Deno.removeSync(empty, { recursive: true });
  });
  const { code, stdout, stderr } = await child.output()
    .finally(() => Deno.remove(empty, { recursive: true }));
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes).trim();
  if (code !== 0) {
    const [why] = text(stderr).split("\n"); // the stack follows
    throw new Error(`Cannot measure a fresh process: ${why}`);
  }
  return JSON.parse(text(stdout).split("\n").at(-1)!);
}
