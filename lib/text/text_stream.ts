/**
 * Generated tokens as pieces of text that can be shown at once.
 *
 * @module
 */
import type { Tokenizer } from "./tokenizer.ts";

/** Options of a {@linkcode TextStream}. */
export interface TextStreamOptions {
  /** The text ends before the first of these; with several, the one that starts earliest. */
  stop?: readonly string[];
  /** Leaves out `<|im_end|>` and the like. Default: true. */
  skipSpecialTokens?: boolean;
}

/**
 * Holds text back until its UTF-8 is whole, and for as long as it may turn
 * out to be a stop string. How the text is split into tokens never changes it.
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
  /** A stop string was met: what follows is dropped. */
  stopped = false;
  #tokenizer: Pick<Tokenizer, "bytes" | "specialIds">;
  #stop: readonly string[];
  #skipSpecialTokens: boolean;
  #utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
  #held = "";

  /** @throws {Error} if a stop string is empty or has half a surrogate pair. */
  constructor(
    tokenizer: Pick<Tokenizer, "bytes" | "specialIds">,
    { stop = [], skipSpecialTokens = true }: TextStreamOptions = {},
  ) {
    for (const text of stop) {
      if (text === "" || !text.isWellFormed()) {
        throw new Error(
          `Cannot stop at ${
            JSON.stringify(text)
          }: a stop string must be whole characters, one at least`,
        );
      }
    }
    this.#tokenizer = tokenizer;
    this.#stop = stop;
    this.#skipSpecialTokens = skipSpecialTokens;
  }

  /** Takes the next token; returns the text that is certain now. */
  push(id: number): { text: string; stopped: boolean } {
    let text = "";
    const skip = this.#skipSpecialTokens && this.#tokenizer.specialIds.has(id);
    if (!this.stopped && !skip) {
      const bytes = this.#tokenizer.bytes(id);
      this.#held += this.#utf8.decode(bytes, { stream: true });
      text = this.#release(true);
    }
    return { text, stopped: this.stopped };
  }

  /** Ends the text: what was held back, an unfinished character as U+FFFD. */
  flush(): string {
    if (this.stopped) return "";
    this.#held += this.#utf8.decode();
    return this.#release(false);
  }

  /** Cuts off what cannot be, or be followed by, the beginning of a stop string. */
  #release(more: boolean): string {
    const held = this.#held;
    let end = 0;
    for (; end < held.length; end++) {
      if (this.#stop.some((stop) => held.startsWith(stop, end))) {
        this.stopped = true;
        break;
      }
      const rest = held.slice(end);
      if (more && this.#stop.some((stop) => stop.startsWith(rest))) break;
    }
    this.#held = this.stopped ? "" : held.slice(end);
    return held.slice(0, end);
  }
}
