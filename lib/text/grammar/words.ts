/**
 * Sets of texts as automata over code points: what the values of strings and the keys of
 * objects may be.
 *
 * @module
 */
import { EVERY, LAST } from "./sets.ts";

/** All code points from `low` to `high` lead to one state. */
export interface Move<S> {
  readonly low: number;
  readonly high: number;
  readonly to: S;
}

/** A deterministic automaton; a code point without a move is refused. */
export interface Automaton<S> {
  readonly start: S;
  /** Equal for equal states. */
  key(state: S): string;
  accepts(state: S): boolean;
  /** Ascending and apart from each other. */
  moves(state: S): readonly Move<S>[];
}

/** A state of a set of texts from which some text of the set is reached. */
export interface Word {
  readonly accepts: boolean;
  /** Ascending; surrogates are in none. */
  readonly moves: readonly Move<Word>[];
  /** Set if only the number of code points is limited. */
  readonly limits?: { readonly need: number; readonly left: number };
  /** A state that goes on alike for `most` code points; itself by default. */
  alike?(most: number): Word;
}

/** All texts with at least `need` and at most `left` code points. */
class AnyWord implements Word {
  #moves?: readonly Move<Word>[];

  constructor(readonly need: number, readonly left: number) {}

  get accepts(): boolean {
    return this.need === 0;
  }

  get moves(): readonly Move<Word>[] {
    return this.#moves ??= this.#next();
  }

  #next(): Move<Word>[] {
    const { need, left } = this;
    if (left === 0) return [];
    const to = anyWord(Math.max(0, need - 1), left - 1);
    return EVERY.map(([low, high]) => ({ low, high, to }));
  }

  get limits(): { need: number; left: number } | undefined {
    return this === ANY ? undefined : this;
  }
}

const ANY = new AnyWord(0, Infinity);

/** All texts with `min` to `max` code points. */
export function anyWord(min = 0, max = Infinity): Word {
  return min === 0 && max === Infinity ? ANY : new AnyWord(min, max);
}

/** All texts with at least `min` code points. */
export function atLeast(min: number): Automaton<number> {
  return {
    start: min,
    key: String,
    accepts: (need) => need === 0,
    moves: (need) => [{ low: 0, high: LAST, to: Math.max(0, need - 1) }],
  };
}

/** A tree of code points. */
interface Branch {
  readonly id: number;
  readonly children: Map<number, Branch>;
  ends: boolean;
}

/** All texts except `texts`. */
export function except(texts: Iterable<string>): Automaton<Branch | undefined> {
  let count = 0;
  const branch = () => ({ id: count++, children: new Map(), ends: false });
  const root: Branch = branch();
  for (const text of texts) {
    let at = root;
    for (const character of text) {
      const point = character.codePointAt(0)!;
      let next = at.children.get(point);
      if (!next) at.children.set(point, next = branch());
      at = next;
    }
    at.ends = true;
  }
  const elsewhere = { low: 0, high: LAST, to: undefined };
  return {
    start: root,
    key: (state) => `${state?.id}`,
    accepts: (state) => !state?.ends,
    moves(state) {
      if (!state) return [elsewhere];
      const moves: Move<Branch | undefined>[] = [];
      let from = 0;
      for (
        const [point, to] of [...state.children].sort((a, b) => a[0] - b[0])
      ) {
        if (point > from) {
          moves.push({
            low: from,
            high: point - 1,
            to: undefined,
          });
        }
        moves.push({ low: point, high: point, to });
        from = point + 1;
      }
      if (from <= LAST) moves.push({ low: from, high: LAST, to: undefined });
      return moves;
    },
  };
}

/** All texts that `other` refuses. */
export function not<S>(other: Automaton<S>): Automaton<S | undefined> {
  return {
    start: other.start,
    key: (state) => state === undefined ? "" : other.key(state),
    accepts: (state) => state === undefined || !other.accepts(state),
    moves(state) {
      if (state === undefined) return [{ low: 0, high: LAST, to: undefined }];
      const moves: Move<S | undefined>[] = [];
      let from = 0;
      for (const move of other.moves(state)) {
        if (move.low > from) {
          moves.push({ low: from, high: move.low - 1, to: undefined });
        }
        moves.push(move);
        from = move.high + 1;
      }
      if (from <= LAST) moves.push({ low: from, high: LAST, to: undefined });
      return moves;
    },
  };
}

class Determined implements Word {
  moves: readonly Move<Determined>[] = [];
  /** The fewest code points to a text of the set, and the most that any state needs. */
  distance = 0;
  farthest = 0;
  readonly #shorter = new Map<number, Short>();

  constructor(readonly accepts: boolean) {}

  /** Those of its texts that have at most `left` code points. */
  shorter(left: number): Short {
    let short = this.#shorter.get(left);
    if (!short) this.#shorter.set(left, short = new Short(this, left));
    return short;
  }
}

/** A set of texts with a limit of their lengths. */
class Short implements Word {
  readonly accepts: boolean;
  readonly #word: Determined;
  readonly #left: number;
  #moves?: readonly Move<Word>[];

  constructor(word: Determined, left: number) {
    this.#word = word;
    this.#left = left;
    this.accepts = word.accepts;
  }

  get moves(): readonly Move<Word>[] {
    const left = this.#left - 1;
    return this.#moves ??= this.#word.moves
      .filter(({ to }) => to.distance <= left)
      .map(({ low, high, to }) => ({ low, high, to: to.shorter(left) }));
  }

  alike(most: number): Word {
    return this.#left >= most + this.#word.farthest ? this.#word : this;
  }
}

/** How many states and moves the sets of texts of one schema may still have. */
export interface StateBudget {
  left: number;
}

/** A set of texts has too many states. */
export class TooManyWords extends Error {}

/** The texts that all of `automata` take. */
export function every(
  automata: readonly Automaton<unknown>[],
): Automaton<readonly unknown[]> {
  return {
    start: automata.map((one) => one.start),
    key: (state) => state.map((one, i) => automata[i].key(one)).join("|"),
    accepts: (state) => automata.every((one, i) => one.accepts(state[i])),
    moves: (state) => together(automata, state),
  };
}

/**
 * The texts of at most `longest` code points that an automaton takes; undefined if there
 * are none.
 *
 * @throws {TooManyWords} if it is too large.
 */
export function wordOf<S>(
  automaton: Automaton<S>,
  budget: StateBudget,
  longest = Infinity,
): Word | undefined {
  const { start } = automaton;
  const first = new Determined(automaton.accepts(start));
  const words = new Map([[automaton.key(start), first]]);
  const edges: {
    from: Determined;
    low: number;
    high: number;
    to: Determined;
  }[] = [];
  const work = [{ state: start, from: first }];
  for (let one = work.pop(); one; one = work.pop()) {
    const { from } = one;
    const moves = automaton.moves(one.state);
    budget.left -= 1 + moves.length;
    if (budget.left < 0) throw new TooManyWords();
    for (const { low, high, to } of moves) {
      const key = automaton.key(to);
      let word = words.get(key);
      if (!word) {
        words.set(key, word = new Determined(automaton.accepts(to)));
        work.push({ state: to, from: word });
      }
      edges.push({ from, low, high, to: word });
    }
  }
  // Only what can still be accepted stays; the nearest states come first.
  const into = Map.groupBy(edges, ({ to }) => to);
  const alive = new Set([...words.values()].filter(({ accepts }) => accepts));
  let farthest = 0;
  for (const word of alive) {
    farthest = word.distance;
    for (const { from } of into.get(word) ?? []) {
      if (alive.has(from)) continue;
      from.distance = word.distance + 1;
      alive.add(from);
    }
  }
  const kept = edges.filter(({ to }) => alive.has(to));
  for (const [from, own] of Map.groupBy(kept, ({ from }) => from)) {
    from.moves = own.map(({ low, high, to }) => ({ low, high, to }));
    from.farthest = farthest;
  }
  if (!alive.has(first) || first.distance > longest) return undefined;
  return longest === Infinity ? first : first.shorter(longest);
}

/** The moves that all automata have, without surrogates. */
function together(
  automata: readonly Automaton<unknown>[],
  state: readonly unknown[],
): Move<readonly unknown[]>[] {
  let moves: Move<readonly unknown[]>[] = EVERY.map(([low, high]) => ({
    low,
    high,
    to: [],
  }));
  for (const [i, one] of automata.entries()) {
    const own = one.moves(state[i]), both: Move<readonly unknown[]>[] = [];
    for (let a = 0, b = 0; a < moves.length && b < own.length;) {
      const low = Math.max(moves[a].low, own[b].low);
      const high = Math.min(moves[a].high, own[b].high);
      if (low <= high) {
        both.push({ low, high, to: [...moves[a].to, own[b].to] });
      }
      if (moves[a].high < own[b].high) a++;
      else b++;
    }
    moves = both;
  }
  return moves;
}
