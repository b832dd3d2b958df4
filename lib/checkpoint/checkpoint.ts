/**
 * The interface of a checkpoint: configuration, named tensors and text files.
 *
 * @module
 */
import type { Format } from "../formats/format.ts";
import type { GenerationDefaults } from "./generation_config.ts";
import type { Qwen3Config } from "./config.ts";

/** The description of one stored tensor. */
export interface TensorInfo {
  name: string;
  format: Format;
  shape: number[];
  /** Size as stored, in bytes. */
  byteLength: number;
}

/** A tokenizer's files, parsed. */
export interface StoredTokenizer {
  /** As `tokenizer.json`; the vocabulary is a Map of tokens to ids. */
  tokenizer: Record<string, unknown>;
  /** As `tokenizer_config.json`. */
  config: Record<string, unknown>;
}

/** What a model is for if it does not generate text. */
export interface Purpose {
  /** Such as `an embedding model`. */
  is: string;
  /** How the files say so. */
  why: string;
}

/**
 * The tensor of a reranker that has one, `[2, hidden]`: the rows of the LM head for yes and
 * for no.
 */
export const CLASSIFIER = "classifier";

/** An open checkpoint. Only headers have been read; weights are read on demand. */
export interface Checkpoint extends AsyncDisposable {
  /** The name the caller used: a path, a URL, a repository id or `synthetic:…`. */
  name: string;
  /** The folder, URL or cache entry that it resolved to. */
  location: string;
  config: Qwen3Config;
  generation: GenerationDefaults;
  /**
   * The tensors that the model needs, by the names that its family uses, and
   * {@linkcode CLASSIFIER}.
   */
  tensors: ReadonlyMap<string, TensorInfo>;
  /** What a user should know about the files, such as unused tensors. */
  notices: readonly string[];
  /** Fills `into` with bytes of a tensor, starting at byte `begin`. */
  read(name: string, begin: number, into: Uint8Array): Promise<void>;
  /**
   * Reads a text file next to the weights (`tokenizer.json`, …); undefined if there is
   * none.
   */
  text(file: string): Promise<string | undefined>;
  /** What the files of a tokenizer would hold; set if the weights' file has it. */
  tokenizer?: () => StoredTokenizer;
  /** Set if the files are of a model that only embeds or ranks texts. */
  only?: Purpose;
  /** A reranker's prompt, with `{query}` and `{document}`, if the weights' file has it. */
  rerankTemplate?: string;
  /**
   * Set if tensors are quantised as they are read: the checkpoint as it is stored, for a
   * device that can do that itself.
   */
  original?: Checkpoint;
  /** Ends threads that reading started; the next read starts them again. */
  pause?(): void;
  /** Set if the weights follow the synthetic rule, so that a device can compute them itself. */
  synthetic?: { seed: number };
}
