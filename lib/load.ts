/**
 * Loading a checkpoint, and the loaded model: the library's main entry point.
 *
 * @module
 */
import {
  type EncodedPrompt,
  encodePrompt,
  type Prompt,
  type TokenizerSource,
} from "./text/prompt.ts";
import {
  answerTokens,
  checkDocuments,
  checkEmbedding,
  checkReranking,
  type EmbedOptions,
  encodeToEmbed,
  encodeToRank,
  listTexts,
  type Ranking,
  type RerankOptions,
  rerankPrompt,
  type Text,
} from "./text/embedding.ts";
import type { Checkpoint, Purpose } from "./checkpoint/checkpoint.ts";
import { Rests } from "./dispatch/rests.ts";
import { stateShares } from "./dispatch/state_batches.ts";
import { readAnswers, vectorOf, yesProbability } from "./model/embedding.ts";
import type { Choice } from "./dispatch/choice.ts";
import {
  described,
  DeviceError,
  explained,
  MemoryError,
  OptionError,
  requireKind,
  wrongOption,
} from "./errors.ts";
import { shownUrl } from "./checkpoint/fetch.ts";
import { newTokenLimit } from "./checkpoint/generation_config.ts";
import { projectUrl } from "./host.ts";
import { fingerprintOf } from "./checkpoint/fingerprint.ts";
import { openCheckpoint } from "./checkpoint/open.ts";
import { Chat, type ChatModel, type ChatSettings } from "./engine/chat.ts";
import { positionsOf } from "./model/kv_cache.ts";
import type { Qwen3Config } from "./checkpoint/config.ts";
import {
  BatchRun,
  checkGenerating,
  type GenerateOptions,
  Run,
  type RunParts,
} from "./generate.ts";
import { type Asked, Engine, type Started } from "./engine/engine.ts";
import { checkEngine, type EngineOptions } from "./engine/options.ts";
import { MOST_SLOTS, Runs, type RunsParts } from "./engine/runs.ts";
import {
  checkContext,
  checkLoading,
  type Device,
  gone,
  place,
  type Placed,
  placeOnCpu,
  type Qwen3Options,
  unusedThreads,
} from "./place.ts";
import type { Fallback, Runner } from "./model/runner.ts";
import { Turns } from "./model/turns.ts";
import { resolveSampling, type TokenMask } from "./model/sampling.ts";
import {
  callGrammarOf,
  grammarOf,
  requireJsonCalls,
} from "./text/grammar/mod.ts";
import { givenOptions } from "./text/options.ts";
import { anyStrict } from "./text/conversation.ts";
import type { ReplyFormat } from "./text/reply.ts";
import { STORY_TEMPLATE } from "./text/story_template.ts";
import {
  missingTokenizer,
  readTokenizer,
  type Tokenizer,
  withoutTokenizer,
} from "./text/tokenizer.ts";

/**
 * URL of the embedded story model: `models/stories-3m/` beside mod.ts or, if it was
 * bundled, beside the bundle (a local file or a remote URL).
 */
export const DEFAULT_MODEL: string =
  projectUrl(import.meta.url, "lib/load", "models/stories-3m/").href;

/**
 * Loads a Qwen3 model.
 *
 * `model` is a directory, a `.gguf` file (with its other parts beside it if it is
 * split), the http(s) URL of either, `synthetic:qwen3-0.6b?seed=1`, or a Hugging Face
 * repository id (`Qwen/Qwen3-0.6B`, `owner/name@revision`), which is downloaded unless
 * it is cached. The default is the embedded story model.
 *
 * ```ts
 * import { loadQwen3 } from "../mod.ts";
 *
 * using qwen = await loadQwen3();
 * const { text } = await qwen.generate("Once upon a time", { maxTokens: 8 });
 * console.log(text);
 * ```
 *
 * @throws {OptionError} if an option is unknown or has a wrong value.
 * @throws {TypeError} if the name is not a string, or the options are not an object.
 * @throws {Error} if the checkpoint is missing, broken or not a dense Qwen3, or
 * the device cannot hold it.
 */
export async function loadQwen3(
  model: string = DEFAULT_MODEL,
  options: Qwen3Options = {},
): Promise<Qwen3> {
  try {
    return await load(model, checkLoading(model, options));
  } catch (error) {
    const name = typeof model === "string" ? shownUrl(model) : "a model";
    throw explained(`load ${name}`, error);
  }
}

async function load(model: string, options: Qwen3Options): Promise<Qwen3> {
  const began = performance.now();
  const { signal, onProgress, readTimeout, quantize } = options;
  const onNotice = options.onNotice ?? undefined;
  const checkpoint = await openCheckpoint(model, {
    signal,
    onProgress,
    onNotice,
    readTimeout,
    quantize,
  });
  let qwen: Qwen3 | undefined;
  try {
    checkContext(checkpoint, options.context);
    qwen = await Qwen3.load(checkpoint, options, began);
    const { threads } = options;
    if (threads !== undefined && qwen.device.kind === "gpu") {
      onNotice?.(unusedThreads(threads));
    }
    for (const notice of checkpoint.notices) onNotice?.(notice);
    return qwen;
  } catch (error) {
    if (qwen) qwen[Symbol.dispose]();
    else await checkpoint[Symbol.asyncDispose]();
    throw error;
  }
}

/** Says that a model is not for what was asked. */
function unfit(name: string, { is, why }: Purpose): string {
  return `${name} is ${is} (${why})`;
}

/** What errors call a prompt. */
const promptName = (i: number, { length }: ArrayLike<unknown>) =>
  length > 1 ? `prompt ${i}` : "the prompt";

/** The most tokens of a prompt with its reply, and how prompts run. */
type HowRun = [
  context?: number,
  start?: (asked: readonly Asked[]) => Started,
];

/** Runs that share the device at a time, unless one has more prompts. Not measured. */
const SHARED_SLOTS = 16;

/** Positions to begin with in the cache of runs that share the device. Not measured. */
const SHARED_POSITIONS = 1024;

/** The tokens of prompts, and the most new ones of any. */
function sizeOf(asked: readonly Asked[]): [readonly number[][], number] {
  const most = asked.map(({ maxTokens }) => maxTokens);
  return [
    asked.map(({ tokens }) => [...tokens]),
    most.reduce((a, b) => Math.max(a, b)),
  ];
}

const LOGITS_OPTIONS = { all: "flag", signal: "signal" } as const;

/**
 * A loaded Qwen3 model, created by {@linkcode loadQwen3}. Dispose it to free the
 * device.
 *
 * A run has the device to itself until others start. Several go on together, each as if it
 * ran alone, in a cache that grows with them; at most 16 texts compute at a time, and others
 * wait. Logits and vectors are computed in between. To generate several texts together, use
 * {@linkcode Qwen3.generateBatch}; an {@linkcode Qwen3.engine} has its own slots and cache.
 *
 * Once disposed, `config`, `device`, `context`, `fallbacks`, `notices`, `loadMs`,
 * `memoryBytes`, `generates` and `hasTokenizer` still answer; everything else throws, and so does a run
 * that had not ended.
 */
export class Qwen3 implements Disposable {
  /** The model's configuration, from config.json. */
  readonly config: Qwen3Config;
  /**
   * Milliseconds that `loadQwen3` took, downloads included. Shaders are compiled later, by
   * the first run.
   */
  readonly loadMs: number;
  readonly #checkpoint: Checkpoint;
  readonly #options: Qwen3Options;
  readonly #tokenizer: Tokenizer | undefined;
  #placed: Placed;
  /** Why the model must move to the CPU, after the GPU failed and until it has moved. */
  #moving?: Choice;
  #fingerprint?: Promise<string>;
  readonly #turns = new Turns();
  readonly #runs: Runs;

  private constructor(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer | undefined,
    placed: Placed,
    options: Qwen3Options,
    loadMs: number,
  ) {
    this.config = checkpoint.config;
    this.loadMs = loadMs;
    this.#checkpoint = checkpoint;
    this.#tokenizer = tokenizer;
    this.#placed = placed;
    this.#options = options;
    this.#runs = new Runs({
      turns: this.#turns,
      canShare: () => this.#placed.runner.hasRows,
      alone: (...call) => this.#alone(...call),
      cachedTokens: (tokens) => this.#placed.runner.cachedTokens(tokens),
      engine: (positions, slots) => this.#shared(positions, slots),
      recover: (error) => this.#recovers(error, 1),
    });
  }

  /** @ignore Use {@linkcode loadQwen3}. */
  static async load(
    checkpoint: Checkpoint,
    options: Qwen3Options,
    began: number = performance.now(),
  ): Promise<Qwen3> {
    // Before the weights, so that a tokenizer is refused at once.
    const tokenizer = await readTokenizer(checkpoint);
    const placed = await place(checkpoint, options);
    if (options.signal?.aborted) {
      placed.runner[Symbol.dispose]();
      throw options.signal.reason;
    }
    const loadMs = performance.now() - began;
    return new Qwen3(checkpoint, tokenizer, placed, options, loadMs);
  }

  /**
   * The device the model runs on, with every choice that was made and the reason for
   * it.
   */
  get device(): Device {
    return this.#placed.device;
  }

  /**
   * The runner that executes the model, for benchmarks and checks.
   *
   * @throws {Error} if the model was disposed.
   */
  get runner(): Runner {
    this.#turns.requireModel("use the runner");
    return this.#placed.runner;
  }

  /** The maximum length of a sequence in tokens: prompt and reply together. */
  get context(): number {
    return this.#placed.runner.context;
  }

  /**
   * Bytes that are allocated for the model on its device now: weights, KV cache and work
   * buffers, which the first run adds to. Nothing once the model is disposed.
   */
  get memoryBytes(): number {
    return this.#placed.runner.memoryBytes;
  }

  /** Operations that had to run on the CPU even though the model is on a GPU. */
  get fallbacks(): readonly Fallback[] {
    return this.#placed.runner.fallbacks;
  }

  /**
   * What a user should know about the checkpoint's files, such as unused tensors;
   * also passed to `onNotice`.
   */
  get notices(): readonly string[] {
    return this.#checkpoint.notices;
  }

  /**
   * The checkpoint's tokenizer.
   *
   * @throws {Error} if the checkpoint has none, or the model was disposed.
   */
  get tokenizer(): Tokenizer {
    this.#turns.requireModel("use the tokenizer");
    if (this.#tokenizer) return this.#tokenizer;
    throw missingTokenizer(this.#checkpoint.name);
  }

  /**
   * The template that chats are rendered with: the checkpoint's, or for the embedded story
   * model one that makes a story of a conversation ({@linkcode STORY_TEMPLATE}). `generate`
   * uses only the checkpoint's.
   *
   * @throws {Error} if the model was disposed.
   */
  get chatTemplate(): string | undefined {
    this.#turns.requireModel("use the chat template");
    const { name } = this.#checkpoint;
    return this.#tokenizer?.chatTemplate ??
      (name === DEFAULT_MODEL ? STORY_TEMPLATE : undefined);
  }

  /** Whether the model writes text, as those for embedding or ranking do not. */
  get generates(): boolean {
    return this.#checkpoint.only === undefined;
  }

  /** Whether the checkpoint has a tokenizer. */
  get hasTokenizer(): boolean {
    return this.#tokenizer !== undefined;
  }

  /**
   * Computes the logits after the last of `tokenIds`, `[vocab]`, or with `all` after
   * each of them, `[tokens, vocab]`. Always starts from an empty cache.
   *
   * @throws {Error} if there are no tokens or too many, an id is not in the vocabulary, or
   * the model is disposed.
   * @throws the reason of `signal` once that is aborted.
   */
  async logits(
    tokenIds: ArrayLike<number>,
    options: { all?: boolean; signal?: AbortSignal } = {},
  ): Promise<Float32Array> {
    const action = "compute logits", cannot = `Cannot ${action}`;
    this.#turns.requireModel(action);
    const { all, signal } = givenOptions(cannot, options, LOGITS_OPTIONS);
    this.#requireHead(action);
    const isList = Array.isArray(tokenIds) || ArrayBuffer.isView(tokenIds);
    if (!isList) requireKind(cannot, "the prompt", tokenIds, "list");
    const tokens = this.#check(action, Array.from(tokenIds));
    return await this.#turns.once(action, signal, async (signal) => {
      const runner = await this.#ready(signal);
      return await runner.logits(tokens, { all, signal });
    });
  }

  /**
   * Computes a vector for each text: the normed state after its last token. Vectors of length
   * 1, the default, are similar if their dot product is near 1. Texts of similar length run
   * together, so many at once take far less time than one by one.
   *
   * A text is a string, which the tokenizer's end token follows (`<|endoftext|>` if it adds
   * none), or token ids, which are used as they are. A string alone, or ids alone, are one
   * text; an empty list gives an empty list. Models that are not made for it embed as well,
   * but similar texts then need not have similar vectors.
   *
   * ```ts
   * import { loadQwen3 } from "../mod.ts";
   *
   * // Here the embedded story model; for search "Qwen/Qwen3-Embedding-0.6B", with
   * // { instruction: "Given a question, retrieve passages that answer it" } for the question.
   * using qwen = await loadQwen3();
   * const [question] = await qwen.embed("Who has a dog?");
   * const passages = ["Tom has a dog.", "It rained all day."];
   * const vectors = await qwen.embed(passages);
   * const cosines = vectors.map((vector) =>
   *   vector.reduce((sum, value, i) => sum + value * question[i], 0)
   * );
   * console.log(cosines);
   * ```
   *
   * @returns one vector per text, of `dimensions` elements, by default `config.hiddenSize`
   * @throws {OptionError} if an option is unknown or has a wrong value.
   * @throws {Error} if a text is empty or too long, an id is not in the vocabulary, text is
   * given to a checkpoint without a tokenizer, or the model is disposed; the message names
   * the text.
   * @throws the reason of `signal` once that is aborted.
   */
  async embed(
    texts: Text | readonly Text[],
    options: EmbedOptions = {},
  ): Promise<Float32Array[]> {
    const action = "embed";
    this.#turns.requireModel(action);
    const { normalize, dimensions, instruction, signal } = checkEmbedding(
      options,
      this.config.hiddenSize,
    );
    const list = listTexts(texts), which = (i: number) => `text ${i}`;
    const encode = (i: number) =>
      encodeToEmbed(list[i], which(i), instruction, this.#source);
    const states = await this.#states(
      action,
      list.map((_, i) => which(i)),
      encode,
      signal,
    );
    return states.map((state, i) =>
      vectorOf(state, dimensions, normalize, which(i))
    );
  }

  /**
   * Scores how well each document meets a query: the probability that a reranker such as
   * Qwen3-Reranker answers yes rather than no.
   *
   * Ranking reads every document with the query, so a large collection is first narrowed
   * down by its vectors:
   *
   * ```ts
   * import type { Qwen3 } from "../mod.ts";
   *
   * // With "Qwen/Qwen3-Embedding-0.6B" and "Qwen/Qwen3-Reranker-0.6B".
   * async function search(
   *   query: string,
   *   documents: readonly string[],
   *   { embedder, reranker }: { embedder: Qwen3; reranker: Qwen3 },
   * ) {
   *   const instruction = "Given a question, retrieve passages that answer it";
   *   const [question] = await embedder.embed(query, { instruction });
   *   const vectors = await embedder.embed(documents); // once, and kept
   *   const near = vectors.map((vector, index) => ({
   *     index,
   *     cosine: vector.reduce((sum, value, i) => sum + value * question[i], 0),
   *   })).sort((a, b) => b.cosine - a.cosine).slice(0, 20);
   *   const candidates = near.map(({ index }) => documents[index]);
   *   const ranked = await reranker.rerank(query, candidates, { instruction });
   *   return ranked.sort((a, b) => b.score - a.score)
   *     .map(({ index, score }) => ({ document: candidates[index], score }));
   * }
   * console.log(search.name);
   * ```
   *
   * @returns in the order of the documents; an empty list for no documents
   * @throws {OptionError} if an option is unknown or has a wrong value.
   * @throws {Error} if the checkpoint is an embedding model or has no tokenizer, a text is
   * too long with the query, or the model is disposed; the message names the document.
   * @throws the reason of `signal` once that is aborted.
   */
  async rerank(
    query: string,
    documents: readonly string[],
    options: RerankOptions = {},
  ): Promise<Ranking[]> {
    const action = "rerank";
    this.#turns.requireModel(action);
    const { instruction, signal } = checkReranking(options);
    checkDocuments(query, documents);
    const { name, only, rerankTemplate } = this.#checkpoint;
    if (only?.is === "an embedding model") {
      throw new Error(`Cannot rerank: ${unfit(name, only)}`);
    }
    const which = (i: number) => `document ${i} with the query`;
    const encode = (i: number) =>
      encodeToRank(
        rerankPrompt(query, documents[i], instruction, rerankTemplate),
        which(i),
        this.#source,
      );
    const answers = await readAnswers(
      this.#checkpoint,
      () => answerTokens(this.tokenizer, name),
    );
    const states = await this.#states(
      action,
      documents.map((_, i) => which(i)),
      encode,
      signal,
    );
    return states.map((state, index) => ({
      index,
      score: yesProbability(state, answers, which(index)),
    }));
  }

  /** Encodes texts, then computes the state after each. `names` are theirs in errors. */
  async #states(
    action: string,
    names: readonly string[],
    encode: (text: number) => number[],
    signal?: AbortSignal,
  ): Promise<Float32Array[]> {
    const texts: number[][] = [], rests = new Rests();
    for (const [i, name] of names.entries()) {
      texts.push(this.#check(action, encode(i), name));
      await rests.rest(signal);
    }
    if (texts.length === 0) return [];
    const states: Float32Array[] = [];
    // In shares, between which the steps of others run.
    for (const share of stateShares(texts.map(({ length }) => length))) {
      const some = share.map((text) => texts[text]);
      const found = await this.#turns.once(action, signal, async (signal) => {
        const runner = await this.#ready(signal);
        return await runner.states(some, signal);
      });
      share.forEach((text, i) => states[text] = found[i]);
    }
    return states;
  }

  /** Where texts get their tokenizer from. */
  get #source(): TokenizerSource {
    return {
      name: this.#checkpoint.name,
      tokenizer: () => this.tokenizer,
      context: this.context,
    };
  }

  /**
   * Generates text after a prompt. If the checkpoint has a chat template, a text prompt
   * is wrapped in it as a user message unless `raw` is set.
   *
   * Nothing runs until the result is awaited, for the whole reply, or iterated over, for
   * its pieces as they are generated.
   *
   * ```ts
   * import process from "node:process";
   * import { loadQwen3 } from "../mod.ts";
   *
   * using qwen = await loadQwen3();
   * const { text } = await qwen.generate("Once upon a time", { maxTokens: 8 });
   * console.log(text);
   * for await (const { text } of qwen.generate("A dog", { maxTokens: 8 })) {
   *   process.stdout.write(text);
   * }
   * ```
   *
   * @throws {OptionError} if an option is unknown or has a wrong value.
   * @throws {Error} if the prompt is empty or leaves no room for a reply in the context,
   * text is given to a checkpoint without a tokenizer, or the model was disposed.
   */
  generate(prompt: Prompt, options: GenerateOptions = {}): Run {
    return new Run(this.#parts([prompt], options));
  }

  /**
   * Starts an engine, to which requests can be submitted at any time. They run together,
   * and a prompt that begins like an earlier one is not read again.
   *
   * Its steps and `generate`, `logits` and so on take turns: other calls wait for the step
   * in progress, and the engine for what was asked for before its next.
   *
   * @throws {OptionError} if an option is unknown or has a wrong value.
   * @throws {MemoryError} if the device has too little memory.
   * @throws {Error} if the checkpoint is only for embedding or ranking, or the model was
   * disposed.
   */
  async engine(options: EngineOptions = {}): Promise<Engine> {
    const action = "start an engine";
    this.#turns.requireModel(action);
    this.#requireHead(action);
    const size = checkEngine(options, this.context);
    const rows = await this.#turns.exclusive(
      action,
      () => this.#placed.runner.rows(size),
    );
    return new Engine({
      rows,
      slots: size.slots,
      exclusive: (work) => this.#turns.exclusive("generate", work),
      prepare: (prompt, options, start) =>
        this.#parts([prompt], options, size.context, ([asked]) => start(asked)),
      chat: (settings, start) =>
        this.#chat(settings, size.context, ([asked]) => start(asked)),
    });
  }

  /**
   * Generates text for several prompts together, which takes little longer than for one.
   * Up to rounding, each text is what `generate` returns for its prompt, using the seed
   * `(seed + index) mod 2³²` when sampling. The options apply to every text. Each text
   * ends on its own, but a signal ends them all. Memory is reserved for the longest
   * possible texts, so set `maxTokens`; further runs use it again. Of more than
   * 64 prompts, some wait.
   *
   * ```ts
   * import { loadQwen3 } from "../mod.ts";
   *
   * using qwen = await loadQwen3();
   * const prompts = ["Once upon a time", "A dog"];
   * const { sequences, stats } = await qwen.generateBatch(prompts, { maxTokens: 8 });
   * for (const { text, finishReason } of sequences) console.log(text, finishReason);
   * console.log(stats.summary);
   * ```
   *
   * @throws {Error} for the same reasons as `generate` (the message names the prompt),
   * or if there are no prompts.
   * @throws {MemoryError} if the texts do not fit on the device; thrown during
   * iteration if that shows only on allocation.
   */
  generateBatch(
    prompts: readonly Prompt[],
    options: GenerateOptions = {},
  ): BatchRun {
    this.#turns.requireModel("generate");
    requireKind("Cannot generate", "the list of prompts", prompts, "list");
    if (prompts.length === 0) {
      throw new Error(
        "Cannot generate: there are no prompts, there must be at least one",
      );
    }
    return new BatchRun(this.#parts(prompts, options));
  }

  /** How prompts run that start together. */
  #together(asked: readonly Asked[]): Started {
    const { runner } = this.#placed, [ids, most] = sizeOf(asked);
    const slots = runner.hasRows ? MOST_SLOTS : Infinity;
    const together = Math.min(slots, asked.length);
    if (together > 1) {
      runner.requireRoom(together, positionsOf(ids, most, this.context));
    }
    return this.#runs.start(asked);
  }

  /** Starts the engine that runs share; there is room for texts of `positions` each. */
  async #shared(
    positions: readonly number[],
    wanted: number,
  ): Promise<Engine> {
    using turn = this.#turns.begin("generate");
    const { context } = this;
    const slots = Math.min(MOST_SLOTS, Math.max(SHARED_SLOTS, wanted));
    const all = positions.reduce((sum, one) => sum + one, 0);
    const least = Math.min(context, SHARED_POSITIONS);
    const firstTexts = all < least ? [least] : positions;
    const rows = await this.#turns.admit(
      "generate",
      async () => {
        const runner = await this.#ready(turn.signal);
        return await runner.rows({ slots, context, firstTexts });
      },
    );
    return new Engine({
      rows,
      slots,
      exclusive: (work) => this.#turns.together("generate", work),
      prepare: (prompt, options, start) =>
        this.#parts([prompt], options, context, ([asked]) => start(asked)),
      chat: (settings, start) =>
        this.#chat(settings, context, ([asked]) => start(asked)),
    });
  }

  /**
   * Begins a conversation, which keeps its messages and runs only what is new in each turn.
   * It is rendered with the option `chatTemplate`, or {@linkcode chatTemplate}.
   *
   * ```ts
   * import { loadQwen3 } from "../mod.ts";
   *
   * using qwen = await loadQwen3();
   * const chat = qwen.chat({ maxTokens: 8 });
   * const { text } = await chat.send("Once upon a time");
   * console.log(text, chat.messages);
   * ```
   *
   * @throws {OptionError} if an option is unknown or has a wrong value.
   * @throws {Error} if the checkpoint has no tokenizer or no chat template, or the model was
   * disposed.
   */
  chat(settings: ChatSettings = {}): Chat {
    return this.#chat(settings);
  }

  #chat(settings: ChatSettings, ...how: HowRun): Chat {
    const cannot = "Cannot chat";
    this.#turns.requireModel("chat");
    this.#requireHead("chat");
    requireKind(cannot, "the options argument", settings, "object");
    const { tokenizer } = this, { name } = this.#checkpoint;
    const template = settings.chatTemplate ?? this.chatTemplate;
    if (template === undefined) {
      throw new Error(
        `${cannot}: ${name} has no chat template, the option chatTemplate can give one`,
      );
    }
    const [context = this.context, inEngine] = how;
    const model: ChatModel = {
      name: name === DEFAULT_MODEL ? "the story model" : shownUrl(name),
      context,
      config: this.config,
      tokenizer,
      run: (prompt, given, begin) => {
        this.#turns.requireModel("generate");
        const options = checkGenerating({ ...given, chatTemplate: template });
        this.#check("generate", prompt.tokenIds, "the prompt", context);
        return new Run({ ...this.#partsOf([prompt], options, ...how), begin });
      },
      fingerprint: () => this.#fingerprint ??= fingerprintOf(this.#checkpoint),
      withCache: async (action, work) =>
        inEngine ? await work(undefined) : await this.#turns.once(
          action,
          undefined,
          async (signal) => await work((await this.#ready(signal)).kept),
        ),
    };
    return new Chat(model, template, settings);
  }

  /** Validates prompts and options before anything runs. */
  #parts(
    prompts: readonly Prompt[],
    given: GenerateOptions,
    ...how: HowRun
  ): RunParts {
    this.#turns.requireModel("generate");
    this.#requireHead("generate");
    const options = checkGenerating(given), [context] = how;
    return this.#partsOf(
      Array.from(prompts, (prompt, i) => { // the empty items of a list, too
        const where = prompts.length > 1 ? ` (prompt ${i})` : "";
        const one = this.#encode(prompt, options, where);
        const which = promptName(i, prompts);
        this.#check("generate", one.tokenIds, which, context);
        return one;
      }),
      options,
      ...how,
    );
  }

  /** What a run of encoded prompts needs; they start together unless `start` says how. */
  #partsOf(
    encoded: readonly EncodedPrompt[],
    options: GenerateOptions,
    ...[context = this.context, start]: HowRun
  ): RunParts {
    const { generation } = this.#checkpoint;
    const sampling = resolveSampling(
      options,
      generation,
      this.config.vocabSize,
    );
    const { maxTokens, schema, signal } = options;
    // The model's own stop strings could cut JSON off.
    const { stop = schema ? [] : generation.stopStrings ?? [] } = options;
    const maskOf = this.#masks(options);
    const stops = typeof stop === "string" ? [stop] : [...stop];
    if (stops.length > 0 && !this.hasTokenizer) {
      throw new OptionError(
        "stop",
        `Cannot generate: stop strings need a tokenizer, ${
          withoutTokenizer(this.#checkpoint.name)
        }`,
      );
    }
    const { mask } = options;
    if (mask && encoded.length > 1) {
      throw wrongOption(
        "Cannot generate",
        "mask",
        mask,
        `left out for ${encoded.length} prompts, since it follows a single text`,
      );
    }
    const sizes = encoded.map(({ tokenIds: { length }, reply }, i) => {
      const room = context - length;
      const limit = maxTokens ??
        newTokenLimit(generation, length, promptName(i, encoded));
      return {
        promptTokens: length,
        maxTokens: Math.min(limit ?? room, room),
        reply: reply && { ...reply, json: schema !== undefined },
      };
    });
    const eosTokenIds = options.ignoreEos ? [] : this.#ends;
    const { reuse = options.seed === undefined } = options;
    const asked = encoded.map(({ tokenIds: tokens, reply }, i): Asked => {
      const { maxTokens } = sizes[i], mask = maskOf(reply);
      const how = { sampling, mask, reuse, eosTokenIds, signal };
      return { tokens, maxTokens, ...how };
    });
    return {
      ...start?.(asked) ?? this.#together(asked),
      sizes,
      sampling,
      eosTokenIds,
      stop: stops,
      tokenizer: this.#tokenizer,
      device: () => this.device.adapter,
      signal,
    };
  }

  /** The tokens that end a reply. */
  get #ends(): readonly number[] {
    return this.#checkpoint.generation.eosTokenIds ?? this.config.eosTokenIds;
  }

  /** Makes the mask of each reply. */
  #masks(
    { mask, schema, thinking, chatTemplate }: GenerateOptions,
  ): (reply?: ReplyFormat) => TokenMask | undefined {
    if (schema === undefined) {
      return (reply) => this.#callMask(reply, chatTemplate) ?? mask;
    }
    if (!this.hasTokenizer) {
      throw new Error(
        `Cannot generate: a schema needs a tokenizer, ${
          withoutTokenizer(this.#checkpoint.name)
        }`,
      );
    }
    const { tokenizer } = this, grammar = grammarOf(schema);
    const template = chatTemplate ?? tokenizer.chatTemplate ?? "";
    const mayThink = thinking !== false && template.includes("<think>");
    return (reply) =>
      grammar.mask(tokenizer, this.config.vocabSize, this.#ends, {
        thinking: reply?.thinking
          ? "open"
          : reply && mayThink
          ? "allowed"
          : "none",
        tools: reply?.tools,
      });
  }

  /** The mask of a reply whose calls must be valid, if one of the functions is strict. */
  #callMask(
    { tools = [], thinking }: ReplyFormat = {},
    chatTemplate: string | undefined,
  ): TokenMask | undefined {
    if (!anyStrict(tools)) return undefined;
    const { tokenizer } = this;
    requireJsonCalls(tools, chatTemplate ?? tokenizer.chatTemplate ?? "");
    const begins = thinking ? "reasoning" : "text";
    const { vocabSize } = this.config;
    return callGrammarOf(tools).mask(tokenizer, vocabSize, begins);
  }

  /**
   * Runs prompts in lockstep. With device `auto`, starts over on the CPU if the GPU fails
   * before the first token. Says how many tokens of a single prompt it `found` cached.
   */
  async *#alone(
    ...[asked, masks, found, signal]: Parameters<RunsParts["alone"]>
  ): ReturnType<Runner["generate"]> {
    const [prompts, most] = sizeOf(asked), [one] = asked;
    const { sampling, reuse, tokens: { length }, promptTokens = length } = one;
    const begun = length - promptTokens;
    const run = async function* (runner: Runner) {
      const cached = reuse && prompts.length === 1
        ? runner.cachedTokens(prompts[0])
        : 0;
      found(cached);
      const how = [signal, cached, masks, begun] as const;
      yield* runner.generate(prompts, sampling, most, ...how);
    };
    let hasTokens = begun > 0;
    try {
      for await (const ids of run(await this.#ready(signal))) {
        hasTokens = true;
        yield ids;
      }
    } catch (error) {
      if (hasTokens || !this.#recovers(error, prompts.length)) throw error;
      signal.throwIfAborted();
      yield* run(await this.#ready(signal));
    }
  }

  /** Whether the model moves to the CPU after an error; it does when it is used next. */
  #recovers(error: unknown, prompts: number): boolean {
    if (this.#moving) return true;
    const moves = error instanceof DeviceError &&
      !(error instanceof MemoryError && prompts > 1) && // fewer sequences may fit
      (this.#options.device ?? "auto") === "auto" &&
      this.device.kind === "gpu";
    if (!moves) return false;
    this.#moving = gone(error, this.#options);
    this.#runs.lose(error);
    return true;
  }

  /** The runner, on the CPU if the GPU has failed. */
  async #ready(signal: AbortSignal): Promise<Runner> {
    if (this.#moving) {
      this.#placed.runner[Symbol.dispose](); // its memory may be needed
      const options = { ...this.#options, context: this.context, signal };
      this.#placed = await placeOnCpu(this.#checkpoint, options, this.#moving);
      this.#moving = undefined;
    }
    return this.#placed.runner;
  }

  /** Encodes a prompt; `where` ends the message of an error. */
  #encode(
    prompt: Prompt,
    options: GenerateOptions,
    where: string,
  ): EncodedPrompt {
    try {
      return encodePrompt(prompt, options, this.#source);
    } catch (error) {
      if (error instanceof Error) error.message += where;
      throw error;
    }
  }

  /** @throws {Error} if the model is only for embedding or ranking. */
  #requireHead(action: string): void {
    const { name, only } = this.#checkpoint;
    if (only) throw new Error(`Cannot ${action}: ${unfit(name, only)}`);
  }

  #check(
    action: string,
    tokens: number[],
    which = "the prompt",
    context = this.context,
  ): number[] {
    const { vocabSize } = this.config;
    if (tokens.length === 0) {
      throw new Error(
        `Cannot ${action}: ${which} is empty, it must have at least one token`,
      );
    }
    const wrong = tokens.findIndex((id) =>
      !Number.isInteger(id) || id < 0 || id >= vocabSize
    );
    if (wrong >= 0) {
      throw new RangeError(
        `Cannot ${action}: token ${wrong} of ${which} is ${
          described(tokens[wrong])
        }, ids must be integers from 0 to ${vocabSize - 1}`,
      );
    }
    if (action === "generate" && tokens.length === context) {
      throw new RangeError(
        `Cannot generate: ${which} has ${tokens.length} tokens, the context of ${context} has room for no reply`,
      );
    }
    if (tokens.length > context) {
      throw new RangeError(
        `Cannot ${action}: ${which} has ${tokens.length} tokens, the context has room for ${context}`,
      );
    }
    return tokens;
  }

  /**
   * Frees the device and closes the checkpoint, at once or as soon as a run in progress
   * has stopped.
   */
  [Symbol.dispose](): void {
    this.#turns.dispose(() => {
      this.#placed.runner[Symbol.dispose]();
      Promise.resolve(this.#checkpoint[Symbol.asyncDispose]()).catch(() => {});
    });
  }
}
