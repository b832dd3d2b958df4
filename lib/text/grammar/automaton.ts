/**
 * The automaton behind a grammar: deterministic terminals over bytes, and a stack for what
 * nests. Where a grammar is ambiguous, several stacks are followed at once.
 *
 * @module
 */
import { SchemaError } from "./error.ts";

/** A state of a terminal, such as a string or a number. Every state can still be accepted. */
export abstract class State {
  /** Whether the terminal may end here. */
  abstract readonly accepts: boolean;

  /** The state after a byte; undefined if the byte is wrong. */
  abstract next(byte: number): State | undefined;

  /** A state that allows the same tokens of at most `most` bytes. */
  alike(_most: number): State {
    return this;
  }

  /** Whether a character of a string has just ended. */
  get between(): boolean {
    return false;
  }

  /** Set inside a string of which only the length is limited; its masks are made of one. */
  get limits(): Limits | undefined {
    return undefined;
  }
}

/** How long a string may be from here on. */
export interface Limits {
  /** This place in a string without limits. */
  readonly unlimited: State;
  /** The characters that are still needed, and those for which there is room. */
  readonly need: number;
  readonly left: number;
}

/** A part of a grammar. A function is called when the part is reached, so it may recurse. */
export type Part =
  | State
  | { readonly sequence: readonly Part[] }
  | { readonly choice: readonly Part[] }
  | (() => Part);

/** What follows a terminal: parts, the next one first; null is the end of the text. */
export class Stack {
  #threads?: Threads;

  constructor(readonly part: Part, readonly below: Stack | null) {}

  /** The threads that begin here; the same object every time. */
  get threads(): Threads {
    if (!this.#threads) {
      this.#threads = new Threads();
      expand(this.part, this.below, this.#threads);
    }
    return this.#threads;
  }
}

/** A terminal in progress, and what follows it. */
export interface Thread {
  readonly state: State;
  readonly below: Stack | null;
}

/** The most ways to read a text: branches that stay alike may double at every level. */
const MOST = 10_000;

/** All ways to read the text so far. */
export class Threads {
  readonly list: Thread[] = [];
  readonly #known = new Map<State, Set<Stack | null>>();
  /** The text may end here. */
  complete = false;

  /** Whether the text so far cannot be continued, and is not complete either. */
  get dead(): boolean {
    return this.list.length === 0 && !this.complete;
  }

  /** Adds a thread and, if its terminal may end, those that follow it. */
  add(state: State, below: Stack | null): void {
    this.#insert(state, below);
    if (state.accepts) this.addFollowing(below);
  }

  /** Adds the threads that follow a terminal. */
  addFollowing(below: Stack | null): void {
    if (!below) {
      this.complete = true;
      return;
    }
    const { list, complete } = below.threads;
    if (complete) this.complete = true;
    for (const thread of list) this.#insert(thread.state, thread.below);
  }

  /** The threads after a byte. */
  after(byte: number): Threads {
    const threads = new Threads();
    for (const { state, below } of this.list) {
      const next = state.next(byte);
      if (next) threads.add(next, below);
    }
    return threads;
  }

  #insert(state: State, below: Stack | null): void {
    let known = this.#known.get(state);
    if (!known) this.#known.set(state, known = new Set());
    if (known.has(below)) return;
    known.add(below);
    if (this.list.push({ state, below }) <= MOST) return;
    throw new SchemaError(
      "#",
      "anyOf",
      `leaves more than ${MOST} ways to read the text so far, must leave fewer`,
    );
  }
}

function expand(part: Part, below: Stack | null, threads: Threads): void {
  if (part instanceof State) threads.add(part, below);
  else if (typeof part === "function") expand(part(), below, threads);
  else if ("choice" in part) {
    for (const one of part.choice) expand(one, below, threads);
  } else {
    const [first, ...rest] = part.sequence;
    let stack = below;
    for (const one of rest.reverse()) stack = new Stack(one, stack);
    expand(first, stack, threads);
  }
}

/** The threads before the first byte of a text. */
export function start(part: Part): Threads {
  return new Stack(part, null).threads;
}

/** A state of {@linkcode literals}: a node of the tree of their bytes. */
class Literal extends State {
  accepts = false;
  readonly #next = new Map<number, Literal>();

  next(byte: number): State | undefined {
    return this.#next.get(byte);
  }

  add(text: Uint8Array): void {
    // deno-lint-ignore no-this-alias
    let node: Literal = this;
    for (const byte of text) {
      let next = node.#next.get(byte);
      if (!next) node.#next.set(byte, next = new Literal());
      node = next;
    }
    node.accepts = true;
  }
}

const utf8 = new TextEncoder();

/** The start of a terminal that is one of several texts, none of them empty. */
export function literals(texts: Iterable<string>): State {
  const root = new Literal();
  for (const text of texts) root.add(utf8.encode(text));
  return root;
}

/** A state of {@linkcode literal}. */
class Rest extends State {
  #next?: Rest;

  constructor(readonly text: Uint8Array, readonly at: number) {
    super();
  }

  get accepts(): boolean {
    return this.at === this.text.length;
  }

  next(byte: number): State | undefined {
    if (this.text[this.at] !== byte) return undefined;
    return this.#next ??= new Rest(this.text, this.at + 1);
  }
}

/** The start of a terminal that is one text. */
export const literal = (text: string): State => new Rest(utf8.encode(text), 0);
