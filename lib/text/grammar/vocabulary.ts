/**
 * A vocabulary as a tree of bytes, and the masks of tokens that a grammar allows.
 *
 * @module
 */
import type { Limits, State, Threads } from "./automaton.ts";
import type { Tokenizer } from "../tokenizer.ts";

/** What a terminal allows from one of its states, whatever follows it. */
interface OwnMask {
  /** Tokens that stay inside the terminal, or end exactly with it. */
  readonly inside: Uint32Array;
  /** Nodes at which the terminal may end. Longer tokens depend on what follows it. */
  readonly ends: Int32Array;
}

/** What a string without limits allows from one of its states. */
interface Lengths {
  /** Nodes at which the string goes on, by the characters it needs room for. */
  readonly inside: readonly number[][];
  /** Nodes that end the string, with the characters before. */
  readonly closing: readonly {
    readonly node: number;
    readonly length: number;
  }[];
  /** The tokens of `inside` up to each number of characters. */
  readonly masks: Uint32Array[];
}

/** Masks that are kept: about 19 kB each for Qwen3's 151,936 tokens. */
const KEPT = 1024;
/** Masks that took fewer nodes of the tree than this are not worth keeping. */
const CHEAP = 4096;

/**
 * The tree of a vocabulary's tokens, as arrays in preorder. Node 0 is the root; node `i`
 * continues its parent with `byte[i]`, and its subtree ends before `after[i]`.
 */
export class Vocabulary {
  /** The number of tokens that have text; all ids are below {@linkcode size}. */
  readonly size: number;
  /** The most bytes of a token. */
  readonly #longest: number;
  readonly #byte: Uint8Array;
  readonly #depth: Uint16Array;
  readonly #after: Int32Array;
  /** The tokens of node `i` are `ids[first[i]]` up to `ids[first[i + 1]]`. */
  readonly #first: Int32Array;
  readonly #ids: Int32Array;
  readonly #masks = new Map<State, OwnMask>();
  readonly #lengths = new Map<State, Lengths>();

  /**
   * @param tokens the bytes of each token; those with none are never allowed
   */
  constructor(tokens: Iterable<readonly [id: number, bytes: Uint8Array]>) {
    const grown = grow([...tokens]), { nodes } = grown;
    this.size = grown.size;
    this.#longest = grown.longest;
    this.#byte = new Uint8Array(nodes);
    this.#depth = new Uint16Array(nodes);
    this.#after = new Int32Array(nodes);
    this.#first = new Int32Array(nodes + 1);
    this.#ids = new Int32Array(grown.tokens);
    this.#flatten(grown);
  }

  /** Lays a tree out in preorder. */
  #flatten({ child, sibling, byte, token, other }: Grown): void {
    const path = [0], places = [0];
    let node = 0, ids = 0;
    for (;;) {
      // Down to a child, else to the next sibling of the nearest node that has one.
      const from = path.at(-1)!;
      let next = child[from];
      while (next === 0) {
        const left = path.pop()!;
        this.#after[places.pop()!] = node + 1;
        if (path.length === 0) {
          this.#first[node + 1] = ids;
          return;
        }
        next = sibling[left];
      }
      node++;
      this.#byte[node] = byte[next];
      this.#depth[node] = path.length;
      this.#first[node] = ids;
      for (let id = token[next]; id >= 0; id = other[id]) this.#ids[ids++] = id;
      path.push(next);
      places.push(node);
    }
  }

  /** Sets the bits of the tokens that may come next; the others are not changed. */
  allow(threads: Threads, bits: Uint32Array): void {
    for (const { state, below } of threads.list) {
      const { limits } = state;
      const ends = limits
        ? this.#limited(limits, bits)
        : this.#own(state, bits);
      if (!below) continue;
      for (const node of ends) this.#follow(node, below.threads, bits);
    }
  }

  /** Allows the tokens that continue below `node` with `threads`. */
  #follow(node: number, threads: Threads, bits: Uint32Array): void {
    const byte = this.#byte, after = this.#after, end = after[node];
    for (let child = node + 1; child < end; child = after[child]) {
      const next = threads.after(byte[child]);
      if (next.dead) continue;
      this.#mark(child, bits);
      if (after[child] > child + 1) this.#follow(child, next, bits);
    }
  }

  #mark(node: number, bits: Uint32Array): void {
    const ids = this.#ids;
    for (let i = this.#first[node], n = this.#first[node + 1]; i < n; i++) {
      bits[ids[i] >>> 5] |= 1 << (ids[i] & 31);
    }
  }

  /** Allows a terminal's own tokens; returns the nodes at which it may end. */
  #own(given: State, bits: Uint32Array): Iterable<number> {
    const state = given.alike(this.#longest);
    const known = this.#masks.get(state);
    if (known) {
      include(known.inside, bits);
      return known.ends;
    }
    const nodes: number[] = [], ends: number[] = [];
    const visited = this.#walk(state, (node, state) => {
      nodes.push(node);
      if (state.accepts && this.#continues(node)) ends.push(node);
    });
    for (const node of nodes) this.#mark(node, bits);
    if (visited >= CHEAP) {
      const inside = new Uint32Array(Math.ceil(this.size / 32));
      for (const node of nodes) this.#mark(node, inside);
      keep(this.#masks, state, { inside, ends: Int32Array.from(ends) });
    }
    return ends;
  }

  /** As #own, for a string with limits. */
  #limited({ unlimited, need, left }: Limits, bits: Uint32Array): number[] {
    const lengths = this.#lengths.get(unlimited) ?? this.#measure(unlimited);
    const ends: number[] = [];
    for (const { node, length } of lengths.closing) {
      if (length < need || length > left) continue;
      this.#mark(node, bits);
      if (this.#continues(node)) ends.push(node);
    }
    include(this.#upTo(lengths, left), bits);
    return ends;
  }

  /** The tokens that stay inside a string and have at most `left` characters. */
  #upTo({ inside, masks }: Lengths, left: number): Uint32Array {
    const most = Math.min(left, inside.length - 1);
    let mask = masks[most];
    if (!mask) {
      masks[most] = mask = new Uint32Array(Math.ceil(this.size / 32));
      for (let length = 0; length <= most; length++) {
        for (const node of inside[length] ?? []) this.#mark(node, mask);
      }
    }
    return mask;
  }

  #measure(unlimited: State): Lengths {
    const inside: number[][] = [[]],
      closing: { node: number; length: number }[] = [];
    const whole = [0], depth = this.#depth;
    this.#walk(unlimited, (node, state) => {
      const d = depth[node];
      whole[d] = whole[d - 1] + (state.between ? 1 : 0);
      if (state.accepts) closing.push({ node, length: whole[d] });
      else (inside[whole[d] + (state.between ? 0 : 1)] ??= []).push(node);
    });
    const lengths = { inside, closing, masks: [] };
    keep(this.#lengths, unlimited, lengths);
    return lengths;
  }

  #continues(node: number): boolean {
    return this.#after[node] > node + 1;
  }

  /** Visits the nodes that a terminal allows; returns how many were looked at. */
  #walk(start: State, visit: (node: number, state: State) => void): number {
    const byte = this.#byte, depth = this.#depth, after = this.#after;
    const path: State[] = [start];
    let visited = 0;
    for (let node = 1; node < byte.length;) {
      visited++;
      const d = depth[node], state = path[d - 1].next(byte[node]);
      if (!state) {
        node = after[node];
        continue;
      }
      visit(node, state);
      path[d] = state;
      node++;
    }
    return visited;
  }
}

function include(mask: Uint32Array, bits: Uint32Array): void {
  for (let i = 0; i < mask.length; i++) bits[i] |= mask[i];
}

/** Adds to a map, which forgets what was added first. */
function keep<K, V>(map: Map<K, V>, key: K, value: V): void {
  if (map.size >= KEPT) {
    for (const [oldest] of map) {
      map.delete(oldest);
      break;
    }
  }
  map.set(key, value);
}

/** A tree as it grows: 0 is the root, and no node's child or sibling. */
interface Grown {
  readonly nodes: number;
  readonly tokens: number;
  readonly size: number;
  /** The most bytes of a token. */
  readonly longest: number;
  /** Of each node: its first child, next sibling, byte and first token (-1 for none). */
  readonly child: Int32Array;
  readonly sibling: Int32Array;
  readonly byte: Uint8Array;
  readonly token: Int32Array;
  /** Of each token: another with the same bytes, or -1. */
  readonly other: Int32Array;
}

function grow(tokens: readonly (readonly [number, Uint8Array])[]): Grown {
  let most = 1, size = 0, longest = 0;
  for (const [id, bytes] of tokens) {
    most += bytes.length;
    longest = Math.max(longest, bytes.length);
    size = Math.max(size, id + 1);
  }
  const child = new Int32Array(most), sibling = new Int32Array(most);
  const byte = new Uint8Array(most), token = new Int32Array(most).fill(-1);
  const other = new Int32Array(size).fill(-1);
  let nodes = 1, count = 0;
  for (const [id, bytes] of tokens) {
    if (bytes.length === 0) continue;
    let at = 0;
    for (const one of bytes) {
      let next = child[at];
      while (next !== 0 && byte[next] !== one) next = sibling[next];
      if (next === 0) {
        next = nodes++;
        byte[next] = one;
        sibling[next] = child[at];
        child[at] = next;
      }
      at = next;
    }
    other[id] = token[at];
    token[at] = id;
    count++;
  }
  return {
    ...{ nodes, tokens: count, size, longest },
    ...{ child, sibling, byte, token, other },
  };
}

const made = new WeakMap<Tokenizer, Vocabulary>();

/** The vocabulary of a tokenizer, without its added tokens: `vocab` ids at most. */
export function vocabularyOf(tokenizer: Tokenizer, vocab: number): Vocabulary {
  let vocabulary = made.get(tokenizer);
  if (!vocabulary) {
    made.set(
      tokenizer,
      vocabulary = new Vocabulary(textTokens(tokenizer, vocab)),
    );
  }
  return vocabulary;
}

function* textTokens(
  tokenizer: Tokenizer,
  vocab: number,
): Generator<readonly [number, Uint8Array]> {
  for (let id = 0; id < vocab; id++) {
    if (!tokenizer.addedIds.has(id)) yield [id, tokenizer.bytes(id)];
  }
}
