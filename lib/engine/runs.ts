/**
 * The runs of a model. One of a single prompt that is alone has the device to itself and
 * continues from the cache that the last one left. Several prompts are requests of one engine,
 * and so are several runs: one that was alone goes on there after the tokens that it has. If
 * there is no memory for several, newcomers are refused, and the run goes on alone.
 *
 * @module
 */
import { DeviceError, MemoryError } from "../errors.ts";
import type { Consumer, RunTokens } from "../generate.ts";
import {
  faultText,
  type MaskSource,
  type SampledTokens,
  validToken,
} from "../model/sampling.ts";
import type { Turn, Turns } from "../model/turns.ts";
import type { Asked, Engine, Started } from "./engine.ts";

/** What runs need from their model. */
export interface RunsParts {
  readonly turns: Turns;
  /** Whether several runs can share an engine; otherwise they take turns. */
  canShare(): boolean;
  /**
   * Runs prompts alone, all of them in lockstep, after as many tokens of their replies. Calls
   * `found` with the number of tokens of a single prompt that were cached.
   */
  alone(
    asked: readonly Asked[],
    masks: readonly (MaskSource | undefined)[],
    found: (tokens: number) => void,
    signal: AbortSignal,
  ): AsyncGenerator<SampledTokens, void>;
  /** How many tokens of a prompt are cached for a run that is alone. */
  cachedTokens(tokens: readonly number[]): number;
  /**
   * Starts the engine that runs share, with at least so many slots and room for texts of so
   * many positions; then no run is alone.
   *
   * @throws {MemoryError} if the device has too little memory.
   */
  engine(positions: readonly number[], slots: number): Promise<Engine>;
  /** Whether a run that has no tokens yet can start over elsewhere after this error. */
  recover(error: unknown): boolean;
}

/** The most slots of the engine that runs share; the texts of more prompts take turns. */
export const MOST_SLOTS = 64;

/** How often a run looks whether others still compute, if it has to go on alone. */
const CALM_MS = 10;

/** A run from its start to its end. */
interface Running {
  readonly asked: readonly Asked[];
  /** The prompts and the tokens after them so far. */
  readonly texts: readonly number[][];
  readonly consumer: Consumer;
  readonly turn: Turn;
  found: () => number;
  /** Whether it was among others. */
  shared: boolean;
}

/** Decides where each run of a model computes. */
export class Runs {
  #engine?: Promise<Engine>;
  /** That engine, once it has started. */
  #started?: Engine;
  /** Runs that wait for it to start or to have room, and have no requests there yet. */
  #waiting = 0;
  /** The texts of the run that was the last to be alone. */
  #lone: readonly number[][] = [];

  constructor(readonly parts: RunsParts) {}

  /** How a run of one or more prompts computes its tokens. */
  start(asked: readonly Asked[]): Started {
    let run: Running | undefined;
    return {
      start: (consumer) => {
        const [{ signal }] = asked;
        const turn = this.parts.turns.begin("generate", signal);
        const texts = asked.map(({ tokens }) => [...tokens]);
        const found = () => 0, shared = false;
        run = { asked, texts, consumer, turn, found, shared };
        const iterate = () => this.#iterate(run!);
        return { signal: turn.signal, [Symbol.asyncIterator]: iterate };
      },
      cachedTokens: () => run?.found() ?? 0,
    };
  }

  async *#iterate(run: Running): AsyncGenerator<RunTokens, void> {
    using turn = run.turn;
    const { parts } = this, { signal } = turn;
    let wasAlone = false, waits = false;
    while (!signal.aborted) {
      if (!parts.canShare()) {
        const work = this.#lockstep(run);
        return yield* parts.turns.beside(turn, work);
      }
      if (waits) await this.#calm(signal);
      if (waits || this.#mayBeAlone(run)) {
        const { steady } = run.consumer, work = this.#lockstep(run);
        this.#lone = run.texts;
        if (yield* parts.turns.alone(turn, work, steady)) return;
        [wasAlone, waits] = [true, false];
      }
      try {
        return yield* this.#inEngine(run);
      } catch (error) {
        // Too little memory for several does not move the model: one alone may fit.
        const isFull = error instanceof MemoryError;
        waits = isFull && wasAlone && !run.shared;
        const startsOver = !isFull && !hasBegun(run) && parts.recover(error);
        if (!waits && !startsOver) throw error;
      }
    }
    signal.throwIfAborted();
  }

  /** Waits until no other run computes, or the signal is aborted. */
  async #calm(signal: AbortSignal): Promise<void> {
    const isBusy = () => this.#started?.isBusy || !this.parts.turns.isFree;
    while (isBusy() && !signal.aborted) {
      await new Promise((resolve) => setTimeout(resolve, CALM_MS));
    }
  }

  /** Whether no other run is active and the engine has no more of the prompt cached. */
  #mayBeAlone(run: Running): boolean {
    const { parts } = this, engine = this.#started;
    const [one, ...more] = run.asked;
    const isBusy = this.#waiting > 0 || engine?.isBusy || !parts.turns.isFree;
    if (isBusy || more.length > 0) return false;
    const begun = hasBegun(run);
    if (begun || !engine || !one.reuse) return !begun;
    return engine.cachedTokens(one.tokens) <= parts.cachedTokens(one.tokens);
  }

  /** Computes the tokens of a run by itself, or the rest of them. */
  #lockstep(
    run: Running,
  ): (signal: AbortSignal) => AsyncGenerator<SampledTokens, void> {
    const { parts } = this, { asked, texts, consumer } = run;
    const begun = lengthsOf(run).find((_, s) => !consumer.ended(s)) ?? 0;
    const after = asked.map((one, s): Asked => {
      const promptTokens = one.tokens.length, text = texts[s];
      const length = promptTokens + begun;
      // What follows the end of a text is not used.
      const tokens = Array.from({ length }, (_, i) => text[i] ?? text[0]);
      return { ...one, tokens, promptTokens };
    });
    const masks = asked.map(({ mask }, s): MaskSource | undefined =>
      mask && { fill: (bits) => !consumer.ended(s) && mask.fill(bits) }
    );
    const found = (tokens: number) => {
      if (begun === 0) run.found = () => tokens;
    };
    return async function* (signal) {
      for await (const ids of parts.alone(after, masks, found, signal)) {
        ids.forEach((id, at) => {
          const s = at % texts.length;
          if (consumer.ended(s)) return;
          texts[s].push(validToken(id));
          if (faultText(id) === undefined) asked[s].mask?.accept(id);
        });
        yield ids;
      }
    };
  }

  /** Computes the tokens of a run, or the rest of them, beside others. */
  async *#inEngine(run: Running): AsyncGenerator<RunTokens, void> {
    using ending = new DisposableStack();
    const ender = ending.adopt(new AbortController(), (one) => one.abort());
    // Until its requests are there the engine looks idle, and another run might end it.
    this.#waiting++;
    const { engine, tokens } = await this.#enter(run, ender.signal)
      .finally(() => this.#waiting--);
    try {
      for await (const ids of tokens) {
        run.texts[ids.sequence].push(...ids.map(validToken));
        yield ids;
      }
    } catch (error) {
      const failed = error instanceof DeviceError &&
        !(error instanceof MemoryError);
      if (failed && this.#started === engine) this.lose(error);
      throw error;
    }
  }

  /** Makes requests of a run's texts, until `ended` is aborted. */
  async #enter(run: Running, ended: AbortSignal) {
    const { asked, texts, consumer, turn } = run;
    const engine = await this.#shared(asked);
    run.shared = true;
    const signal = AbortSignal.any([turn.signal, ended]);
    const requests = texts.map((tokens, s): Started | undefined => {
      const { sampling, maxTokens, tokens: { length } } = asked[s];
      const left = maxTokens - (tokens.length - length);
      if (consumer.ended(s) || left < 1) return undefined;
      return engine.start({
        ...asked[s],
        tokens: tokens.slice(),
        promptTokens: length,
        maxTokens: left,
        sampling: { ...sampling, seed: (sampling.seed + s) >>> 0 },
        signal,
      });
    });
    if (!hasBegun(run)) {
      run.found = () =>
        requests.reduce((sum, one) => sum + (one?.cachedTokens() ?? 0), 0);
    }
    const streams = requests.map((one) =>
      one?.start(consumer)[Symbol.asyncIterator]()
    );
    return { engine, tokens: merged(streams, consumer) };
  }

  /**
   * The engine, once it has room for a run that was alone and is no longer, and for the texts
   * of several prompts.
   *
   * @throws {MemoryError} if it has none; that run then goes on alone.
   */
  async #shared(asked: readonly Asked[]): Promise<Engine> {
    const { turns } = this.parts;
    turns.oustUnbegun(); // before it reads a prompt that will be read again
    const lone = turns.isAlone ? this.#lone : [];
    const positions = lone.map(({ length }) => length);
    if (asked.length > 1) {
      const each = asked.map(({ tokens, maxTokens }) =>
        tokens.length + maxTokens - 1
      );
      const longest = each.sort((a, b) => b - a).slice(0, MOST_SLOTS);
      positions.push(...longest);
    }
    this.#endIfSmaller(positions, asked.length);
    this.#engine ??= this.#begin(positions, asked.length);
    const engine = await this.#engine;
    if (positions.length > 0) { // another run may have begun the engine
      await turns.admit("generate", () => engine.reserve(positions));
    }
    return engine;
  }

  /**
   * Ends an engine that does nothing, if it is too small for several prompts: a larger one
   * takes less memory than both caches while one is copied.
   */
  #endIfSmaller(positions: readonly number[], slots: number): void {
    const engine = this.#started;
    if (slots < 2 || !engine?.isEmpty || this.#waiting > 1) return;
    const hasSlots = engine.stats.slots >= Math.min(slots, MOST_SLOTS);
    if (hasSlots && engine.hasRoom(positions)) return;
    this.#engine = this.#started = undefined;
    engine[Symbol.dispose]();
  }

  async #begin(positions: readonly number[], slots: number): Promise<Engine> {
    try {
      return this.#started = await this.parts.engine(positions, slots);
    } catch (error) {
      this.#engine = undefined;
      throw error;
    }
  }

  /** Gives up the engine, whose device has failed; runs there end or start over. */
  lose(error: DeviceError): void {
    const engine = this.#started;
    this.#engine = this.#started = undefined;
    engine?.end(error);
  }
}

/** The number of tokens of each text so far. */
const lengthsOf = ({ asked, texts }: Running): number[] =>
  texts.map(({ length }, s) => length - asked[s].tokens.length);

const hasBegun = (run: Running): boolean => lengthsOf(run).some((n) => n > 0);

/**
 * Yields what several streams yield, as soon as it is there. They begin at once, not with
 * the first token that is asked for.
 */
function merged(
  streams: readonly (AsyncIterator<SampledTokens> | undefined)[],
  consumer: Consumer,
): AsyncGenerator<Arrived, void> {
  // No race of promises: each would note every one that it was in.
  const there: { sequence: number; next: Promise<Next> }[] = [];
  const waiting = new Set<number>();
  let wake = () => {};
  const ask = (sequence: number) => {
    const next = streams[sequence]!.next();
    const arrived = () => {
      there.push({ sequence, next });
      wake();
    };
    waiting.add(sequence);
    next.then(arrived, arrived);
  };
  const arriving = async function* (): AsyncGenerator<Arrived, void> {
    try {
      while (waiting.size > 0) {
        if (there.length === 0) {
          await new Promise<void>((resolve) => wake = resolve);
        }
        const { sequence, next } = there.shift()!;
        waiting.delete(sequence);
        const result = await next;
        if (result.done) continue;
        yield Object.assign(result.value, { sequence });
        if (consumer.ended(sequence)) await streams[sequence]!.return?.();
        else ask(sequence);
      }
    } finally {
      // Whoever made the streams ends those that compute.
      for (const { sequence } of there) waiting.delete(sequence);
      for (const [s, stream] of streams.entries()) {
        if (!waiting.has(s)) stream?.return?.().catch(() => {});
      }
    }
  };
  streams.forEach((stream, s) => stream && ask(s));
  return arriving();
}

type Next = IteratorResult<SampledTokens, void>;

/** Tokens of the sequence with this index. */
type Arrived = SampledTokens & { readonly sequence: number };
