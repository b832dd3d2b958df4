/**
 * Generation of one text or several at once: token ids from a runner, as text.
 *
 * @module
 */
import type { Runner } from "./model/runner.ts";
import type { Sampling, SamplingOptions } from "./model/sampling.ts";
import { TextStream } from "./text/text_stream.ts";
import type { Tokenizer } from "./text/tokenizer.ts";

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

/** A {@linkcode Piece}, and the prompt that it belongs to. */
export interface BatchPiece extends Piece {
  /** From 0, in the order of the prompts. */
  sequence: number;
}

/** How a run went, all its sequences together. Rates are tokens per second. */
export interface RunStats {
  /** Prompts that ran at once; 1 but in a batch. */
  sequences: number;
  promptTokens: number;
  /** Tokens generated so far, an end-of-text token included. */
  tokens: number;
  timeToFirstTokenMs: number;
  prefillTokensPerSecond: number;
  /** Of the tokens after the first of each sequence. */
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
  /** Called when iteration begins; yields chunks of ids, a token of each sequence in turn. */
  start: () => ReturnType<Runner["generate"]>;
  /** Of each sequence: tokens of its prompt, and of its text at most. */
  sizes: readonly { promptTokens: number; maxTokens: number }[];
  sampling: Sampling;
  eosTokenIds: readonly number[];
  stop: readonly string[];
  /** Undefined: the checkpoint has none, pieces then have no text. */
  tokenizer?: Tokenizer;
  /** What runs it, for the summary. */
  device: () => string;
  signal?: AbortSignal;
}

/** What came of one prompt. */
export interface Sequence {
  readonly promptTokens: number;
  /** The text so far. */
  readonly text: string;
  /** Ids generated so far, an end-of-text token included. */
  readonly tokenIds: number[];
  /** Set when it is over. */
  readonly finishReason: FinishReason | undefined;
}

/** A sequence that grows. */
class Growing implements Sequence {
  text = "";
  readonly tokenIds: number[] = [];
  finishReason: FinishReason | undefined;
  readonly #stream?: TextStream;

  constructor(
    readonly promptTokens: number,
    readonly maxTokens: number,
    { tokenizer, stop }: RunParts,
  ) {
    this.#stream = tokenizer && new TextStream(tokenizer, { stop });
  }

  /** Takes a token, which may be the last; returns the text that became whole. */
  take(tokenId: number, ends: ReadonlySet<number>): string {
    this.tokenIds.push(tokenId);
    const stream = this.#stream, eos = ends.has(tokenId);
    let text = eos ? "" : stream?.push(tokenId).text ?? "";
    const full = this.tokenIds.length === this.maxTokens;
    if (eos || stream?.stopped || full) {
      text += stream?.flush() ?? "";
      this.finishReason = eos || stream?.stopped ? "stop" : "length";
    }
    this.text += text;
    return text;
  }

  /** Ends it where it is; returns the text that was held back. */
  abort(): string {
    this.finishReason = "aborted";
    const text = this.#stream?.flush() ?? "";
    this.text += text;
    return text;
  }
}

/**
 * A run of `generateBatch`: iterate over it once. Pieces of all sequences come as
 * they become known; `sequences` has what came of each.
 */
export class BatchRun implements AsyncIterable<BatchPiece> {
  /** In the order of the prompts. */
  readonly sequences: readonly Sequence[];
  readonly #growing: readonly Growing[];
  readonly #parts: RunParts;
  #began = 0;
  #first = 0;
  #last = 0;
  #started = false;

  constructor(parts: RunParts) {
    this.#parts = parts;
    this.sequences = this.#growing = parts.sizes.map((
      { promptTokens, maxTokens },
    ) => new Growing(promptTokens, maxTokens, parts));
  }

  /** How the run goes, or went. */
  get stats(): RunStats {
    const { sampling, device } = this.#parts;
    const sequences = this.#growing.length;
    let promptTokens = 0, tokens = 0;
    for (const one of this.#growing) {
      promptTokens += one.promptTokens;
      tokens += one.tokenIds.length;
    }
    const firstMs = this.#first - this.#began;
    const rate = (n: number, ms: number) => ms > 0 ? n / ms * 1000 : 0;
    const prefill = rate(promptTokens, firstMs);
    const decode = rate(tokens - sequences, this.#last - this.#first);
    const whole = (n: number) => n >= 100 ? Math.round(n) : n.toFixed(1);
    return {
      sequences,
      promptTokens,
      tokens,
      timeToFirstTokenMs: firstMs,
      prefillTokensPerSecond: prefill,
      decodeTokensPerSecond: decode,
      sampling,
      summary:
        `${device()}: ${
          sequences > 1 ? `${sequences} sequences, ` : ""
        }${promptTokens} prompt tokens at ${whole(prefill)}/s, ` +
        `${tokens} tokens at ${whole(decode)}/s, the first after ${
          firstMs.toFixed(0)
        } ms`,
    };
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<BatchPiece, void> {
    if (this.#started) {
      throw new Error(
        "Cannot iterate over a run twice: call generate again for another",
      );
    }
    this.#started = true;
    const { eosTokenIds, signal } = this.#parts;
    const growing = this.#growing, ends = new Set(eosTokenIds);
    this.#began = performance.now();
    let left = growing.length;
    try {
      signal?.throwIfAborted();
      for await (const ids of this.#parts.start()) {
        this.#last = performance.now();
        if (this.#first === 0) this.#first = this.#last;
        for (const [at, tokenId] of ids.entries()) {
          const sequence = at % growing.length, one = growing[sequence];
          if (one.finishReason) continue;
          signal?.throwIfAborted();
          const text = one.take(tokenId, ends);
          if (one.finishReason) left--;
          yield { sequence, text, tokenId };
          if (left === 0) return;
        }
      }
    } catch (error) {
      if (!signal?.aborted) throw error;
      for (const [sequence, one] of growing.entries()) {
        const text = one.finishReason ? "" : one.abort();
        if (text) yield { sequence, text, tokenId: null };
      }
    } finally {
      for (const one of growing) one.finishReason ??= "aborted"; // the consumer left
    }
  }
}

/** A run of `generate`: iterate over it once. */
export class Run implements AsyncIterable<Piece> {
  readonly #batch: BatchRun;

  constructor(parts: RunParts) {
    this.#batch = new BatchRun(parts);
  }

  /** Set when the run is over. */
  get finishReason(): FinishReason | undefined {
    return this.#batch.sequences[0].finishReason;
  }

  /** Ids generated so far, an end-of-text token included. */
  get tokenIds(): number[] {
    return this.#batch.sequences[0].tokenIds;
  }

  /** How the run goes, or went. */
  get stats(): RunStats {
    return this.#batch.stats;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Piece, void> {
    for await (const { text, tokenId } of this.#batch) yield { text, tokenId };
  }
}
