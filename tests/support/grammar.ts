/** Reading and writing texts by a grammar. */
import {
  type Part,
  type Stack,
  start,
  type State,
  type Threads,
} from "../../lib/text/grammar/automaton.ts";
import type { Random } from "./random.ts";

const utf8 = new TextEncoder();

/** Whether a grammar takes a text, byte by byte. */
export function accepts(part: Part, text: string): boolean {
  let threads = start(part);
  for (const byte of utf8.encode(text)) {
    threads = threads.after(byte);
    if (threads.dead) return false;
  }
  return threads.complete;
}

/** What each byte that may come next leads to. */
function steps(threads: Threads): { byte: number; to: Threads }[] {
  return Array.from({ length: 256 }, (_, byte) => byte)
    .map((byte) => ({ byte, to: threads.after(byte) }))
    .filter(({ to }) => !to.dead);
}

/**
 * Writes a text at random: `free` bytes, then what soonest leads to its end.
 *
 * @throws {Error} if it reaches a dead end, or does not end.
 */
export function randomText(part: Part, random: Random, free: number): string {
  const text: number[] = [];
  let threads = start(part);
  for (;;) {
    const possible = steps(threads);
    if (possible.length === 0 && !threads.complete) {
      throw new Error(`a dead end after ${shown(text)}`);
    }
    const ends = threads.complete && (possible.length === 0 ||
      text.length >= free || random.int(0, 3) === 0);
    if (ends) break;
    if (text.length > free + 2000) {
      throw new Error(`no end after ${shown(text)}`);
    }
    const ascii = possible.filter(({ byte }) => byte < 0x80);
    const choices = text.length >= free || random.int(0, 7) === 0
      ? soonest(simple(possible), ({ to }) => remaining(to))
      : ascii.length > 0 && random.int(0, 1) === 0
      ? ascii
      : possible;
    const { byte, to } = random.pick(choices);
    text.push(byte);
    threads = to;
  }
  return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true })
    .decode(Uint8Array.from(text));
}

/** The steps that are worth measuring: the ways into long characters are many. */
function simple<T extends { byte: number }>(
  possible: readonly T[],
): readonly T[] {
  const plain = possible.filter(({ byte }) => byte < 0xc4);
  return plain.length > 0 ? plain : possible.slice(0, 2);
}

const shown = (text: readonly number[]) =>
  new TextDecoder().decode(Uint8Array.from(text.slice(-200)));

/** Those of `choices` with the smallest measure. */
export function soonest<T>(
  choices: readonly T[],
  measure: (choice: T) => number,
): T[] {
  const measures = choices.map(measure), least = Math.min(...measures);
  return choices.filter((_, i) => measures[i] === least);
}

/** How much there is until the end: what is nested counts most, then bytes of a string. */
export function remaining(threads: Threads): number {
  if (threads.complete) return 0;
  return Math.min(
    ...threads.list.map(({ state, below }) =>
      1e6 * depth(below) + distance(state)
    ),
  );
}

function depth(stack: Stack | null): number {
  let parts = 1;
  for (let at = stack; at; at = at.below) parts++;
  return parts;
}

const distances = new WeakMap<State, number>();

/** The bytes until a string may end; other terminals are short. */
function distance(state: State): number {
  if (state.accepts || !("word" in state)) return 0;
  const found = distances.get(state) ?? search(state, ASCII) ??
    search(state, [...ASCII, 0x5c]) ?? search(state, ALL);
  if (found === undefined) throw new Error("a string does not end");
  return found;
}

/**
 * Bytes from 0x20, first without those that begin characters of 3 bytes or 4, a backslash, and the u
 * of an escape, if that will do.
 */
const ALL = Array.from({ length: 224 }, (_, i) => 0x20 + i);
const ASCII = ALL.filter((byte) => byte < 0xc4 && byte !== 0x5c);
const U = 0x75;

function search(state: State, bytes: readonly number[]): number | undefined {
  const from = new Map<State, State | undefined>([[state, undefined]]);
  for (const at of from.keys()) {
    const known = at.accepts ? 0 : distances.get(at);
    if (known !== undefined) {
      let count = known;
      for (let back = from.get(at); back; back = from.get(back)) {
        distances.set(back, ++count);
      }
      return count;
    }
    const escape = at.next(0x2f) && !at.next(0x2e); // only after a backslash
    for (const byte of bytes) {
      if (escape && byte === U && bytes !== ALL) continue;
      const next = at.next(byte);
      if (next && !from.has(next)) from.set(next, at);
    }
  }
}
