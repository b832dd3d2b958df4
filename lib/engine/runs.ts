/**
 * The runs of a model. One that is alone has the device to itself and continues from the
 * cache that the last one left. As soon as there are several, they are requests of one engine,
 * and a run that was alone goes on there after the tokens that it has.
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
   * Runs prompts alone, all of them in lockstep. Calls `found` with the number of tokens of
   * a single prompt that were cached.
   */
  alone(
    asked: readonly Asked[],
    masks: readonly (MaskSource | undefined)[],
    found: (tokens: number) => void,
    signal: AbortSignal,
  ): AsyncGenerator<SampledTokens, void>;
  /** How many tokens of a prompt are cached for a run that is alone. */
  cachedTokens(tokens: readonly number[]): number;
  /** Starts the engine that runs share. */
  engine(): Promise<Engine>;
  /** Whether a run that has no tokens yet can start over elsewhere after this error. */
  recover(error: unknown): boolean;
}

/** A run from its start to its end. */
interface Running {
  readonly asked: readonly Asked[];
  /** The prompts and the tokens after them so far. */
  readonly texts: readonly number[][];
  readonly consumer: Consumer;
  readonly turn: Turn;
  found: () => number;
}

/** Decides where each run of a model computes. */
export class Runs {
  #engine?: Promise<Engine>;
  /** That engine, once it has started. */
  #started?: Engine;
  /** Runs that wait for it to start. */
  #waiting = 0;

  constructor(readonly parts: RunsParts) {}

  /** How a run of one or more prompts computes its tokens. */
  start(asked: readonly Asked[]): Started {
    let run: Running | undefined;
    return {
      start: (consumer) => {
        const [{ signal }] = asked;
        const turn = this.parts.turns.begin("generate", signal);
        const texts = asked.map(({ tokens }) => [...tokens]);
        run = { asked, texts, consumer, turn, found: () => 0 };
        const iterate = () => this.#iterate(run!);
        return { signal: turn.signal, [Symbol.asyncIterator]: iterate };
      },
      cachedTokens: () => run?.found() ?? 0,
    };
  }

  async *#iterate(run: Running): AsyncGenerator<RunTokens, void> {
    using turn = run.turn;
    const { parts } = this, { signal } = turn;
    while (!signal.aborted) {
      if (!parts.canShare()) {
        const work = this.#lockstep(run);
        return yield* parts.turns.beside(turn, work);
      }
      if (this.#mayBeAlone(run)) {
        const { steady } = run.consumer, work = this.#lockstep(run);
        if (yield* parts.turns.alone(turn, work, steady)) return;
      }
      try {
        return yield* this.#inEngine(run);
      } catch (error) {
        const begun = run.texts.some(({ length }, s) =>
          length > run.asked[s].tokens.length
        );
        if (begun || !parts.recover(error)) throw error;
      }
    }
    signal.throwIfAborted();
  }

  /** Whether no other run is active and the engine has no more of the prompt cached. */
  #mayBeAlone({ asked, texts }: Running): boolean {
    const { parts } = this, engine = this.#started, [one, ...more] = asked;
    if (this.#waiting > 0 || engine?.isBusy || !parts.turns.isFree) {
      return false;
    }
    const hasBegun = texts[0].length > one.tokens.length;
    if (hasBegun || !engine || !one.reuse || more.length > 0) return !hasBegun;
    return engine.cachedTokens(one.tokens) <= parts.cachedTokens(one.tokens);
  }

  /** Computes the tokens of a run by itself. */
  #lockstep(
    run: Running,
  ): (signal: AbortSignal) => AsyncGenerator<SampledTokens, void> {
    const { parts } = this, { asked, texts, consumer } = run;
    const masks = asked.map(({ mask }, s): MaskSource | undefined =>
      mask && { fill: (bits) => !consumer.ended(s) && mask.fill(bits) }
    );
    const found = (tokens: number) => run.found = () => tokens;
    return async function* (signal) {
      for await (const ids of parts.alone(asked, masks, found, signal)) {
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
    const { asked, texts, consumer, turn } = run;
    this.parts.turns.oust(); // before it reads a prompt that will be read again
    const engine = await this.#shared();
    const ender = new AbortController();
    const signal = AbortSignal.any([turn.signal, ender.signal]);
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
    if (texts.every(({ length }, s) => length === asked[s].tokens.length)) {
      run.found = () =>
        requests.reduce((sum, one) => sum + (one?.cachedTokens() ?? 0), 0);
    }
    const streams = requests.map((one) =>
      one?.start(consumer)[Symbol.asyncIterator]()
    );
    try {
      for await (const ids of merged(streams, consumer)) {
        texts[ids.sequence].push(...ids.map(validToken));
        yield ids;
      }
    } catch (error) {
      const failed = error instanceof DeviceError &&
        !(error instanceof MemoryError);
      if (failed && this.#started === engine) this.lose(error);
      throw error;
    } finally {
      ender.abort();
    }
  }

  async #shared(): Promise<Engine> {
    this.#waiting++;
    try {
      this.#engine ??= this.parts.engine().then((engine) =>
        this.#started = engine
      );
      return await this.#engine;
    } catch (error) {
      this.#engine = undefined;
      throw error;
    } finally {
      this.#waiting--;
    }
  }

  /** Gives up the engine, whose device has failed; runs there end or start over. */
  lose(error: DeviceError): void {
    const engine = this.#started;
    this.#engine = this.#started = undefined;
    engine?.end(error);
  }
}

/** Yields what several streams yield, as soon as it is there. */
async function* merged(
  streams: readonly (AsyncIterator<SampledTokens> | undefined)[],
  consumer: Consumer,
): AsyncGenerator<SampledTokens & { readonly sequence: number }, void> {
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
  streams.forEach((stream, s) => stream && ask(s));
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
}

type Next = IteratorResult<SampledTokens, void>;
