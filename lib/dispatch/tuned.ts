/**
 * The file format of the constants that `deno task tune` found best on an adapter:
 * parses, checks and formats the text. lib/device/tuning_file.ts reads and writes the file.
 *
 * @module
 */
import type { Capabilities } from "./capabilities.ts";
import { jsonText } from "../errors.ts";
import { isObject, parseJson } from "../json.ts";
import { parseKey } from "./keys.ts";
import { type Candidate, misfit, type Tunable } from "./limits.ts";

/** The file's version; any other is rejected. */
const VERSION = 1;

/** The tuning result for one key. */
export interface TunedEntry {
  constants: Candidate;
  /**
   * Fraction of a pass's time saved over the defaults; `spread` is its spread between
   * rounds.
   */
  gain: number;
  spread: number;
  /** The model whose passes were measured. */
  model: string;
}

/** The environment the constants were measured in; they are valid in no other. */
export interface Identity {
  vendor: string;
  architecture: string;
  device: string;
  /** Includes the driver, if the adapter reports it. */
  description: string;
  subgroups: string;
  os: string;
  /** Deno's version, because Deno includes the shader compiler. */
  deno: string;
}

/** A kernel that can be tuned, and the hash of its WGSL. */
export type HashedKernel = Tunable & { readonly hash: string };

interface TuningFile {
  version: number;
  adapter: Identity;
  /** Hash of each kernel's WGSL when it was tuned. */
  kernels: Record<string, string>;
  constants: Record<string, TunedEntry>;
}

/** The entries of a file that are valid for this adapter. */
export interface LoadedTuning {
  entries: Map<string, TunedEntry>;
  /** Kernels whose WGSL changed since tuning, with the number of their entries. */
  stale: Map<string, number>;
}

/** The environment that a file is read for. */
export interface TuningContext {
  identity: Identity;
  kernels: readonly HashedKernel[];
  device: Capabilities;
}

/**
 * Parses the text of a file.
 *
 * @throws {Error} if the file is damaged, or was made on another machine.
 */
export function parseTuning(
  text: string,
  path: string,
  { identity, kernels, device }: TuningContext,
): LoadedTuning {
  const refuse = (why: string) => {
    throw new Error(`Cannot use ${path}: ${why}; run deno task tune again`);
  };
  const file = parseJson(text, path);
  if (!isObject(file)) return refuse("it is damaged, it must be an object");
  const { version, adapter, kernels: hashes, constants } = file;
  if (version !== VERSION) {
    return refuse(`its version is ${jsonText(version)}, must be ${VERSION}`);
  }
  if (!isObject(adapter) || !isObject(hashes) || !isObject(constants)) {
    return refuse("it is damaged, it must have adapter, kernels and constants");
  }
  for (const [name, value] of Object.entries(identity)) {
    if (adapter[name] === value) continue;
    return refuse(
      `it was made with ${name} ${jsonText(adapter[name])}, must be ${
        jsonText(value)
      }`,
    );
  }
  const loaded: LoadedTuning = { entries: new Map(), stale: new Map() };
  for (const [key, entry] of Object.entries(constants)) {
    const target = parseKey(key);
    const kernel = kernels.find(({ name }) => name === target?.kernel);
    if (!target || !kernel || !isEntry(entry)) {
      return refuse(`it is damaged at ${jsonText(key)}`);
    }
    if (hashes[kernel.name] !== kernel.hash) {
      loaded.stale.set(kernel.name, (loaded.stale.get(kernel.name) ?? 0) + 1);
      continue;
    }
    const problem = misfit(kernel, target, entry.constants, device);
    if (problem) return refuse(`it is damaged at ${jsonText(key)}: ${problem}`);
    loaded.entries.set(key, entry);
  }
  return loaded;
}

/** Formats a file for {@linkcode parseTuning}. */
export function tuningText(
  entries: ReadonlyMap<string, TunedEntry>,
  { identity, kernels }: Omit<TuningContext, "device">,
): string {
  const file: TuningFile = {
    version: VERSION,
    adapter: identity,
    kernels: Object.fromEntries(kernels.map(({ name, hash }) => [name, hash])),
    constants: Object.fromEntries([...entries].sort()),
  };
  return JSON.stringify(file, null, 2) + "\n";
}

function isEntry(json: unknown): json is TunedEntry {
  return isObject(json) && isObject(json.constants) &&
    typeof json.gain === "number" && typeof json.spread === "number" &&
    typeof json.model === "string";
}
