/**
 * The texts that one request asks for, generated side by side.
 *
 * @module
 */
import { OptionError } from "../errors.ts";
import type { GenerateOptions, Piece } from "../generate.ts";
import {
  encodePromptInParts,
  type Prompt,
  ReadyPrompt,
} from "../text/prompt.ts";
import { refused, refusing, tooLate } from "./errors.ts";
import type { Place } from "./queue.ts";
import { inTurns, turn } from "./rests.ts";
import { type Service, sourceOf } from "./service.ts";
import { DemandedCall, type Reading } from "./structured.ts";

/** A text to generate. */
export interface Asked {
  prompt: Prompt;
  options: GenerateOptions;
  /** The text is the JSON of a call. */
  demanded?: true;
}

/** Why a text ended, as OpenAI has it. */
export type Finish = "stop" | "tool_calls" | "length";

/** A piece of one of the texts, or its end. */
export type Step =
  & { index: number }
  & ({ piece: Piece } | { finish: Finish });

/** Counts of tokens, over all texts of a request. */
export interface Counts {
  prompt: number;
  cached: number;
  completion: number;
  reasoning: number;
}

/** How a generation is done, apart from what is generated. */
export interface Manner {
  /** The parameter that holds the prompt, for errors. */
  param: string;
  /** Ends it with its reason, such as that the client went away. */
  signal: AbortSignal;
  /** Texts for each prompt, which is counted once. Default: 1. */
  n?: number;
  /** A text ends after its first function call. */
  oneCall?: boolean;
}

/**
 * The texts of a request. Iterate over it for their pieces in the order in which they are
 * generated; the model does not wait for whoever iterates.
 */
export class Generation implements AsyncIterable<Step> {
  /** The token ids of each text's prompt. */
  readonly prompts: readonly number[][];
  /** One per text. */
  readonly runs: readonly Reading[];
  /** Why each text ended; undefined until it has. */
  readonly finishes: (Finish | undefined)[];
  readonly #service: Service;
  readonly #n: number;
  readonly #steps: Step[] = [];
  #news = Promise.withResolvers<void>();
  #error?: unknown;
  #failed = false;
  #left: number;
  #reasoning = 0;
  readonly #ender = new AbortController();
  readonly #signal: AbortSignal;

  /**
   * Checks everything, and begins as soon as there are slots.
   *
   * @throws {ApiError} if the request is wrong, or too many wait.
   */
  static async begin(
    service: Service,
    asked: readonly Asked[],
    manner: Manner,
  ): Promise<Generation> {
    const { param, signal } = manner, source = sourceOf(service);
    service.queue.requireRoom(asked.length); // before the prompts are encoded
    const encoded = new Map<Prompt, ReadyPrompt>();
    for (const { prompt, options } of asked) {
      if (encoded.has(prompt)) continue;
      const parts = encodePromptInParts(prompt, options, source);
      const one = await inTurns(param, parts, signal);
      encoded.set(prompt, new ReadyPrompt(prompt, one));
    }
    // Requests that come together begin together: their sockets are read meanwhile.
    if (service.queue.running === 0) await turn();
    const ready = asked.map((one) => ({
      ...one,
      prompt: encoded.get(one.prompt)!,
    }));
    return new Generation(service, ready, manner);
  }

  private constructor(
    service: Service,
    asked: readonly (Omit<Asked, "prompt"> & { prompt: ReadyPrompt })[],
    { param, signal, n = 1, oneCall = false }: Manner,
  ) {
    this.prompts = asked.map(({ prompt }) => prompt.tokenIds);
    this.#service = service;
    this.#n = n;
    this.#left = asked.length;
    this.finishes = asked.map(() => undefined);
    this.#signal = AbortSignal.any([signal, this.#ender.signal]);
    const places = service.queue.take(asked.length);
    try {
      this.runs = refusing(
        param,
        () =>
          asked.map(({ prompt, options, demanded }) => {
            const how = { ...options, signal: this.#signal };
            // Not a prompt of the public API, but runs take it.
            const ready = prompt as unknown as Prompt;
            const run = service.engine.submit(ready, how);
            return demanded ? new DemandedCall(run) : run;
          }),
      );
    } catch (error) {
      for (const place of places) place[Symbol.dispose]();
      throw error;
    }
    const { seconds, metrics } = service, began = performance.now();
    const timer = setTimeout(
      () => this.abort(tooLate(seconds)),
      1000 * seconds,
    );
    Promise.all(
      this.runs.map((run, i) => this.#pump(i, run, places[i], oneCall, began)),
    ).finally(() => {
      clearTimeout(timer);
      metrics.answered((performance.now() - began) / 1000);
    });
  }

  /** Ends it; those who iterate get the reason. */
  abort(reason: unknown): void {
    this.#ender.abort(reason);
    this.#fail(reason);
  }

  /** Resolves with the first step, or after some milliseconds without one. */
  async begun(milliseconds: number): Promise<void> {
    const patience = Promise.withResolvers<void>();
    const timer = setTimeout(patience.resolve, milliseconds);
    await Promise.race([this.#news.promise, patience.promise]);
    clearTimeout(timer);
    if (this.#failed) throw this.#error;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Step, void> {
    for (;;) {
      for (const step of this.#steps.splice(0)) yield step;
      if (this.#failed) throw this.#error;
      if (this.#steps.length > 0) continue;
      if (this.#left === 0) return;
      this.#news = Promise.withResolvers();
      await this.#news.promise;
    }
  }

  /** Waits for all texts; returns the pieces of each. */
  async finished(): Promise<Piece[][]> {
    const pieces: Piece[][] = this.runs.map(() => []);
    for await (const step of this) {
      if ("piece" in step) pieces[step.index].push(step.piece);
    }
    return pieces;
  }

  /** Tokens so far. */
  get counts(): Counts {
    const counts = { prompt: 0, cached: 0, completion: 0, reasoning: 0 };
    for (const [i, { stats }] of this.runs.entries()) {
      counts.completion += stats.tokens;
      if (i % this.#n > 0) continue;
      counts.prompt += stats.promptTokens;
      counts.cached += stats.cachedTokens;
    }
    return { ...counts, reasoning: this.#reasoning };
  }

  /** Generates one text to its end, without waiting for whoever iterates. */
  async #pump(
    index: number,
    run: Reading,
    place: Place,
    oneCall: boolean,
    began: number,
  ): Promise<void> {
    const { metrics } = this.#service;
    let first = true;
    try {
      await place.turn(this.#signal);
      for await (const piece of run) {
        if (first) metrics.firstToken((performance.now() - began) / 1000);
        first = false;
        if (piece.kind === "reasoning" && piece.tokenId !== null) {
          this.#reasoning++;
        }
        this.#add({ index, piece });
        if (oneCall && run.toolCalls.length > 0) break;
      }
      this.#signal.throwIfAborted();
      const { finishReason } = run;
      const finish = finishReason === "aborted" ? "tool_calls" : finishReason!;
      this.finishes[index] = finish;
      this.#left--;
      this.#add({ index, finish });
    } catch (error) {
      const fault = this.#signal.aborted ? this.#signal.reason : error;
      // A schema may turn out to be too much only while it is followed.
      this.abort(fault instanceof OptionError ? refused(fault, "") : fault);
    } finally {
      place[Symbol.dispose]();
      metrics.generated(run.stats);
    }
  }

  #add(step: Step): void {
    this.#steps.push(step);
    this.#news.resolve();
  }

  #fail(error: unknown): void {
    if (this.#failed || this.#left === 0) return;
    this.#failed = true;
    this.#error = error;
    this.#news.resolve();
  }
}
