/**
 * One generation: token ids from a runner, as text.
 *
 * @module
 */
import type { Runner } from "./runner.ts";
import type { Sampling, SamplingOptions } from "./sampling.ts";
import { TextStream } from "./text_stream.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** What `generate` takes beside the prompt. */
export interface GenerateOptions extends SamplingOptions {
  /** Tokens at most; by default what the context has room for. */
  maxTokens?: number;
  /** Ends the text before the first of these strings. */
  stop?: string | string[];
  /** Goes on past the checkpoint's end-of-text tokens. */
  ignoreEos?: boolean;
  /** A system message, for instruct checkpoints. */
  system?: string;
  /** Whether an instruct checkpoint may think first; left to its template by default. */
  thinking?: boolean;
  /** Takes the prompt as it is, without the chat template. */
  raw?: boolean;
  /** Ends the run at the next chunk of tokens; `finishReason` is then "aborted". */
  signal?: AbortSignal;
}

/** A token and the text that became whole with it; the text may be empty. */
export interface Piece {
  text: string;
  /** null: text that was held back and is released at the end, without a new token. */
  tokenId: number | null;
}

/** How a run went. Rates are tokens per second. */
export interface RunStats {
  promptTokens: number;
  /** Tokens generated so far, an end-of-text token included. */
  tokens: number;
  timeToFirstTokenMs: number;
  prefillTokensPerSecond: number;
  /** Of the tokens after the first. */
  decodeTokensPerSecond: number;
  /** The sampling that was in force, seed included. */
  sampling: Sampling;
  /** All of it in a line. */
  summary: string;
}

/** Why a run ended. */
export type FinishReason = "stop" | "length" | "aborted";

/** What a run needs from the model. */
export interface RunParts {
  /** Called when iteration begins; yields chunks of ids. */
  start: () => ReturnType<Runner["generate"]>;
  promptTokens: number;
  maxTokens: number;
  sampling: Sampling;
  eosTokenIds: readonly number[];
  stop: readonly string[];
  /** Undefined: the checkpoint has none, pieces then have no text. */
  tokenizer?: Tokenizer;
  /** What runs it, for the summary. */
  device: () => string;
  signal?: AbortSignal;
}

/** A run of `generate`: iterate over it once. */
export class Run implements AsyncIterable<Piece> {
  /** Set when the run is over. */
  finishReason: FinishReason | undefined;
  /** Ids generated so far, an end-of-text token included. */
  readonly tokenIds: number[] = [];
  readonly #parts: RunParts;
  readonly #text?: TextStream;
  #began = 0;
  #first = 0;
  #last = 0;
  #started = false;

  constructor(parts: RunParts) {
    const { tokenizer, stop } = parts;
    this.#parts = parts;
    this.#text = tokenizer && new TextStream(tokenizer, { stop });
  }

  /** How the run goes, or went. */
  get stats(): RunStats {
    const { promptTokens, sampling, device } = this.#parts;
    const tokens = this.tokenIds.length;
    const firstMs = this.#first - this.#began;
    const rate = (n: number, ms: number) => ms > 0 ? n / ms * 1000 : 0;
    const prefill = rate(promptTokens, firstMs);
    const decode = rate(tokens - 1, this.#last - this.#first);
    const whole = (n: number) => n >= 100 ? Math.round(n) : n.toFixed(1);
    return {
      promptTokens,
      tokens,
      timeToFirstTokenMs: firstMs,
      prefillTokensPerSecond: prefill,
      decodeTokensPerSecond: decode,
      sampling,
      summary:
        `${device()}: ${promptTokens} prompt tokens at ${whole(prefill)}/s, ` +
        `${tokens} tokens at ${whole(decode)}/s, the first after ${
          firstMs.toFixed(0)
        } ms`,
    };
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Piece, void> {
    if (this.#started) {
      throw new Error(
        "Cannot iterate over a run twice: call generate again for another",
      );
    }
    this.#started = true;
    const { eosTokenIds, signal, maxTokens } = this.#parts;
    const text = this.#text;
    const ended = new Set(eosTokenIds);
    this.#began = performance.now();
    try {
      signal?.throwIfAborted();
      for await (const ids of this.#parts.start()) {
        this.#last = performance.now();
        if (this.#first === 0) this.#first = this.#last;
        for (const tokenId of ids) {
          signal?.throwIfAborted();
          this.tokenIds.push(tokenId);
          const eos = ended.has(tokenId);
          const piece = eos ? undefined : text?.push(tokenId);
          const full = this.tokenIds.length === maxTokens;
          const over = eos || piece?.stopped || full;
          const rest = over ? text?.flush() ?? "" : "";
          if (over) {
            const stopped = eos || text?.stopped;
            this.finishReason = stopped ? "stop" : "length";
          }
          yield { text: (piece?.text ?? "") + rest, tokenId };
          if (over) return;
        }
      }
    } catch (error) {
      if (!signal?.aborted) throw error;
      this.finishReason = "aborted";
      const rest = text?.flush();
      if (rest) yield { text: rest, tokenId: null };
    } finally {
      this.finishReason ??= "aborted"; // the consumer left
    }
  }
}
