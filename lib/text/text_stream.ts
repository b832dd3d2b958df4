/**
 * Turns generated tokens into pieces of text that can be displayed right away.
 *
 * @module
 */
import { described, OptionError } from "../errors.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** @throws {OptionError} if text cannot end at `stop`. */
export function requireStopString(stop: unknown): void {
  if (typeof stop === "string" && stop !== "" && stop.isWellFormed()) return;
  throw new OptionError(
    "stop",
    `Cannot generate: stop is ${
      described(stop)
    }, a stop string must be one or more whole characters`,
  );
}

/** Options of a {@linkcode TextStream}. */
export interface TextStreamOptions {
  /** The text ends before the earliest occurrence of any of these. */
  stop?: readonly string[];
}

/**
 * Holds text back until its UTF-8 is complete and it can no longer be the start of a
 * stop string. The text does not depend on how it is split into tokens. Special tokens
 * such as `<|im_end|>` are left out of it, but stop strings match them spelled out.
 *
 * ```ts
 * const letters = { bytes: (id: number) => Uint8Array.of(id), specialIds: new Set<number>() };
 * const stream = new TextStream(letters, { stop: ["END"] });
 * let text = "";
 * for (const id of new TextEncoder().encode("Hello. EN. END. More.")) {
 *   const piece = stream.push(id);
 *   text += piece.text;
 *   if (piece.stopped) break;
 * }
 * text += stream.flush();
 * console.assert(text === "Hello. EN. ");
 * ```
 */
export class TextStream {
  /** Whether a stop string was found; the text after it is dropped. */
  stopped = false;
  #tokenizer: Pick<Tokenizer, "bytes" | "specialIds">;
  #stop: readonly string[];
  #utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
  #held = "";
  /** Where special tokens lie in the held text. */
  #special: { begin: number; end: number }[] = [];

  /** @throws {TypeError} if a stop string is empty or contains an unpaired surrogate. */
  constructor(
    tokenizer: Pick<Tokenizer, "bytes" | "specialIds">,
    { stop = [] }: TextStreamOptions = {},
  ) {
    stop.forEach(requireStopString);
    this.#tokenizer = tokenizer;
    this.#stop = stop;
  }

  /**
   * Adds a token; returns the text that can be released. An `end` token is treated as
   * special.
   */
  push(id: number, end = false): { text: string; stopped: boolean } {
    let text = "";
    if (!this.stopped) {
      const bytes = this.#tokenizer.bytes(id);
      if (end || this.#tokenizer.specialIds.has(id)) {
        // Bytes of a character on both sides of the token still belong together.
        const spelled = new TextDecoder().decode(bytes);
        const begin = this.#held.length;
        this.#held += spelled;
        this.#special.push({ begin, end: this.#held.length });
      } else this.#held += this.#utf8.decode(bytes, { stream: true });
      text = this.#release(true);
    }
    return { text, stopped: this.stopped };
  }

  /**
   * Ends the text; returns what was held back, with an incomplete character as U+FFFD.
   */
  flush(): string {
    if (this.stopped) return "";
    this.#held += this.#utf8.decode();
    return this.#release(false);
  }

  /**
   * Releases held text up to a stop string or, if `more` follows, up to where one may
   * have begun.
   */
  #release(more: boolean): string {
    const held = this.#held;
    let end = this.#stop.length > 0 ? 0 : held.length;
    for (; end < held.length; end++) {
      if (this.#stop.some((stop) => held.startsWith(stop, end))) {
        this.stopped = true;
        break;
      }
      const rest = held.slice(end);
      if (more && this.#stop.some((stop) => stop.startsWith(rest))) break;
    }
    this.#held = this.stopped ? "" : held.slice(end);
    return this.#take(held.slice(0, end));
  }

  /** Leaves special tokens out of text that is released. */
  #take(released: string): string {
    let text = "", at = 0;
    for (const { begin, end } of this.#special) {
      text += released.slice(at, Math.max(at, begin));
      at = Math.max(at, end);
    }
    text += released.slice(at);
    this.#special = this.#special
      .map(({ begin, end }) => ({
        begin: Math.max(0, begin - released.length),
        end: end - released.length,
      }))
      .filter(({ end }) => end > 0);
    return text;
  }
}
