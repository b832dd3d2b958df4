/**
 * Runs of `generate` and `generateBatch`, which turn a runner's token ids into text.
 *
 * @module
 */
import { type OptionKind, requireKind, wrongOption } from "./errors.ts";
import { isObject } from "./json.ts";
import type { Chunks } from "./model/turns.ts";
import {
  faultText,
  type Logprobs,
  type SampledTokens,
  type Sampling,
  type SamplingOptions,
  type TokenMask,
} from "./model/sampling.ts";
import { callGrammarOf, grammarOf } from "./text/grammar/mod.ts";
import { givenOptions } from "./text/options.ts";
import type { PromptOptions } from "./text/prompt.ts";
import {
  hiddenIds,
  type PieceKind,
  type ReplyFormat,
  type ReplyPiece,
  ReplyStream,
} from "./text/reply.ts";
import { requireStopString, TextStream } from "./text/text_stream.ts";
import type { Tokenizer } from "./text/tokenizer.ts";
import { anyStrict, type ToolCall } from "./text/conversation.ts";

/** Options of `generate` and `generateBatch`. */
export interface GenerateOptions extends SamplingOptions, PromptOptions {
  /**
   * The maximum number of tokens to generate; by default the checkpoint's, else
   * as many as fit in the context together with the prompt, which no reply exceeds.
   */
  maxTokens?: number;
  /**
   * Ends the reply before the first occurrence of any of these strings; by default the
   * checkpoint's. They match anything the model writes, including reasoning, calls and
   * special tokens such as `<|im_end|>`.
   */
  stop?: string | string[];
  /**
   * Says before each token which ones may come next, for a single prompt and once. The run
   * then waits for every token, which takes longer. A mask that allows nothing is an error.
   */
  mask?: TokenMask;
  /**
   * A JSON schema (drafts 4 to 2020-12) under which the reply's text is valid JSON, compact and
   * with properties in the schema's order; `true` stands for any object. Reasoning and calls of
   * `tools` may come first. A reply that ends at `maxTokens` is cut off, which its
   * `finishReason` says.
   *
   * ```ts
   * import { loadQwen3 } from "../mod.ts";
   *
   * using qwen = await loadQwen3();
   * const schema = {
   *   type: "object",
   *   properties: {
   *     name: { type: "string", maxLength: 12 },
   *     age: { type: "integer", minimum: 0, maximum: 20 },
   *   },
   *   required: ["name", "age"],
   * };
   * const { text } = await qwen.generate("There was a dog", { schema });
   * const { name, age } = JSON.parse(text);
   * console.log(name, age);
   * ```
   *
   * What cannot be guaranteed is refused: `not`, `if`, `contains`, `uniqueItems`,
   * `dependentRequired`, `dependentSchemas`, `unevaluatedProperties`, `unevaluatedItems`,
   * references to other documents, a `oneOf` whose branches may both be valid, a `multipleOf`
   * that is not exact in binary, some formats, and patterns with word boundaries, back
   * references or lookarounds elsewhere than after a leading `^`. Objects with `properties`
   * get others only if `additionalProperties` or `patternProperties` say so. As with `mask`,
   * the run waits for every token.
   */
  schema?: object | true;
  /** Keeps generating after an end-of-text token. */
  ignoreEos?: boolean;
  /**
   * Whether the run may continue from the keys and values of the last prompt and reply, as
   * far as this prompt begins with the same tokens. They were rounded in passes of other
   * sizes, so a likely token may lose to one that is as likely. Default: true, unless a
   * `seed` is given, which promises the same reply each time.
   */
  reuse?: boolean;
  /** Ends the run at the next chunk of tokens; `finishReason` is then "aborted". */
  signal?: AbortSignal;
}

const KINDS: Readonly<
  Record<keyof GenerateOptions, OptionKind | undefined>
> = {
  maxTokens: "number",
  stop: undefined, // here, and sampling options by resolveSampling
  temperature: undefined,
  topK: undefined,
  topP: undefined,
  minP: undefined,
  repetitionPenalty: undefined,
  presencePenalty: undefined,
  frequencyPenalty: undefined,
  logitBias: undefined,
  logprobs: undefined,
  mask: "object",
  schema: undefined, // by its grammar
  seed: undefined,
  ignoreEos: "flag",
  reuse: "flag",
  system: "text",
  thinking: "flag",
  tools: "list",
  chatTemplate: "text",
  templateVariables: "object",
  raw: "flag",
  signal: "signal",
};

/**
 * Checks options except for sampling, which `resolveSampling` checks, and returns those
 * that are given.
 *
 * @param cannot how errors begin
 * @param more further options that there are
 * @throws {OptionError} if one is wrong or unknown.
 */
export function checkGenerating(
  options: GenerateOptions,
  cannot = "Cannot generate",
  more: Readonly<Record<string, OptionKind | undefined>> = {},
): GenerateOptions {
  const given = givenOptions(cannot, options, { ...KINDS, ...more });
  const { maxTokens, stop = [], mask } = given;
  checkSchema(cannot, given);
  checkStrict(cannot, given);
  if (mask) {
    requireKind(cannot, "mask.fill", mask.fill, "function");
    requireKind(cannot, "mask.accept", mask.accept, "function");
  }
  if (
    maxTokens !== undefined && (!Number.isInteger(maxTokens) || maxTokens < 1)
  ) {
    throw wrongOption(
      cannot,
      "maxTokens",
      maxTokens,
      "an integer of at least 1",
    );
  }
  const stops: readonly unknown[] = Array.isArray(stop) ? stop : [stop];
  stops.forEach(requireStopString);
  return given;
}

/** Refuses a schema that cannot be guaranteed, and what would cut JSON off. */
function checkSchema(cannot: string, given: GenerateOptions): void {
  const { schema, stop = [], mask, ignoreEos } = given;
  if (schema === undefined) return;
  if (schema !== true && !isObject(schema)) {
    throw wrongOption(cannot, "schema", schema, "a JSON schema, or true");
  }
  grammarOf(schema);
  const other = stop.length > 0 ? "stop" : mask ? "mask" : "ignoreEos";
  if (stop.length === 0 && !mask && !ignoreEos) return;
  throw wrongOption(
    cannot,
    other,
    given[other],
    "left out with a schema, whose JSON it could cut off",
  );
}

/** Refuses strict functions whose schema cannot be guaranteed, and a mask beside them. */
function checkStrict(cannot: string, { tools, mask }: GenerateOptions): void {
  // What is wrong with other tools says the chat template's renderer.
  const isStrict = Array.isArray(tools) &&
    tools.every((tool) =>
      isObject(tool) && isObject(tool.function) &&
      typeof tool.function.name === "string"
    ) && anyStrict(tools);
  if (!isStrict) return;
  callGrammarOf(tools);
  if (!mask) return;
  throw wrongOption(
    cannot,
    "mask",
    mask,
    "left out with a strict function, whose calls it could change",
  );
}

/** A generated token and the text it completes. */
export interface Piece {
  /**
   * What the text is: for the user, reasoning, or a function call. Without a chat
   * template, everything is "text".
   */
  kind: PieceKind;
  /**
   * The text this token completes; may be empty. A call arrives whole, as the model wrote it
   * between its tags; {@linkcode Run.toolCalls} has it parsed.
   */
  text: string;
  /**
   * null for further text that the previous token completes, and for held-back text that is
   * released when the run is aborted.
   */
  tokenId: number | null;
  /** The log probabilities of the token, if {@linkcode GenerateOptions.logprobs} is set. */
  logprobs?: Logprobs;
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
  /** Those of them whose keys and values an earlier run had left; see `reuse`. */
  cachedTokens: number;
  /** Tokens generated so far, including any end-of-text token. */
  tokens: number;
  /**
   * Milliseconds from the start of the run to its first token, of several sequences to the
   * last of their first tokens; 0 before the first of them.
   */
  timeToFirstTokenMs: number;
  /** Prompt tokens that were not cached, divided by the time to the first token. */
  prefillTokensPerSecond: number;
  /** Decode rate, over the tokens that came after that time. */
  decodeTokensPerSecond: number;
  /** The sampling options in effect, including the seed. */
  sampling: Sampling;
  /** These statistics as one line of text. */
  summary: string;
}

/**
 * Why a sequence ended: at a stop string or end-of-text token ("tool_calls" if it calls
 * functions), at its token limit, or early.
 */
export type FinishReason = "stop" | "tool_calls" | "length" | "aborted";

/**
 * Tokens of one `sequence`, or without it of all: a token of each, then the next of each.
 */
export type RunTokens = SampledTokens & { readonly sequence?: number };

/** Who reads the tokens of a run. */
export interface Consumer {
  /** Whether it never pauses between two chunks. */
  readonly steady: boolean;
  /** Whether it needs no more tokens of a sequence. */
  ended(sequence: number): boolean;
}

/** What a run needs from the model. */
export interface RunParts {
  /**
   * Starts the model, which tells masks what was sampled. The signal of the chunks is
   * aborted with {@linkcode signal}, and when something else ends the run.
   */
  start: (consumer: Consumer) => Chunks<RunTokens>;
  /**
   * For each sequence, the length of its prompt, the maximum number of tokens to generate,
   * and what its prompt implies for the reply (undefined if the reply is plain text).
   */
  sizes: readonly {
    promptTokens: number;
    maxTokens: number;
    reply?: ReplyFormat;
  }[];
  /** Prompt tokens that were cached before the run; 0 until it starts. */
  cachedTokens: () => number;
  sampling: Sampling;
  eosTokenIds: readonly number[];
  stop: readonly string[];
  /** Undefined if the checkpoint has none; the text of pieces is then empty. */
  tokenizer?: Tokenizer;
  /** Returns the device's name, for the summary. */
  device: () => string;
  /** Called when the run starts; what it returns is disposed when the run has ended. */
  begin?: () => Disposable;
  signal?: AbortSignal;
}

/** What a run has generated for one prompt. */
export interface Sequence {
  /** The number of tokens in the prompt. */
  readonly promptTokens: number;
  /** The text so far, without reasoning or function calls. */
  readonly text: string;
  /** The reasoning so far; empty if there is none. */
  readonly reasoning: string;
  /**
   * The function calls so far. `arguments` is an object, or the text that the model wrote
   * if it is not one. A call that was cut off is left out.
   */
  readonly toolCalls: readonly ToolCall[];
  /** Ids generated so far, an end-of-text token included. */
  readonly tokenIds: number[];
  /** Their log probabilities, if {@linkcode GenerateOptions.logprobs} is set. */
  readonly logprobs?: readonly Logprobs[];
  /** Why the sequence ended; undefined until it has. */
  readonly finishReason: FinishReason | undefined;
}

/** What a run generated for one prompt of a batch. */
export interface SequenceReply extends Sequence {
  /** Why the sequence ended. */
  readonly finishReason: FinishReason;
}

/** What an awaited {@linkcode BatchRun} gives. */
export interface BatchReply {
  /** One per prompt, in the order of the prompts. */
  readonly sequences: readonly SequenceReply[];
  /** Statistics over all sequences. */
  readonly stats: RunStats;
}

/** What an awaited {@linkcode Run} gives. */
export interface Reply extends Omit<SequenceReply, "promptTokens"> {
  /** Statistics of the run, which include the number of tokens in the prompt. */
  readonly stats: RunStats;
}

/** A sequence in progress. */
class Growing implements Sequence {
  text = "";
  reasoning = "";
  readonly toolCalls: ToolCall[];
  readonly tokenIds: number[] = [];
  logprobs?: Logprobs[];
  finishReason: FinishReason | undefined;
  readonly promptTokens: number;
  readonly #maxTokens: number;
  readonly #stream?: TextStream;
  readonly #reply?: ReplyStream;

  constructor(
    { promptTokens, maxTokens, reply }: RunParts["sizes"][number],
    { tokenizer, stop }: RunParts,
  ) {
    this.promptTokens = promptTokens;
    this.#maxTokens = maxTokens;
    if (tokenizer) {
      const hidden = reply ? hiddenIds(tokenizer) : tokenizer.specialIds;
      const bytes = (id: number) => tokenizer.bytes(id);
      this.#stream = new TextStream({ bytes, specialIds: hidden }, { stop });
    }
    this.#reply = reply && new ReplyStream(reply);
    this.toolCalls = this.#reply?.toolCalls ?? [];
  }

  /** Appends a token, which may end the sequence; returns the text it completes. */
  take(
    tokenId: number,
    ends: ReadonlySet<number>,
    logprobs?: Logprobs,
  ): Piece[] {
    this.tokenIds.push(tokenId);
    if (logprobs) (this.logprobs ??= []).push(logprobs);
    const stream = this.#stream, eos = ends.has(tokenId);
    const kind = this.#reply?.kind ?? "text";
    let text = stream?.push(tokenId, eos).text ?? "";
    const full = this.tokenIds.length === this.#maxTokens;
    let pieces: ReplyPiece[];
    if (eos || stream?.stopped || full) {
      text += stream?.flush() ?? "";
      const how = stream?.stopped ? "stopped" : eos ? "whole" : "cut";
      pieces = this.#add(text, how);
      this.finishReason = how === "cut"
        ? "length"
        : this.toolCalls.length > 0
        ? "tool_calls"
        : "stop";
    } else pieces = this.#add(text);
    const [first = { kind, text: "" }, ...more] = pieces;
    return [
      { ...first, tokenId, ...logprobs && { logprobs } },
      ...more.map((piece) => ({ ...piece, tokenId: null })),
    ];
  }

  /** Ends the sequence early; returns the text that was held back. */
  abort(): Piece[] {
    this.finishReason = "aborted";
    return this.#add(this.#stream?.flush() ?? "", "cut")
      .map((piece) => ({ ...piece, tokenId: null }));
  }

  /** Separates the text and, if it is the last, ends the reply. */
  #add(text: string, end?: "whole" | "stopped" | "cut"): ReplyPiece[] {
    const reply = this.#reply;
    const pieces = !reply ? text ? [{ kind: "text" as const, text }] : [] : [
      ...reply.push(text),
      ...(end ? reply.end(end) : []),
    ];
    for (const { kind, text } of pieces) {
      if (kind !== "tool") this[kind] += text;
    }
    return pieces;
  }
}

/**
 * A run of `generateBatch`. Await it for the texts, or iterate over it for their pieces as
 * they are generated, which `sequences` collects. Like {@linkcode Run}, it starts with
 * either and allows only one of them.
 */
export class BatchRun
  implements AsyncIterable<BatchPiece>, PromiseLike<BatchReply> {
  /** One sequence per prompt, in the order of the prompts. */
  readonly sequences: readonly Sequence[];
  readonly #growing: readonly Growing[];
  readonly #parts: RunParts;
  #began = 0;
  /** When the last first token of a sequence came, so far. */
  #first = 0;
  /** Tokens that had come by then, with those that came at the same time. */
  #early = 0;
  #last = 0;
  #consumed?: "awaited" | "iterated over";
  /** What it gives to those who await it. */
  #reply?: Promise<BatchReply>;

  /** @ignore Made by {@linkcode Qwen3.generateBatch}. */
  constructor(parts: RunParts) {
    this.#parts = parts;
    this.sequences = this.#growing = parts.sizes.map((size) =>
      new Growing(size, parts)
    );
  }

  /** Statistics so far. */
  get stats(): RunStats {
    const { sampling, device } = this.#parts;
    const sequences = this.#growing.length;
    const tokens = this.#count;
    const promptTokens = this.#growing.reduce(
      (sum, one) => sum + one.promptTokens,
      0,
    );
    const firstMs = Math.max(0, this.#first - this.#began);
    const rate = (n: number, ms: number) => ms > 0 ? n / ms * 1000 : 0;
    const cachedTokens = this.#parts.cachedTokens();
    const prefill = rate(promptTokens - cachedTokens, firstMs);
    const further = tokens - this.#early;
    const decode = rate(further, this.#last - this.#first);
    const whole = (n: number) => n >= 100 ? Math.round(n) : n.toFixed(1);
    const counted = (n: number, what: string) =>
      `${n} ${what}${n === 1 ? "" : "s"}`;
    const prompt = counted(promptTokens, "prompt token") +
      (cachedTokens > 0 ? ` (${cachedTokens} cached)` : "");
    // First tokens belong to the prompts' time, so they have no rate.
    const rates = tokens === 0
      ? `${prompt}, no tokens generated`
      : `${prompt} at ${whole(prefill)}/s, ${counted(tokens, "token")}${
        further > 0 ? ` at ${whole(decode)}/s, the first` : ""
      } after ${firstMs.toFixed(0)} ms`;
    return {
      sequences,
      promptTokens,
      cachedTokens,
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

  /** Tokens so far, over all sequences. */
  get #count(): number {
    return this.#growing.reduce(
      (sum, { tokenIds }) => sum + tokenIds.length,
      0,
    );
  }

  /** The error for logits that yield no next token for a sequence. */
  #faulty(sequence: number, fault: string): Error {
    const { promptTokens, tokenIds: { length } } = this.#growing[sequence];
    const which = this.#growing.length > 1 ? `, sequence ${sequence}` : "";
    return new Error(
      `Cannot generate: the logits for position ${
        promptTokens + length
      } (token ${length} of the reply${which}) ${fault}`,
    );
  }

  /** Runs the model to the end, unless that was done; for `await`. */
  then<A = BatchReply, B = never>(
    fulfilled?: ((reply: BatchReply) => A | PromiseLike<A>) | null,
    rejected?: ((reason: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    this.#reply ??= this.#finish();
    return this.#reply.then(fulfilled, rejected);
  }

  async #finish(): Promise<BatchReply> {
    for await (const _ of this.#pieces("awaited"));
    const sequences = this.#growing.map((one): SequenceReply => ({
      promptTokens: one.promptTokens,
      text: one.text,
      reasoning: one.reasoning,
      toolCalls: one.toolCalls,
      tokenIds: one.tokenIds,
      ...one.logprobs && { logprobs: one.logprobs },
      finishReason: one.finishReason!, // it has ended
    }));
    return { sequences, stats: this.stats };
  }

  /** Runs the model; yields pieces as they are generated. */
  [Symbol.asyncIterator](): AsyncGenerator<BatchPiece, void> {
    return this.#pieces("iterated over");
  }

  async *#pieces(
    how: "awaited" | "iterated over",
  ): AsyncGenerator<BatchPiece, void> {
    const before = this.#consumed, steady = how === "awaited";
    if (before) {
      throw new Error(
        `Cannot ${
          steady ? "await" : "iterate over"
        } a run: it was ${before}, call generate again for another run`,
      );
    }
    this.#consumed = how;
    const { eosTokenIds, signal } = this.#parts;
    const growing = this.#growing, ends = new Set(eosTokenIds);
    this.#began = performance.now();
    let left = growing.length;
    using _begun = this.#parts.begin?.();
    try {
      signal?.throwIfAborted();
      const ended = (at: number) => growing[at].finishReason !== undefined;
      const chunks = this.#parts.start({ steady, ended });
      for await (const ids of chunks) {
        this.#last = performance.now();
        for (const [at, tokenId] of ids.entries()) {
          const sequence = ids.sequence ?? at % growing.length;
          const one = growing[sequence];
          if (one.finishReason) continue;
          chunks.signal.throwIfAborted();
          const fault = faultText(tokenId);
          if (fault) throw this.#faulty(sequence, fault);
          if (one.tokenIds.length === 0) this.#first = this.#last;
          const pieces = one.take(tokenId, ends, ids.logprobs?.[at]);
          if (this.#first === this.#last) this.#early = this.#count;
          if (one.finishReason) left--;
          for (const piece of pieces) yield { sequence, ...piece };
          if (left === 0) return;
        }
      }
    } catch (error) {
      if (!signal?.aborted) throw error;
      for (const [sequence, one] of growing.entries()) {
        const pieces = one.finishReason ? [] : one.abort();
        for (const piece of pieces) yield { sequence, ...piece };
      }
    } finally {
      // The consumer stopped iterating.
      for (const one of growing) one.finishReason ??= "aborted";
    }
  }
}

/**
 * A run of `generate`. Await it for the whole reply, or iterate over it for its pieces as
 * they are generated. The model starts with either, and a run allows only one of them:
 * awaiting it again gives the same reply, everything else is an error.
 *
 * ```ts
 * import { loadQwen3 } from "../mod.ts";
 *
 * using qwen = await loadQwen3();
 * const { text, finishReason } = await qwen.generate("Once upon a time", { maxTokens: 8 });
 * console.log(text, finishReason);
 * ```
 *
 * An `async` function that returns a run awaits it, as it does a promise: return the run in
 * an object, or from a plain function, to iterate over it elsewhere. If that function has
 * the model in a `using` declaration, it must `return await` the run, or the model is
 * disposed before it starts.
 *
 * A signal ends an awaited run as it does an iteration: the reply has the text so far, and
 * its `finishReason` is "aborted".
 */
export class Run implements AsyncIterable<Piece>, PromiseLike<Reply> {
  readonly #batch: BatchRun;
  #reply?: Promise<Reply>;

  /** @ignore Made by {@linkcode Qwen3.generate}. */
  constructor(parts: RunParts) {
    this.#batch = new BatchRun(parts);
  }

  /** Why the run ended; undefined until it has. */
  get finishReason(): FinishReason | undefined {
    return this.#batch.sequences[0].finishReason;
  }

  /** The text so far, without reasoning or function calls. */
  get text(): string {
    return this.#batch.sequences[0].text;
  }

  /** The reasoning so far; empty if there is none. */
  get reasoning(): string {
    return this.#batch.sequences[0].reasoning;
  }

  /**
   * The function calls so far. `arguments` is an object, or the text that the model wrote
   * if it is not one. A call that was cut off is left out.
   */
  get toolCalls(): readonly ToolCall[] {
    return this.#batch.sequences[0].toolCalls;
  }

  /** Ids generated so far, an end-of-text token included. */
  get tokenIds(): number[] {
    return this.#batch.sequences[0].tokenIds;
  }

  /** Their log probabilities, if {@linkcode GenerateOptions.logprobs} is set. */
  get logprobs(): readonly Logprobs[] | undefined {
    return this.#batch.sequences[0].logprobs;
  }

  /** Statistics so far. */
  get stats(): RunStats {
    return this.#batch.stats;
  }

  /** Runs the model to the end, unless that was done; for `await`. */
  then<A = Reply, B = never>(
    fulfilled?: ((reply: Reply) => A | PromiseLike<A>) | null,
    rejected?: ((reason: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    this.#reply ??= this.#batch.then(({ sequences: [one], stats }) => {
      const { promptTokens: _, ...reply } = one;
      return { ...reply, stats };
    });
    return this.#reply.then(fulfilled, rejected);
  }

  /** Runs the model; yields pieces as they are generated. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Piece, void> {
    for await (const { sequence: _, ...piece } of this.#batch) yield piece;
  }
}
