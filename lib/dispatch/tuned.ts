/**
 * Constants that `deno task tune` found best on an adapter: a file for each adapter
 * in the cache directory, read whenever a device is opened.
 *
 * @module
 */
import { attendDecode } from "../../kernels/attend_decode.ts";
import { gemm } from "../../kernels/gemm.ts";
import { gemv } from "../../kernels/gemv.ts";
import { gemvRows } from "../../kernels/gemv_rows.ts";
import type { Choice } from "./choice.ts";
import type { Gpu } from "../webgpu/device.ts";
import { isObject, parseJson } from "../json.ts";
import { isAbsent } from "../checkpoint/sources.ts";
import { type Candidate, misfit } from "../tools/tune/candidates.ts";
import { parseKey, TUNED_KERNELS, type TunedKernel } from "./keys.ts";

/** Names the folder of tuned constants, instead of one in the user's cache directory. */
export const TUNING_DIR = "QWEN3_TUNING_DIR";

/** Of the file; another one is refused. */
const VERSION = 1;

/** What was measured for one key. */
export interface TunedEntry {
  constants: Candidate;
  /** Share of a pass that they save over the defaults, and its spread between rounds. */
  gain: number;
  spread: number;
  /** The model in whose passes that was measured. */
  model: string;
}

/** What makes constants of one machine those of another. */
interface Identity {
  vendor: string;
  architecture: string;
  device: string;
  /** Names the driver too, where the adapter tells. */
  description: string;
  subgroups: string;
  os: string;
  /** Its shader compiler comes with it. */
  deno: string;
}

interface TuningFile {
  version: number;
  adapter: Identity;
  /** Hash of each kernel's WGSL when it was tuned. */
  kernels: Partial<Record<TunedKernel, string>>;
  constants: Record<string, TunedEntry>;
}

/** What a file holds for this adapter as it is today. */
interface Loaded {
  entries: Map<string, TunedEntry>;
  /** Kernels whose text is another one since, with how many of their entries. */
  stale: Map<TunedKernel, number>;
}

const BODIES: Record<TunedKernel, string> = {
  gemv: gemv.body,
  gemvRows: gemvRows.body,
  gemm: gemm.body,
  attendDecode: attendDecode.body,
};

/** A short SHA-256. */
async function hash(text: string): Promise<string> {
  const data = new TextEncoder().encode(text);
  const digest = await crypto.subtle.digest("SHA-256", data);
  return [...new Uint8Array(digest).subarray(0, 8)]
    .map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function identity({ adapter: { info } }: Pick<Gpu, "adapter">): Identity {
  const { vendor, architecture, device, description } = info;
  return {
    ...{ vendor, architecture, device, description },
    subgroups: `${info.subgroupMinSize} to ${info.subgroupMaxSize}`,
    os: Deno.build.os,
    deno: Deno.version.deno,
  };
}

/** Where tuned constants are kept. */
function folder(): string {
  const env = (name: string) => Deno.env.get(name) || undefined;
  const given = env(TUNING_DIR);
  if (given) return given;
  const home = env("HOME") ?? env("USERPROFILE") ?? ".";
  const cache = env("XDG_CACHE_HOME") ??
    (Deno.build.os === "windows"
      ? env("LOCALAPPDATA") ?? `${home}/AppData/Local`
      : Deno.build.os === "darwin"
      ? `${home}/Library/Caches`
      : `${home}/.cache`);
  return `${cache}/qwen3-webgpu`;
}

/** The file of an adapter. */
export async function tuningPath(gpu: Pick<Gpu, "adapter">): Promise<string> {
  const { vendor, architecture, device, description } = identity(gpu);
  const slug = description.toLowerCase().replaceAll(/[^a-z0-9]+/g, "-")
    .replaceAll(/^-|-$/g, "").slice(0, 40);
  const id = await hash([vendor, architecture, device, description].join("\n"));
  return `${folder()}/tuned-${slug || "adapter"}-${id}.json`;
}

/** What of a {@linkcode Gpu} tuned constants depend on, and where they go. */
export type TunedDevice = Pick<
  Gpu,
  "adapter" | "tuned" | "subgroupSize" | "adapterClass" | "limits"
>;

/**
 * Puts an adapter's tuned constants, if there are any, into `gpu.tuned`. A file that
 * cannot be used is `off`, with the reason; it never keeps a device from opening.
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
      return choice("none", `there is no ${path}; deno task tune makes it`);
    }
    const { entries, stale } = loaded;
    for (const [key, { constants }] of entries) gpu.tuned.set(key, constants);
    const left = [...stale].map(([kernel, count]) =>
      `${count} of ${kernel} are left out, its text is another one since: run deno task tune again`
    );
    return choice(
      entries.size === 0
        ? "none"
        : `${entries.size} ${entries.size === 1 ? "shape" : "shapes"}`,
      [entries.size ? `from ${path}` : `${path} holds none`, ...left].join(
        "; ",
      ),
    );
  } catch (error) {
    return choice("off", messageOf(error));
  }
}

/** Without asking anyone: a script may have few permissions. */
function mayRead(): boolean {
  return (["env", "read"] as const).every((name) =>
    Deno.permissions.querySync({ name }).state === "granted"
  );
}

/**
 * Stores what was found for each key, undefined where the defaults are best; what the
 * file has for other keys stays. Returns where it is, and what was wrong with the
 * file that it replaces.
 *
 * @throws {Error} if it cannot be written.
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
    replaced = messageOf(error);
  }
  for (const [key, entry] of found) {
    if (entry) entries.set(key, entry);
    else entries.delete(key);
  }
  const kernels: TuningFile["kernels"] = {};
  for (const kernel of TUNED_KERNELS) {
    kernels[kernel] = await hash(BODIES[kernel]);
  }
  const file: TuningFile = {
    version: VERSION,
    adapter: identity(gpu),
    kernels,
    constants: Object.fromEntries([...entries].sort()),
  };
  try {
    await Deno.mkdir(path.slice(0, path.lastIndexOf("/")), { recursive: true });
    const unfinished = `${path}.${crypto.randomUUID()}`;
    await Deno.writeTextFile(unfinished, JSON.stringify(file, null, 2) + "\n");
    await Deno.rename(unfinished, path);
  } catch (error) {
    throw new Error(
      `Cannot store tuned constants in ${path}: ${
        messageOf(error)
      }; ${TUNING_DIR} names another folder`,
    );
  }
  return { path, replaced };
}

/** Reads a file; undefined where there is none. Throws what is wrong with it. */
async function read(
  path: string,
  gpu: TunedDevice,
): Promise<Loaded | undefined> {
  let text: string;
  try {
    text = await Deno.readTextFile(path);
  } catch (error) {
    if (isAbsent(error)) return undefined;
    throw new Error(`Cannot read ${path}: ${messageOf(error)}`);
  }
  const refuse = (why: string) => {
    throw new Error(`Cannot use ${path}: ${why}; run deno task tune again`);
  };
  const file = parseJson(text, path);
  if (!isObject(file)) return refuse("it is damaged, it must be an object");
  const { version, adapter, kernels, constants } = file;
  if (version !== VERSION) {
    return refuse(`its version is ${version}, must be ${VERSION}`);
  }
  if (!isObject(adapter) || !isObject(kernels) || !isObject(constants)) {
    return refuse("it is damaged, it must have adapter, kernels and constants");
  }
  for (const [name, value] of Object.entries(identity(gpu))) {
    if (adapter[name] === value) continue;
    return refuse(
      `it was made where ${name} is ${adapter[name]}, here it is ${value}`,
    );
  }
  const loaded: Loaded = { entries: new Map(), stale: new Map() };
  for (const [key, entry] of Object.entries(constants)) {
    const target = parseKey(key);
    if (!target || !isEntry(entry)) {
      return refuse(`it is damaged at "${key}"`);
    }
    const { kernel } = target;
    if (kernels[kernel] !== await hash(BODIES[kernel])) {
      loaded.stale.set(kernel, (loaded.stale.get(kernel) ?? 0) + 1);
      continue;
    }
    const problem = misfit(target, entry.constants, gpu);
    if (problem) return refuse(`it is damaged at "${key}": ${problem}`);
    loaded.entries.set(key, entry);
  }
  return loaded;
}

function isEntry(json: unknown): json is TunedEntry {
  return isObject(json) && isObject(json.constants) &&
    typeof json.gain === "number" && typeof json.spread === "number" &&
    typeof json.model === "string";
}

function messageOf(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return text.replaceAll(/\s+/g, " ");
}
