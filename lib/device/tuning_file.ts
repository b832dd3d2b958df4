/**
 * The file with an adapter's tuned constants in the cache directory: read when a device
 * is opened, written by `deno task tune`.
 *
 * @module
 */
import type { Choice } from "../dispatch/choice.ts";
import {
  type HashedKernel,
  type Identity,
  type LoadedTuning,
  parseTuning,
  type TunedEntry,
  tuningText,
} from "../dispatch/tuned.ts";
import { errorText } from "../errors.ts";
import { host, ownCacheFolder, textHash } from "../host.ts";
import type { Gpu } from "../webgpu/device.ts";

/**
 * Environment variable that replaces the folder for tuned constants in the user's cache
 * directory.
 */
export const TUNING_DIR = "QWEN3_TUNING_DIR";

/**
 * The part of a {@linkcode Gpu} that tuned constants depend on, and `tuned`, which
 * holds them.
 */
export type TunedDevice = Pick<
  Gpu,
  "adapter" | "tuned" | "subgroupSize" | "adapterClass" | "limits"
>;

/** Loads every kernel, which only a file with constants is worth. */
async function hashedKernels(): Promise<HashedKernel[]> {
  const { TUNED_KERNELS } = await import("../../kernels/list.ts");
  return await Promise.all(
    TUNED_KERNELS.map(async ({ name, tuning, body }) => ({
      name,
      tuning,
      hash: await textHash(body),
    })),
  );
}

function identityOf({ adapter: { info } }: Pick<Gpu, "adapter">): Identity {
  const { vendor, architecture, device, description } = info;
  return {
    vendor,
    architecture,
    device,
    description,
    subgroups: `${info.subgroupMinSize} to ${info.subgroupMaxSize}`,
    os: host.runtime.os,
    deno: host.runtime.version,
  };
}

/** Returns the path of an adapter's tuning file. */
export async function tuningPath(gpu: Pick<Gpu, "adapter">): Promise<string> {
  const { vendor, architecture, device, description } = identityOf(gpu);
  const slug = description.toLowerCase().replaceAll(/[^a-z0-9]+/g, "-")
    .replaceAll(/^-|-$/g, "").slice(0, 40);
  const id = await textHash(
    [vendor, architecture, device, description].join("\n"),
  );
  return `${host.env(TUNING_DIR) ?? ownCacheFolder()}/tuned-${
    slug || "adapter"
  }-${id}.json`;
}

/**
 * Loads an adapter's tuned constants, if there are any, into `gpu.tuned`. If the file
 * cannot be used, the choice is `off` with the reason; the device still opens.
 */
export async function loadTuning(gpu: TunedDevice): Promise<Choice> {
  const choice = (value: string, reason: string): Choice => ({
    what: "tuned constants",
    value,
    reason,
  });
  try {
    if (!mayRead()) {
      return choice(
        "off",
        "reading the environment or the cache directory is not permitted",
      );
    }
    const path = await tuningPath(gpu);
    const loaded = await read(path, gpu);
    if (!loaded) {
      return choice("none", `deno task tune would store them in ${path}`);
    }
    const { entries, stale } = loaded;
    for (const [key, { constants }] of entries) gpu.tuned.set(key, constants);
    const left = [...stale].map(([kernel, count]) =>
      `${count} of ${kernel} skipped, its WGSL changed since tuning: run deno task tune again`
    );
    return choice(
      entries.size === 0
        ? "none"
        : `${entries.size} ${entries.size === 1 ? "shape" : "shapes"}`,
      [entries.size ? `from ${path}` : `${path} has none`, ...left].join(
        "; ",
      ),
    );
  } catch (error) {
    return choice("off", errorText(error));
  }
}

/** Checks permissions without prompting: a script may run with few. */
function mayRead(): boolean {
  return (["env", "read"] as const).every((name) => host.isGranted(name));
}

/**
 * Saves the result for each key; undefined means that the defaults are best. The file's
 * entries for other keys are kept. Returns the path and, if an unusable file was
 * replaced, what was wrong with it.
 *
 * @throws {Error} if the file cannot be written.
 */
export async function saveTuning(
  gpu: TunedDevice,
  found: ReadonlyMap<string, TunedEntry | undefined>,
): Promise<{ path: string; replaced?: string }> {
  const path = await tuningPath(gpu);
  let entries = new Map<string, TunedEntry>(), replaced: string | undefined;
  try {
    entries = (await read(path, gpu))?.entries ?? entries;
  } catch (error) {
    replaced = errorText(error);
  }
  for (const [key, entry] of found) {
    if (entry) entries.set(key, entry);
    else entries.delete(key);
  }
  const kernels = await hashedKernels();
  const text = tuningText(entries, { identity: identityOf(gpu), kernels });
  try {
    await host.files.writeText(path, text);
  } catch (error) {
    throw new Error(
      `Cannot store tuned constants in ${path}: ${
        errorText(error)
      }; set ${TUNING_DIR} to use another folder`,
    );
  }
  return { path, replaced };
}

/**
 * Reads a tuning file; undefined if there is none. Throws if the file cannot be used.
 */
async function read(
  path: string,
  gpu: TunedDevice,
): Promise<LoadedTuning | undefined> {
  let text: string | undefined;
  try {
    text = await host.files.readText(path);
  } catch (error) {
    throw new Error(`Cannot read ${path}: ${errorText(error)}`);
  }
  if (text === undefined) return undefined;
  return parseTuning(text, path, {
    identity: identityOf(gpu),
    kernels: await hashedKernels(),
    device: gpu,
  });
}
