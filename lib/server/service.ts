/**
 * What every endpoint works with: a model, and the limits of the server.
 *
 * @module
 */
import type { GenerateOptions, Run } from "../generate.ts";
import type { Qwen3 } from "../load.ts";
import type { Prompt, TokenizerSource } from "../text/prompt.ts";
import type { Metrics } from "./metrics.ts";
import type { Queue } from "./queue.ts";

/** What generates: an engine, or a model on its own. */
export interface Submitting {
  /**
   * Generates a text, beside others if the model can. It must hand the prompt on to an
   * engine or a model as it is: the server may have encoded it.
   */
  submit(prompt: Prompt, options?: GenerateOptions): Run;
}

/** A model that is served. */
export interface Service {
  readonly qwen: Qwen3;
  readonly engine: Submitting;
  /** What the model is called, its own name first. */
  readonly names: readonly string[];
  /** The chat template; undefined if there is none. */
  readonly chatTemplate: string | undefined;
  readonly queue: Queue;
  /** Vectors are computed for one request at a time. */
  readonly embedding: Queue;
  readonly metrics: Metrics;
  /** When it began, in seconds since 1970. */
  readonly created: number;
  /** Seconds that a request may take. */
  readonly seconds: number;
  /** Milliseconds after which a client that takes nothing is given up. */
  readonly writeMs: number;
}

/** A request for an endpoint. */
export interface Call {
  readonly service: Service;
  readonly body: Record<string, unknown>;
  /** Aborted when the client goes away, at the latest while it is answered. */
  readonly signal: AbortSignal;
  /** Whether the body is so large that Deno notices only then. */
  readonly large: boolean;
}

/** Where text gets its tokenizer from. */
export function sourceOf({ qwen, names: [name] }: Service): TokenizerSource {
  return { name, tokenizer: () => qwen.tokenizer, context: qwen.context };
}

/** A random id, such as `chatcmpl-…`. */
export function newId(prefix: string): string {
  return prefix + crypto.randomUUID().replaceAll("-", "");
}

/** The time in seconds since 1970. */
export function seconds(): number {
  return Math.floor(Date.now() / 1000);
}
