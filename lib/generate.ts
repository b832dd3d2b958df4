/**
 * Runs of `generate` and `generateBatch`, which turn a runner's token ids into text.
 *
 * @module
 */
import { checkOptions, described, type OptionKind } from "./errors.ts";
import type { Chunks } from "./model/turns.ts";
import {
  faultText,
  type Sampling,
  type SamplingOptions,
} from "./model/sampling.ts";
import { TextStream } from "./text/text_stream.ts";
import type { Tokenizer } from "./text/tokenizer.ts";

/** Options of `generate` and `generateBatch`. */
export interface GenerateOptions extends SamplingOptions {
  /**
   * The maximum number of tokens to generate; by default what the checkpoint says, else
   * as many as fit in the context.
   */
  maxTokens?: number;
  /**
   * Ends the text before the first occurrence of any of these strings; by default the
   * checkpoint's.
   */
  stop?: string | string[];
  /** Keeps generating after an end-of-text token. */
  ignoreEos?: boolean;
  /** A system message, for instruct checkpoints. */
  system?: string;
  /** Whether an instruct checkpoint may think first; by default its template decides. */
  thinking?: boolean;
  /** Uses the prompt as is, without the chat template. */
  raw?: boolean;
  /** Ends the run at the next chunk of tokens; `finishReason` is then "aborted". */
  signal?: AbortSignal;
}

const KINDS: Readonly<
  Record<
    Exclude<keyof GenerateOptions, keyof SamplingOptions | "stop">,
    OptionKind
  >
> = {
  maxTokens: "number",
  ignoreEos: "flag",
  system: "text",
  thinking: "flag",
  raw: "flag",
  signal: "signal",
};

/**
 * Checks the types of options and the range of `maxTokens`; `resolveSampling` checks the
 * sampling options.
 *
 * @throws {TypeError | RangeError} if one is wrong; the message names it.
 */
export function checkGenerating(options: GenerateOptions): void {
  const cannot = "Cannot generate";
  checkOptions(cannot, options, KINDS);
  const { maxTokens, stop = [] } = options;
  if (
    maxTokens !== undefined && (!Number.isInteger(maxTokens) || maxTokens < 1)
  ) {
    throw new RangeError(
      `${cannot}: maxTokens is ${maxTokens}, must be an integer of at least 1`,
    );
  }
  const stops: readonly unknown[] = Array.isArray(stop) ? stop : [stop];
  for (const text of stops) {
    if (typeof text !== "string" || text === "" || !text.isWellFormed()) {
      throw new TypeError(
        `Cannot stop at ${
          described(text)
        }: a stop string must be one or more whole characters`,
      );
    }
  }
}

/** A generated token and the text it completes. */
export interface Piece {
  /** The text this token completes; may be empty. */
  text: string;
  /** null for held-back text that is released when the run is aborted. */
  tokenId: number | null;
}

/** A {@linkcode Piece} of one sequence of a batch. */
export interface BatchPiece extends Piece {
  /** The index of the prompt this piece belongs to. */
  sequence: number;
}

/** Statistics of a run, over all of its sequences. */
export interface RunStats {
  /** The number of prompts; 1 for `generate`. */
  sequences: number;
  /** Prompt tokens, over all prompts. */
  promptTokens: number;
  /** Tokens generated so far, including any end-of-text token. */
  tokens: number;
  /** Milliseconds from the start of the run to its first token; 0 before that token. */
  timeToFirstTokenMs: number;
  /** Prompt tokens divided by the time to the first token. */
  prefillTokensPerSecond: number;
  /** Decode rate, not counting the first token of each sequence. */
  decodeTokensPerSecond: number;
  /** The sampling options in effect, including the seed. */
  sampling: Sampling;
  /** These statistics as one line of text. */
  summary: string;
}

/**
 * Why a sequence ended: at a stop string or end-of-text token, at its token limit, or
 * early.
 */
export type FinishReason = "stop" | "length" | "aborted";

/** What a run needs from the model. */
export interface RunParts {
  /**
   * Starts the model, when iteration begins. Yields chunks of one or more steps, each
   * with one token id per sequence. Its signal is aborted with {@linkcode signal}, and
   * when something else ends the run.
   */
  start: () => Chunks<readonly number[]>;
  /**
   * For each sequence, the length of its prompt and the maximum number of tokens to
   * generate.
   */
  sizes: readonly { promptTokens: number; maxTokens: number }[];
  sampling: Sampling;
  eosTokenIds: readonly number[];
  stop: readonly string[];
  /** Undefined if the checkpoint has none; the text of pieces is then empty. */
  tokenizer?: Tokenizer;
  /** Returns the device's name, for the summary. */
  device: () => string;
  signal?: AbortSignal;
}

/** The text and tokens that a run has generated for one prompt. */
export interface Sequence {
  /** The number of tokens in the prompt. */
  readonly promptTokens: number;
  /** The text so far. */
  readonly text: string;
  /** Ids generated so far, an end-of-text token included. */
  readonly tokenIds: number[];
  /** Why the sequence ended; undefined until it has. */
  readonly finishReason: FinishReason | undefined;
}

/** A sequence in progress. */
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

  /** Appends a token, which may end the sequence; returns the text it completes. */
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

  /** Ends the sequence early; returns the text that was held back. */
  abort(): string {
    this.finishReason = "aborted";
    const text = this.#stream?.flush() ?? "";
    this.text += text;
    return text;
  }
}

/**
 * A run of `generateBatch`: iterate over it once. Pieces of all sequences come as they
 * are generated; `sequences` collects them.
 */
export class BatchRun implements AsyncIterable<BatchPiece> {
  /** One sequence per prompt, in the order of the prompts. */
  readonly sequences: readonly Sequence[];
  readonly #growing: readonly Growing[];
  readonly #parts: RunParts;
  #began = 0;
  #first = 0;
  #last = 0;
  #started = false;

  /** @ignore Made by {@linkcode Qwen3.generateBatch}. */
  constructor(parts: RunParts) {
    this.#parts = parts;
    this.sequences = this.#growing = parts.sizes.map((
      { promptTokens, maxTokens },
    ) => new Growing(promptTokens, maxTokens, parts));
  }

  /** Statistics so far. */
  get stats(): RunStats {
    const { sampling, device } = this.#parts;
    const sequences = this.#growing.length;
    let promptTokens = 0, tokens = 0;
    for (const one of this.#growing) {
      promptTokens += one.promptTokens;
      tokens += one.tokenIds.length;
    }
    const firstMs = Math.max(0, this.#first - this.#began);
    const rate = (n: number, ms: number) => ms > 0 ? n / ms * 1000 : 0;
    const prefill = rate(promptTokens, firstMs);
    const further = Math.max(0, tokens - sequences);
    const decode = rate(further, this.#last - this.#first);
    const whole = (n: number) => n >= 100 ? Math.round(n) : n.toFixed(1);
    const rates = tokens === 0
      ? `${promptTokens} prompt tokens, no tokens generated`
      : `${promptTokens} prompt tokens at ${
        whole(prefill)
      }/s, ${tokens} tokens at ${whole(decode)}/s, the first after ${
        firstMs.toFixed(0)
      } ms`;
    return {
      sequences,
      promptTokens,
      tokens,
      timeToFirstTokenMs: firstMs,
      prefillTokensPerSecond: prefill,
      decodeTokensPerSecond: decode,
      sampling,
      summary: `${device()}: ${
        sequences > 1 ? `${sequences} sequences, ` : ""
      }${rates}`,
    };
  }

  /** The error of logits that give a sequence no next token. */
  #faulty(sequence: number, fault: string): Error {
    const { promptTokens, tokenIds: { length } } = this.#growing[sequence];
    const which = this.#growing.length > 1 ? `, sequence ${sequence}` : "";
    return new Error(
      `Cannot generate: the logits for position ${
        promptTokens + length
      } (token ${length} of the reply${which}) ${fault}`,
    );
  }

  /** Runs the model; yields pieces as they are generated. */
  async *[Symbol.asyncIterator](): AsyncGenerator<BatchPiece, void> {
    if (this.#started) {
      throw new Error(
        "Cannot iterate over a run twice: call generate again for another run",
      );
    }
    this.#started = true;
    const { eosTokenIds, signal } = this.#parts;
    const growing = this.#growing, ends = new Set(eosTokenIds);
    this.#began = performance.now();
    let left = growing.length;
    try {
      signal?.throwIfAborted();
      const chunks = this.#parts.start();
      for await (const ids of chunks) {
        this.#last = performance.now();
        if (this.#first === 0) this.#first = this.#last;
        for (const [at, tokenId] of ids.entries()) {
          const sequence = at % growing.length, one = growing[sequence];
          if (one.finishReason) continue;
          chunks.signal.throwIfAborted();
          const fault = faultText(tokenId);
          if (fault) throw this.#faulty(sequence, fault);
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
      // The consumer stopped iterating.
      for (const one of growing) one.finishReason ??= "aborted";
    }
  }
}

/** A run of `generate`: iterate over it once. */
export class Run implements AsyncIterable<Piece> {
  readonly #batch: BatchRun;

  /** @ignore Made by {@linkcode Qwen3.generate}. */
  constructor(parts: RunParts) {
    this.#batch = new BatchRun(parts);
  }

  /** Why the run ended; undefined until it has. */
  get finishReason(): FinishReason | undefined {
    return this.#batch.sequences[0].finishReason;
  }

  /** Ids generated so far, an end-of-text token included. */
  get tokenIds(): number[] {
    return this.#batch.sequences[0].tokenIds;
  }

  /** Statistics so far. */
  get stats(): RunStats {
    return this.#batch.stats;
  }

  /** Runs the model; yields pieces as they are generated. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Piece, void> {
    for await (const { text, tokenId } of this.#batch) yield { text, tokenId };
  }
}
