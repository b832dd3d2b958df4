/**
 * A checkpoint as the loaders see it: configuration, named tensors and text files.
 *
 * @module
 */
import type { Format } from "../formats/format.ts";
import type { GenerationDefaults, Qwen3Config } from "./config.ts";

/** One stored tensor. */
export interface TensorInfo {
  name: string;
  format: Format;
  shape: number[];
  /** Bytes as stored. */
  byteLength: number;
}

/** An opened checkpoint. Nothing but headers has been read. */
export interface Checkpoint extends AsyncDisposable {
  /** As a person would write it: a path, a URL, a repository id or `synthetic:…`. */
  name: string;
  /** The folder, URL or cache entry that it resolved to. */
  location: string;
  config: Qwen3Config;
  generation: GenerationDefaults;
  tensors: ReadonlyMap<string, TensorInfo>;
  /** Fills `into` with the bytes of a tensor from byte `begin` on. */
  read(name: string, begin: number, into: Uint8Array): Promise<void>;
  /** A text file beside the weights (`tokenizer.json`, …), or undefined where there is none. */
  text(file: string): Promise<string | undefined>;
  /** Set where the weights follow the synthetic rule, so that a device may make them itself. */
  synthetic?: { seed: number };
}
