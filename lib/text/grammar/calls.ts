/**
 * Which tokens may come next in a reply that is free, except for its calls of functions: those
 * are JSON that is valid under the schema of a strict one. Everything that ReplyStream
 * (../reply.ts) takes for a call was written under the grammar.
 *
 * @module
 */
import { described, OptionError } from "../../errors.ts";
import { anyStrict, type Tool } from "../conversation.ts";
import { hiddenIds, TAGS } from "../reply.ts";
import { XML_CALL } from "../tool_calls.ts";
import type { Tokenizer } from "../tokenizer.ts";
import { literals, type Part, start, type Threads } from "./automaton.ts";
import { buildGrammar } from "./build.ts";
import { SchemaError } from "./error.ts";
import { Recent } from "./recent.ts";
import { vocabularyOf } from "./vocabulary.ts";

const { think: THINK, thinkEnd: THINK_END, call: CALL, callEnd: CALL_END } =
  TAGS;

const known = new Recent<CallGrammar>();

/**
 * The grammar of the calls of some functions, which is kept for the next time.
 *
 * @throws {OptionError} if the schema of a strict one is wrong, or cannot be guaranteed.
 */
export function callGrammarOf(tools: readonly Tool[]): CallGrammar {
  let key: string;
  try {
    key = JSON.stringify(tools);
  } catch {
    return new CallGrammar(tools); // which says what is wrong
  }
  return known.of(key, () => new CallGrammar(tools));
}

/**
 * The schema of a function's arguments: without `parameters`, none.
 *
 * @param parameters the function's, with references that hold where the schema will lie
 */
export function argumentsSchema(
  parameters: Record<string, unknown> = {
    properties: {},
    additionalProperties: false,
  },
): Record<string, unknown> {
  const { $id: _, $schema: __, ...rest } = parameters;
  return { type: "object", ...rest };
}

/** The grammar of one call, from behind its opening tag to the end of its closing one. */
function callOf({ function: { name, strict, parameters } }: Tool): Part {
  const part = strict
    ? strictArguments(name, parameters)
    : buildGrammar({ type: "object" });
  const text = JSON.stringify(name);
  const heads = ["", "\n"].flatMap((line) => [
    `${line}{"name":${text},"arguments":`,
    `${line}{"name": ${text}, "arguments": `,
  ]);
  const ends = [`}${CALL_END}`, `}\n${CALL_END}`];
  return { sequence: [literals(heads), part, literals(ends)] };
}

function strictArguments(
  name: string,
  parameters: Record<string, unknown> | undefined,
): Part {
  try {
    return buildGrammar(argumentsSchema(parameters));
  } catch (error) {
    if (!(error instanceof SchemaError)) throw error;
    const whose = `the schema of the strict function ${described(name)}`;
    throw new OptionError("tools", error.message.replace("the schema", whose));
  }
}

/**
 * Refuses strict functions where calls are not JSON.
 *
 * @throws {OptionError} if the chat template has them written as XML.
 */
export function requireJsonCalls(
  tools: readonly Tool[],
  chatTemplate: string,
): void {
  if (!chatTemplate.includes(XML_CALL)) return;
  const { name } = tools.find((tool) => anyStrict([tool]))!.function;
  throw new OptionError(
    "tools",
    `Cannot generate: tools has the strict function ${
      described(name)
    }, but the chat template has calls written as XML, which cannot be guaranteed; strict must be left out`,
  );
}

/** Where a reply is outside its calls. */
interface Place {
  readonly kind: "text" | "reasoning";
  /** The end of the text, if it may begin a tag. Bytes are characters here. */
  readonly held: string;
  /**
   * Whether the text before it is blank since the reply or the last block began, so that
   * `<think>` is a tag; undefined if that depends on what its bytes stand for.
   */
  readonly blank: boolean | undefined;
}

/** What a token leads to: a place, or a call. */
type After = Place | "call";

/** Tokens that may complete a tag, with their bytes as characters. */
type Completing = readonly (readonly [id: number, text: string])[];

const completing = new WeakMap<Tokenizer, Completing>();

/** The replies whose calls are of some functions, and valid if these are strict. */
export class CallGrammar {
  readonly part: Part;
  /** What would open calls without a grammar. */
  readonly #bareTags: readonly string[];
  readonly #refused = new WeakMap<Tokenizer, Map<string, readonly number[]>>();

  /** @throws {OptionError} if a strict schema is wrong, or cannot be guaranteed. */
  constructor(tools: readonly Tool[]) {
    this.part = { choice: tools.map(callOf) };
    this.#bareTags = tools.map((tool) => `${XML_CALL}${tool.function.name}>`)
      .map(bytesAsText);
  }

  /**
   * A mask for one reply.
   *
   * @param vocab the number of logits
   * @param begins "call" if the tag of one was just written, "reasoning" if the prompt
   * ends inside reasoning
   */
  mask(
    tokenizer: Tokenizer,
    vocab: number,
    begins: "text" | "reasoning" | "call" = "text",
  ): CallMask {
    return new CallMask(this, tokenizer, vocab, begins);
  }

  /** Where a text leads to; undefined if it would leave the grammar. */
  after(place: Place, text: string): After | undefined {
    let { kind, held, blank } = place;
    for (let i = 0; i < text.length; i++) {
      held += text[i];
      const tags = () =>
        kind === "reasoning"
          ? [THINK_END]
          : [CALL, ...blank === false ? [] : [THINK], ...this.#bareTags];
      while (held !== "" && !tags().some((tag) => tag.startsWith(held))) {
        if (/[^\s\x80-\xff]/.test(held[0])) blank = false;
        else if (held[0] >= "\x80") blank &&= undefined;
        held = held.slice(1);
      }
      if (!tags().includes(held)) continue;
      if (held === CALL) return i === text.length - 1 ? "call" : undefined;
      if (held === THINK && blank) kind = "reasoning";
      else if (held === THINK_END) [kind, blank] = ["text", true];
      else return undefined;
      held = "";
    }
    return { kind, held, blank };
  }

  /** The tokens that may not follow a place. */
  refused(
    place: Place,
    tokenizer: Tokenizer,
    vocab: number,
  ): readonly number[] {
    let all = this.#refused.get(tokenizer);
    if (!all) this.#refused.set(tokenizer, all = new Map());
    const key = `${place.kind} ${place.blank} ${place.held}`;
    let ids = all.get(key);
    if (!ids) {
      ids = completingIn(tokenizer, vocab)
        .filter(([, text]) => this.after(place, text) === undefined)
        .map(([id]) => id);
      all.set(key, ids);
    }
    return ids;
  }
}

/** Tags end with `>`. */
function completingIn(tokenizer: Tokenizer, vocab: number): Completing {
  let found = completing.get(tokenizer);
  if (!found) {
    const hidden = hiddenIds(tokenizer);
    found = Array.from({ length: vocab }, (_, id) => id)
      .filter((id) => !hidden.has(id))
      .map((id) => [id, textOf(tokenizer.bytes(id))] as const)
      .filter(([, text]) => text.includes(">"));
    completing.set(tokenizer, found);
  }
  return found;
}

const textOf = (bytes: Uint8Array): string =>
  Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");

const bytesAsText = (text: string): string =>
  textOf(new TextEncoder().encode(text));

/** The tokens that may come next in one reply. */
export class CallMask {
  readonly #grammar: CallGrammar;
  readonly #tokenizer: Tokenizer;
  readonly #vocab: number;
  readonly #hidden: ReadonlySet<number>;
  /** The token that ends a call, if there is one. */
  readonly #end: number | undefined;
  #place: Place;
  /** In a call, what was read of it. */
  #threads?: Threads;

  /** @ignore Made by {@linkcode CallGrammar.mask}. */
  constructor(
    grammar: CallGrammar,
    tokenizer: Tokenizer,
    vocab: number,
    begins: "text" | "reasoning" | "call",
  ) {
    this.#grammar = grammar;
    this.#tokenizer = tokenizer;
    this.#vocab = vocab;
    this.#hidden = hiddenIds(tokenizer);
    const end = tokenizer.tokenId(CALL_END);
    const isAdded = end !== undefined && tokenizer.addedIds.has(end);
    this.#end = isAdded ? end : undefined;
    const kind = begins === "call" ? "text" : begins;
    this.#place = { kind, held: "", blank: true };
    if (begins === "call") this.#threads = start(grammar.part);
  }

  /**
   * Sets the bits of the tokens that may come next (bit `id % 32` of word `id / 32`) and clears
   * the others. Returns false if any may, and leaves the bits as they are.
   *
   * @throws {Error} if the vocabulary has none of them.
   */
  fill(bits: Uint32Array): boolean {
    if (!this.#threads) {
      const refused = this.#grammar.refused(
        this.#place,
        this.#tokenizer,
        this.#vocab,
      );
      if (refused.length === 0) return false;
      bits.fill(0xffffffff);
      for (const id of refused) bits[id >>> 5] &= ~(1 << (id & 31));
      return true;
    }
    bits.fill(0);
    vocabularyOf(this.#tokenizer, this.#vocab).allow(this.#threads, bits);
    const end = this.#end;
    if (end !== undefined && this.#read(end)?.complete) {
      bits[end >>> 5] |= 1 << (end & 31);
    }
    if (bits.some((word) => word !== 0)) return true;
    throw new Error(
      "Cannot generate: no token of the vocabulary continues the call",
    );
  }

  /**
   * Takes the token that was sampled.
   *
   * @throws {Error} if it was not allowed.
   */
  accept(tokenId: number): void {
    const refuse = () => {
      throw new Error(
        `Cannot continue a reply with strict calls: token ${
          described(tokenId)
        } was not allowed`,
      );
    };
    if (this.#threads) {
      const threads = this.#read(tokenId) ?? refuse();
      const isOver = threads.complete;
      this.#threads = isOver ? undefined : threads;
      if (isOver) this.#place = { kind: "text", held: "", blank: true };
      return;
    }
    if (this.#hidden.has(tokenId)) return;
    const text = textOf(this.#tokenizer.bytes(tokenId));
    const after = this.#grammar.after(this.#place, text) ?? refuse();
    if (after === "call") this.#threads = start(this.#grammar.part);
    else this.#place = after;
  }

  /** What a token makes of a call; undefined if it is not allowed. */
  #read(tokenId: number): Threads | undefined {
    const isText = tokenId < this.#vocab &&
      !this.#tokenizer.addedIds.has(tokenId);
    if (!isText && tokenId !== this.#end) return undefined;
    const bytes = this.#tokenizer.bytes(tokenId);
    let threads = this.#threads!;
    for (const byte of bytes) threads = threads.after(byte);
    if (bytes.length === 0 || threads.dead) return undefined;
    // Inside a string, a token that ends calls would be text.
    return isText || threads.complete ? threads : undefined;
  }
}
