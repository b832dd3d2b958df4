/**
 * Regular expressions of JSON schemas as automata over code points.
 *
 * @module
 */
import { type AST, RegExpParser } from "npm:@eslint-community/regexpp@4.12.3";
import { errorText } from "../../errors.ts";
import {
  type Automaton,
  every,
  type Move,
  not,
  TooManyWords,
} from "./words.ts";
import {
  complement,
  EVERY,
  intersection,
  LAST,
  type Ranges,
  union,
} from "./sets.ts";

/** The most states of a pattern before it is made deterministic. */
const MOST_STATES = 5000;

/** The most states and ranges that are looked at for one pattern: about a second. */
const MOST_WORK = 5e6;

/** What an edge needs: nothing, or that it is at the begin or end of the text. */
type Condition = "none" | "start" | "end";

interface Node {
  /** Edges that read nothing. */
  readonly free: { readonly to: number; readonly when: Condition }[];
  /** The edge that reads a code point. */
  reads?: { readonly set: Ranges; readonly to: number };
}

/** Why a pattern cannot be used; the message has no subject. */
export class PatternError extends Error {}

/** A pattern's automaton without determinism, after Thompson. */
class Nfa {
  readonly nodes: Node[] = [];

  node(): number {
    if (this.nodes.length >= MOST_STATES) {
      throw new PatternError(
        `has more than ${MOST_STATES} states, repeat less often`,
      );
    }
    return this.nodes.push({ free: [] }) - 1;
  }

  link(from: number, to: number, when: Condition = "none"): void {
    this.nodes[from].free.push({ to, when });
  }

  /** Adds alternatives after `from`; returns where they end. */
  alternatives(from: number, all: readonly AST.Alternative[]): number {
    const end = this.node();
    for (const { elements } of all) {
      let at = this.node();
      this.link(from, at);
      for (const element of elements) at = this.#element(at, element);
      this.link(at, end);
    }
    return end;
  }

  #element(from: number, element: AST.Element): number {
    switch (element.type) {
      case "Character":
      case "CharacterSet":
      case "CharacterClass":
        return this.#read(from, setOf(element));
      case "Group":
        if (element.modifiers) throw unusable("modifiers");
        return this.alternatives(from, element.alternatives);
      case "CapturingGroup":
        return this.alternatives(from, element.alternatives);
      case "Quantifier":
        return this.#repeat(from, element);
      case "Assertion": {
        if (element.kind !== "start" && element.kind !== "end") {
          throw unusable(element.raw.slice(0, 20));
        }
        const to = this.node();
        this.link(from, to, element.kind);
        return to;
      }
      default:
        throw unusable(element.raw.slice(0, 20));
    }
  }

  #read(from: number, set: Ranges): number {
    const at = this.node(), to = this.node();
    this.link(from, at);
    this.nodes[at].reads = { set, to };
    return to;
  }

  #repeat(from: number, { element, min, max }: AST.Quantifier): number {
    let at = from;
    for (let i = 0; i < min; i++) at = this.#element(at, element);
    const end = this.node();
    if (max === Infinity) {
      const loop = this.node();
      this.link(at, loop);
      this.link(this.#element(loop, element), loop);
      this.link(loop, end);
      return end;
    }
    for (let i = min; i < max; i++) {
      this.link(at, end);
      at = this.#element(at, element);
    }
    this.link(at, end);
    return end;
  }
}

function unusable(what: string): PatternError {
  return new PatternError(`uses ${what}, which is not offered`);
}

/** States of the NFA, ascending, as one deterministic state. */
class Pattern implements Automaton<readonly number[]> {
  readonly start: readonly number[];
  readonly #nfa: Nfa;
  readonly #final: number;
  readonly #moves = new WeakMap<
    readonly number[],
    readonly Move<readonly number[]>[]
  >();
  readonly #states = new Map<string, readonly number[]>();
  #work = 0;

  constructor(nfa: Nfa, start: number, final: number) {
    this.#nfa = nfa;
    this.#final = final;
    this.start = this.#reach([start], "start");
  }

  key(state: readonly number[]): string {
    // Only there, ^ matches.
    return state === this.start ? `^${state.join()}` : state.join();
  }

  accepts(state: readonly number[]): boolean {
    return this.#reach(state, "end", state === this.start).includes(
      this.#final,
    );
  }

  moves(state: readonly number[]): readonly Move<readonly number[]>[] {
    // Together with what counts, a state is asked for again and again.
    let moves = this.#moves.get(state);
    if (!moves) this.#moves.set(state, moves = this.#movesFrom(state));
    return moves;
  }

  #movesFrom(state: readonly number[]): Move<readonly number[]>[] {
    const edges = state.flatMap((at) => this.#nfa.nodes[at].reads ?? []);
    const cuts = edges.flatMap(({ set, to }) =>
      set.flatMap((
        [low, high],
      ) => [{ at: low, to, by: 1 }, { at: high + 1, to, by: -1 }])
    ).sort((a, b) => a.at - b.at);
    this.#work += cuts.length;
    const open = new Map<number, number>(),
      moves: Move<readonly number[]>[] = [];
    const reached = new Map<string, readonly number[]>();
    for (const [i, { at, to, by }] of cuts.entries()) {
      const count = (open.get(to) ?? 0) + by;
      if (count > 0) open.set(to, count);
      else open.delete(to);
      const next = cuts[i + 1]?.at;
      if (open.size === 0 || next === at) continue;
      const key = [...open.keys()].join();
      let state = reached.get(key);
      if (!state) reached.set(key, state = this.#state([...open.keys()]));
      moves.push({ low: at, high: next - 1, to: state });
    }
    return moves;
  }

  /** One object for equal states. */
  #state(from: readonly number[]): readonly number[] {
    const state = this.#reach(from), key = state.join();
    const known = this.#states.get(key);
    if (!known) this.#states.set(key, state);
    return known ?? state;
  }

  /** The states that are reached without reading, from any of `from`. */
  #reach(
    from: readonly number[],
    where?: Condition,
    alsoStart = false,
  ): number[] {
    const reached = new Set(from), work = [...from];
    this.#work += 10;
    for (let at = work.pop(); at !== undefined; at = work.pop()) {
      for (const { to, when } of this.#nfa.nodes[at].free) {
        const open = when === "none" || when === where ||
          (alsoStart && when === "start");
        if (open && !reached.has(to)) {
          this.#work++;
          reached.add(to);
          work.push(to);
        }
      }
    }
    if (this.#work > MOST_WORK) throw new TooManyWords();
    return [...reached].sort((a, b) => a - b);
  }
}

/** Groups in each other; the parser and what follows it are recursive. */
const MOST_DEPTH = 100;

/**
 * The automaton of the texts in which a pattern (ECMA-262, with flag u) matches somewhere.
 *
 * @throws {PatternError} if it is not a pattern, or uses what is not offered: lookarounds,
 * except lookaheads right after a leading ^, word boundaries, back references.
 */
export function readRegex(pattern: string): Automaton<unknown> {
  const depth = depthOf(pattern);
  if (depth > MOST_DEPTH) {
    throw new PatternError(
      `has ${depth} groups in each other, must have ${MOST_DEPTH} at most`,
    );
  }
  let ast: AST.Pattern;
  try {
    ast = new RegExpParser({ ecmaVersion: 2024 })
      .parsePattern(pattern, 0, pattern.length, { unicode: true });
  } catch (error) {
    const why = errorText(error).replace(/^.*\/u?: /s, "");
    throw new PatternError(`is not a pattern: ${why}`);
  }
  const [only, ...others] = ast.alternatives;
  const [first, ...elements] = only.elements;
  const anchored = others.length === 0 && isStart(first);
  const looks = anchored ? leadingLooks(elements) : [];
  if (looks.length === 0) return search(ast.alternatives);
  const rest = elements.slice(looks.length);
  return every([
    search([{ ...only, elements: [first, ...rest] }]),
    ...looks.map(({ alternatives, negate }) => {
      const ahead = search(alternatives, true);
      return negate ? not(ahead) : ahead;
    }),
  ]);
}

/** How deep groups are nested; an unclosed one counts. */
function depthOf(pattern: string): number {
  const open = pattern.replace(/\\.|\[(?:\\.|[^\]\\])*\]/gsu, "");
  let depth = 0, most = 0;
  for (const character of open) {
    if (character === "(") most = Math.max(most, ++depth);
    else if (character === ")") depth--;
  }
  return most;
}

function isStart(element: AST.Element | undefined): boolean {
  return element?.type === "Assertion" && element.kind === "start";
}

/** The lookaheads that come before anything else. */
function leadingLooks(
  elements: readonly AST.Element[],
): AST.LookaheadAssertion[] {
  const looks: AST.LookaheadAssertion[] = [];
  for (const one of elements) {
    if (one.type !== "Assertion" || one.kind !== "lookahead") break;
    looks.push(one);
  }
  return looks;
}

/** The texts in which one of the alternatives matches, perhaps only at their beginning. */
function search(
  alternatives: readonly AST.Alternative[],
  atStart = false,
): Automaton<unknown> {
  const nfa = new Nfa(), start = nfa.node(), body = nfa.node();
  nfa.link(start, body);
  if (!atStart) {
    const skip = nfa.node();
    nfa.link(start, skip);
    nfa.nodes[skip].reads = { set: EVERY, to: start };
  }
  const matched = nfa.alternatives(body, alternatives);
  const final = nfa.node(), rest = nfa.node();
  nfa.link(matched, final);
  nfa.link(final, rest);
  nfa.nodes[rest].reads = { set: EVERY, to: final };
  return new Pattern(nfa, start, final) as Automaton<unknown>;
}

/** Whether a pattern matches somewhere in a text, in time in proportion to it. */
export function matches(pattern: string, text: string): boolean {
  const automaton = readRegex(pattern);
  let state = automaton.start;
  for (const character of text) {
    const point = character.codePointAt(0)!;
    const move = automaton.moves(state).find(({ low, high }) =>
      low <= point && point <= high
    );
    if (!move) return false;
    state = move.to;
  }
  return automaton.accepts(state);
}

const DIGITS: Ranges = [[0x30, 0x39]];
const WORD: Ranges = [[0x30, 0x39], [0x41, 0x5a], [0x5f, 0x5f], [0x61, 0x7a]];
const NEW_LINES: Ranges = [[10, 10], [13, 13], [0x2028, 0x2029]];

/** The code points that a part of a pattern matches. */
function setOf(
  node:
    | AST.Character
    | AST.CharacterSet
    | AST.CharacterClass
    | AST.CharacterClassElement,
): Ranges {
  switch (node.type) {
    case "Character":
      return intersection([[node.value, node.value]], EVERY);
    case "CharacterClassRange":
      return intersection([[node.min.value, node.max.value]], EVERY);
    case "CharacterClass": {
      const set = union(
        node.elements.flatMap((one) => setOf(one as AST.CharacterClassElement)),
      );
      return node.negate ? complement(set) : set;
    }
    case "CharacterSet": {
      if (node.kind === "any") return complement(NEW_LINES);
      const set = node.kind === "digit"
        ? DIGITS
        : node.kind === "word"
        ? WORD
        : scanned(
          node.kind === "space" ? "\\s" : node.raw.replace(/^\\P/, "\\p"),
        );
      return node.negate ? complement(set) : set;
    }
    default:
      throw unusable((node as AST.Node).raw);
  }
}

const known = new Map<string, Ranges>();

/** The code points that JavaScript's engine takes for a class such as `\p{L}`. */
function scanned(source: string): Ranges {
  let set = known.get(source);
  if (set) return set;
  const found: [number, number][] = [],
    pattern = new RegExp(`${source}+`, "gu");
  const step = 0x1000; // surrogates begin at a multiple of it
  for (let from = 0; from <= LAST; from += step) {
    if (from === 0xd000) {
      collect(pattern, 0xd000, 0xd7ff, found);
      from = 0xe000;
    }
    collect(pattern, from, from + step - 1, found);
  }
  known.set(source, set = union(found));
  return set;
}

function collect(
  pattern: RegExp,
  low: number,
  high: number,
  found: [number, number][],
): void {
  const points = Array.from({ length: high - low + 1 }, (_, i) => low + i);
  const text = String.fromCodePoint(...points);
  const wide = low > 0xffff ? 2 : 1;
  for (const match of text.matchAll(pattern)) {
    const begin = low + match.index / wide;
    found.push([begin, begin + match[0].length / wide - 1]);
  }
}
