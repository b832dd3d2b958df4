/**
 * Which tokens may come next in a reply that must be JSON.
 *
 * @module
 */
import { described } from "../../errors.ts";
import { literal, type Part, start, type Threads } from "./automaton.ts";
import { buildGrammar } from "./build.ts";
import { callGrammarOf, type CallMask } from "./calls.ts";
import { Recent } from "./recent.ts";
import { anyStrict, type Tool } from "../conversation.ts";
import type { Tokenizer } from "../tokenizer.ts";
import { type Vocabulary, vocabularyOf } from "./vocabulary.ts";

/** What a reply may have before its JSON. */
export interface Lead {
  /**
   * "open" if the prompt ends inside reasoning, "allowed" if the reply may begin with some,
   * "none" by default.
   */
  readonly thinking?: "open" | "allowed" | "none";
  /** The functions that the reply may call instead. */
  readonly tools?: readonly Tool[];
}

const LINES = "\n\n";

/**
 * The replies that are valid under a JSON schema; `true` stands for any object. The text is
 * compact JSON: no white space between tokens, and properties in the order in which the
 * schema names them, then others. An object whose schema has `properties` gets others only
 * if it also has `additionalProperties`, `patternProperties` or a `minProperties` that needs
 * them.
 *
 * Everything that a reply may be is valid: what cannot be guaranteed is refused. Not every
 * valid text can be written: see `numberOf` for numbers.
 */
export class SchemaGrammar {
  readonly #part: Part;
  readonly #afterThinking: Part;

  /** @throws {SchemaError} if the schema is wrong, or cannot be guaranteed. */
  constructor(schema: object | true) {
    this.#part = buildGrammar(schema === true ? { type: "object" } : schema);
    this.#afterThinking = {
      choice: [{ sequence: [literal(LINES), this.#part] }, this.#part],
    };
  }

  /**
   * A mask for one reply.
   *
   * @param vocab the number of logits
   * @param ends the tokens that end a reply
   * @throws {Error} if there is no token that ends one, or reasoning is open and the
   * tokenizer has no `</think>`.
   */
  mask(
    tokenizer: Tokenizer,
    vocab: number,
    ends: readonly number[],
    lead: Lead = {},
  ): SchemaMask {
    return new SchemaMask(
      { json: this.#part, afterThinking: this.#afterThinking },
      tokenizer,
      vocab,
      ends,
      lead,
    );
  }
}

/** A server is sent the same schemas often. */
const known = new Recent<SchemaGrammar>();

/**
 * The grammar of a schema, which is kept for the next time.
 *
 * @throws {SchemaError} if the schema is wrong, or cannot be guaranteed.
 */
export function grammarOf(schema: object | true): SchemaGrammar {
  let key: string;
  try {
    key = JSON.stringify(schema);
  } catch {
    return new SchemaGrammar(schema); // which says what is wrong
  }
  return known.of(key, () => new SchemaGrammar(schema));
}

/** Where a reply is. */
type Stage = "thinking" | "lead" | "json" | "call" | "ended";

/** The tokens that may come next in one reply. */
export class SchemaMask {
  readonly #grammar: { readonly json: Part; readonly afterThinking: Part };
  readonly #tokenizer: Tokenizer;
  readonly #vocabulary: Vocabulary;
  readonly #vocab: number;
  readonly #ends: readonly number[];
  /** Tokens with a meaning; undefined where they have none. */
  /** Undefined once there was reasoning. */
  #think: number | undefined;
  readonly #thinkEnd: number | undefined;
  readonly #call: number | undefined;
  readonly #tools: readonly Tool[];
  /** What follows the tag of a call, if one of the functions is strict. */
  #calls?: CallMask;
  #stage: Stage;
  /** White space in the lead. */
  #blank = "";
  #threads: Threads;

  /** @ignore Made by {@linkcode SchemaGrammar.mask}. */
  constructor(
    grammar: { readonly json: Part; readonly afterThinking: Part },
    tokenizer: Tokenizer,
    vocab: number,
    ends: readonly number[],
    { thinking = "none", tools = [] }: Lead,
  ) {
    const added = (text: string) => {
      const id = tokenizer.tokenId(text);
      return id !== undefined && tokenizer.addedIds.has(id) ? id : undefined;
    };
    this.#grammar = grammar;
    this.#tokenizer = tokenizer;
    this.#vocabulary = vocabularyOf(tokenizer, vocab);
    this.#vocab = vocab;
    this.#ends = ends.filter((id) => id < vocab);
    if (this.#ends.length === 0) {
      throw new Error(
        "Cannot generate: the model has no end token, which a reply with a schema needs",
      );
    }
    this.#thinkEnd = added("</think>");
    this.#think = thinking === "allowed" && this.#thinkEnd !== undefined
      ? added("<think>")
      : undefined;
    this.#tools = tools;
    this.#call = tools.length > 0 ? added("<tool_call>") : undefined;
    this.#stage = thinking === "open" ? "thinking" : "lead";
    if (thinking === "open" && this.#thinkEnd === undefined) {
      throw new Error(
        "Cannot generate: the tokenizer has no </think>, so thinking must be false with a schema",
      );
    }
    this.#threads = start(grammar.json);
  }

  /** Whether the JSON is complete, even if it could go on. */
  get complete(): boolean {
    return this.#threads.complete;
  }

  /**
   * Sets the bits of the tokens that may come next (bit `id % 32` of word `id / 32`) and clears
   * the others. Returns false if any may, and leaves the bits as they are.
   *
   * @throws {Error} if the vocabulary has none of them.
   */
  fill(bits: Uint32Array): boolean {
    if (this.#stage === "ended") return false;
    if (this.#stage === "call") return this.#calls?.fill(bits) ?? false;
    const allow = (id: number | undefined) => {
      if (id !== undefined) bits[id >>> 5] |= 1 << (id & 31);
    };
    if (this.#stage === "thinking") {
      bits.fill(0xffffffff);
      for (const id of this.#ends) bits[id >>> 5] &= ~(1 << (id & 31));
      return true;
    }
    bits.fill(0);
    this.#vocabulary.allow(this.#threads, bits);
    if (this.#threads.complete) this.#ends.forEach(allow);
    if (this.#stage === "lead") {
      if (this.#blank === "") allow(this.#think);
      allow(this.#call);
    }
    if (bits.some((word) => word !== 0)) return true;
    throw new Error(
      "Cannot generate: no token of the vocabulary continues the JSON text",
    );
  }

  /**
   * Takes the token that was sampled.
   *
   * @throws {Error} if it was not allowed.
   */
  accept(tokenId: number): void {
    if (this.#stage === "thinking") {
      if (tokenId !== this.#thinkEnd) return;
      this.#stage = "lead";
      this.#blank = "";
      this.#threads = start(this.#grammar.afterThinking);
      return;
    }
    if (this.#stage === "ended") return;
    if (this.#stage === "call") return this.#calls?.accept(tokenId);
    if (this.#stage === "lead") {
      const leads = tokenId === this.#think && this.#blank === "";
      if (leads) {
        this.#stage = "thinking";
        this.#think = undefined;
        return;
      }
      if (tokenId === this.#call) {
        this.#stage = "call";
        if (!anyStrict(this.#tools)) return;
        const grammar = callGrammarOf(this.#tools);
        this.#calls = grammar.mask(this.#tokenizer, this.#vocab, "call");
        return;
      }
    }
    if (this.#threads.complete && this.#ends.includes(tokenId)) {
      this.#stage = "ended";
      return;
    }
    this.#read(tokenId);
  }

  #read(tokenId: number): void {
    const text = this.#tokenizer.addedIds.has(tokenId) || tokenId >= this.#vocab
      ? new Uint8Array()
      : this.#tokenizer.bytes(tokenId);
    let threads = this.#threads;
    for (const byte of text) threads = threads.after(byte);
    if (text.length === 0 || threads.dead) {
      throw new Error(
        `Cannot continue a reply with a schema: token ${
          described(tokenId)
        } was not allowed`,
      );
    }
    this.#threads = threads;
    if (this.#stage !== "lead") return;
    const blank = this.#blank + String.fromCharCode(...text);
    if (LINES.startsWith(blank)) this.#blank = blank;
    else this.#stage = "json";
  }
}
