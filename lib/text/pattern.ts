/**
 * The patterns of a tokenizer: literal strings and regular expressions, whose work is
 * bounded.
 *
 * JavaScript's regular expressions backtrack without a limit, so one from an untrusted
 * tokenizer.json could run for years. The patterns of well-known tokenizers, which take
 * time in proportion to the text, run on JavaScript's engine; all others on a
 * backtracking matcher that counts its steps.
 *
 * @module
 */
import { SplitPreTokenizer } from "npm:@huggingface/tokenizers@0.2.0";
import { type AST, RegExpParser } from "npm:@eslint-community/regexpp@4.12.3";
import { errorText, jsonText } from "../errors.ts";
import { isObject } from "../json.ts";
import { wrong } from "./bpe.ts";

/** Finds what a pattern matches: begin and end of each match, in UTF-16 units. */
export type Matcher = (
  text: string,
  budget: Budget,
) => Generator<readonly [begin: number, end: number], void>;

/** The steps that patterns may still take while one text is encoded. */
export class Budget {
  readonly #steps: number;
  #left: number;

  constructor(readonly textLength: number) {
    this.#left = this.#steps = Math.min(2e6 + 200 * textLength, 2e8);
  }

  /** Subtracts `steps`. */
  spend(steps: number, pattern: string): void {
    this.#left -= steps;
    if (this.#left >= 0) return;
    throw new Error(
      `Cannot encode a text of ${this.textLength} characters: the tokenizer's pattern ${
        jsonText(pattern)
      } backtracks too much, it takes more than ${this.#steps} steps or ${MOST_KEPT} numbers to keep`,
    );
  }
}

/** The most UTF-16 units of a pattern, and instructions of its program. */
const MOST_UNITS = 5000, MOST_CODE = 20_000;
/** The maximum size of the matcher's backtracking stack. */
const MOST_KEPT = 2 ** 23;

const CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const SPACES = "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
/** Patterns that take time in proportion to the text, quoted from their tokenizers. */
const LINEAR: ReadonlySet<string> = new Set([
  // GPT-2
  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
  // Qwen2, Qwen2.5 and Qwen3
  `${CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|${SPACES}`,
  // Llama 3 and GPT-4
  `${CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|${SPACES}`,
  // DeepSeek-V3 and R1
  "\\p{N}{1,3}",
  "[一-龥぀-ゟ゠-ヿ]+",
  `[!"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_\`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|${SPACES}`,
  // Single characters, of Digits and others
  "\\p{N}",
  "\\s",
]);

/**
 * Reads a pattern of a tokenizer.json, `{ "String": … }` or `{ "Regex": … }`.
 *
 * @throws {Error} if it is neither, or not a pattern that can be run; the message has no
 * subject.
 */
export function readPattern(json: unknown, where: string): Matcher {
  const { String: literal, Regex: regex } = isObject(json)
    ? json
    : {} as Record<string, unknown>;
  if (typeof literal === "string") return findLiteral(literal);
  if (typeof regex !== "string") {
    throw wrong(where, json, '{ "String": … } or { "Regex": … }');
  }
  if (regex.length > MOST_UNITS) {
    throw new Error(
      `${where} has ${regex.length} characters, must have at most ${MOST_UNITS}`,
    );
  }
  try {
    // The library translates Oniguruma's syntax, as in tokenizer.json, to JavaScript's.
    const { pattern } = new SplitPreTokenizer({
      type: "Split",
      behavior: "Isolated",
      pattern: { Regex: regex },
    }) as unknown as { pattern: RegExp };
    if (LINEAR.has(regex)) return findAll(pattern, regex);
    const program = compile(pattern.source);
    return (text, budget) => findCounted(program, regex, text, budget);
  } catch (error) {
    throw new Error(
      `${where} is ${jsonText(regex)}, which cannot be run: ${
        errorText(error)
      }`,
      { cause: error },
    );
  }
}

function findLiteral(literal: string): Matcher {
  return function* (text) {
    if (literal === "") return;
    let begin = text.indexOf(literal);
    while (begin >= 0) {
      const end = begin + literal.length;
      yield [begin, end];
      begin = text.indexOf(literal, end);
    }
  };
}

function findAll(pattern: RegExp, regex: string): Matcher {
  let program: Program | undefined;
  return function* (text, budget) {
    for (let at = 0; at <= text.length;) {
      pattern.lastIndex = at;
      let match: RegExpExecArray | null;
      try {
        match = pattern.exec(text);
      } catch { // its stack holds words of up to a few million characters
        program ??= compile(pattern.source);
        yield* findCounted(program, regex, text, budget, at);
        return;
      }
      if (!match) return;
      const end = pattern.lastIndex;
      yield [match.index, end];
      at = match[0] === "" ? after(text, end) : end;
    }
  };
}

function* findCounted(
  program: Program,
  regex: string,
  text: string,
  budget: Budget,
  begin = 0,
): ReturnType<Matcher> {
  const run = new Matching(program, text, budget, regex);
  for (let at = begin; at <= text.length;) {
    const end = run.match(0, at);
    if (end >= 0) yield [at, end];
    at = end > at ? end : after(text, at);
  }
}

/** The position after the character at `at`. */
function after(text: string, at: number): number {
  return at + (text.codePointAt(at)! > 0xffff ? 2 : 1);
}

/** What a step of a program does; `a` and `b` are its operands. */
enum Op {
  /** Matches one character of set `a`, on the right or, if `b` is 1, on the left. */
  One,
  /** Matches as many characters of set `a` as possible, then fewer; at least `b`. */
  Many,
  /** Tries `a`, then `b`. */
  Either,
  Jump,
  /** Saves the position in register `a`. */
  Note,
  /** Fails if the position is the one in register `a`. */
  Moved,
  /** The program up to `a` must match here, or must not if `b` is 1. */
  Look,
  Done,
}

type Instruction = { op: Op; a: number; b: number };
/** Whether a character is in a set. */
type CharacterSet = (codePoint: number) => boolean;

interface Program {
  code: Instruction[];
  sets: CharacterSet[];
  registers: number;
}

/** Compiles the source of a JavaScript regular expression. */
function compile(source: string): Program {
  const tree = new RegExpParser({ ecmaVersion: 2024 })
    .parsePattern(source, 0, source.length, { unicode: true });
  const compiler = new Compiler();
  compiler.alternatives(tree.alternatives, false);
  compiler.emit(Op.Done);
  return compiler;
}

class Compiler implements Program {
  readonly code: Instruction[] = [];
  readonly sets: CharacterSet[] = [];
  registers = 0;
  readonly #setOf = new Map<string, number>();

  emit(op: Op, a = 0, b = 0): Instruction {
    if (this.code.length >= MOST_CODE) {
      throw new Error(`it needs more than ${MOST_CODE} instructions`);
    }
    const instruction = { op, a, b };
    this.code.push(instruction);
    return instruction;
  }

  #set(raw: string): number {
    let set = this.#setOf.get(raw);
    if (set === undefined) {
      this.#setOf.set(raw, set = this.sets.length);
      this.sets.push(createSet(raw));
    }
    return set;
  }

  alternatives(all: readonly AST.Alternative[], back: boolean): void {
    const jumps: Instruction[] = [];
    for (const [i, { elements }] of all.entries()) {
      const either = i < all.length - 1 ? this.emit(Op.Either) : undefined;
      if (either) either.a = this.code.length;
      for (const one of back ? elements.toReversed() : elements) {
        this.#element(one, back);
      }
      if (!either) break;
      jumps.push(this.emit(Op.Jump));
      either.b = this.code.length;
    }
    for (const jump of jumps) jump.a = this.code.length;
  }

  #element(node: AST.Element, back: boolean): void {
    if (isSingle(node)) {
      this.emit(Op.One, this.#set(node.raw), back ? 1 : 0);
    } else if (node.type === "Quantifier") {
      this.#quantifier(node, back);
    } else if (node.type === "Group" || node.type === "CapturingGroup") {
      this.alternatives(node.alternatives, back);
    } else if (
      node.type === "Assertion" &&
      (node.kind === "lookahead" || node.kind === "lookbehind")
    ) {
      const look = this.emit(Op.Look, 0, node.negate ? 1 : 0);
      this.alternatives(node.alternatives, node.kind === "lookbehind");
      this.emit(Op.Done);
      look.a = this.code.length;
    } else throw new Error(`${node.raw} is not supported`);
  }

  #quantifier(node: AST.Quantifier, back: boolean): void {
    const { min, max, greedy, element } = node;
    if (isSingle(element) && !back && greedy && max === Infinity) {
      this.emit(Op.Many, this.#set(element.raw), min);
      return;
    }
    for (let i = 0; i < min; i++) this.#element(element, back);
    /** Begins an optional part; returns a function that ends it. */
    const optional = () => {
      const either = this.emit(Op.Either);
      const [body, end] = greedy ? ["a", "b"] as const : ["b", "a"] as const;
      either[body] = this.code.length;
      return () => void (either[end] = this.code.length);
    };
    if (max === Infinity) {
      const begin = this.code.length, end = optional();
      const register = this.registers++;
      this.emit(Op.Note, register);
      this.#element(element, back);
      this.emit(Op.Moved, register);
      this.emit(Op.Jump, begin);
      end();
      return;
    }
    const ends: (() => void)[] = [];
    for (let i = min; i < max; i++) {
      ends.push(optional());
      this.#element(element, back);
    }
    for (const end of ends) end();
  }
}

function isSingle(
  node: AST.Element,
): node is AST.Character | AST.CharacterSet | AST.CharacterClass {
  return ["Character", "CharacterSet", "CharacterClass"].includes(node.type);
}

/** The set of characters that `raw` matches, tested once per character. */
function createSet(raw: string): CharacterSet {
  const test = new RegExp(`^(?:${raw})$`, "u");
  const known = new Uint8Array(0x10000); // 0 unknown, 1 no, 2 yes
  return (codePoint) => {
    if (codePoint > 0xffff) return test.test(String.fromCodePoint(codePoint));
    let answer = known[codePoint];
    if (answer === 0) {
      answer = test.test(String.fromCharCode(codePoint)) ? 2 : 1;
      known[codePoint] = answer;
    }
    return answer === 2;
  };
}

/** Steps are reported in batches of this size. */
const PORTION = 4096;

/**
 * The backtracking stack: numbers with the kind of entry on top, which is an
 * instruction and a position; a register and its old value; or an instruction, a position
 * and the least position, between which fewer characters may match.
 */
const PLACE = 0, REGISTER = 1, FEWER = 2;

/** Runs a program on a text. */
class Matching {
  readonly #program: Program;
  readonly #text: string;
  readonly #registers: Int32Array;
  readonly #spend: (steps: number) => void;
  #steps = 0;

  constructor(program: Program, text: string, budget: Budget, regex: string) {
    this.#program = program;
    this.#text = text;
    this.#registers = new Int32Array(program.registers);
    this.#spend = (steps) => budget.spend(steps, regex);
  }

  /** Runs from instruction `pc` at a position; returns where the match ends, or −1. */
  match(pc: number, at: number): number {
    const { code } = this.#program;
    const registers = this.#registers;
    const kept: number[] = [];
    while (true) {
      this.#step(kept);
      const { op, a, b } = code[pc++];
      let next = at; // −1 fails
      switch (op) {
        case Op.One:
          next = this.#one(a, at, b === 1);
          break;
        case Op.Many: {
          const [end, least] = this.#many(a, at, b, kept);
          if (end > least && least >= 0) kept.push(pc, end, least, FEWER);
          next = least < 0 ? -1 : end;
          break;
        }
        case Op.Either:
          kept.push(b, at, PLACE);
          pc = a;
          break;
        case Op.Jump:
          pc = a;
          break;
        case Op.Note:
          kept.push(a, registers[a], REGISTER);
          registers[a] = at;
          break;
        case Op.Moved:
          if (registers[a] === at) next = -1;
          break;
        case Op.Look:
          if ((this.match(pc, at) >= 0) === (b === 1)) next = -1;
          pc = a;
          break;
        case Op.Done:
          return at;
      }
      if (next < 0) {
        const back = this.#back(kept);
        if (!back) return -1;
        [pc, next] = back;
      }
      at = next;
    }
  }

  /** Pops the instruction and position to backtrack to from `kept`. */
  #back(kept: number[]): [pc: number, at: number] | undefined {
    for (let kind = kept.pop(); kind !== undefined; kind = kept.pop()) {
      if (kind === REGISTER) {
        const value = kept.pop()!;
        this.#registers[kept.pop()!] = value;
        continue;
      }
      if (kind === PLACE) {
        const at = kept.pop()!;
        return [kept.pop()!, at];
      }
      const least = kept.pop()!;
      const at = before(this.#text, kept.pop()!);
      const pc = kept.pop()!;
      if (at > least) kept.push(pc, at, least, FEWER);
      return [pc, at];
    }
    return undefined;
  }

  /**
   * Matches as many characters of a set as possible. Returns where they end, and where
   * they would if there were only `min`; the latter is −1 if there are fewer.
   */
  #many(
    set: number,
    at: number,
    min: number,
    kept: number[],
  ): [end: number, least: number] {
    let least = min === 0 ? at : -1, count = 0;
    for (let end = this.#one(set, at, false); end >= 0;) {
      this.#step(kept);
      at = end;
      if (++count === min) least = at;
      end = this.#one(set, at, false);
    }
    return [at, least];
  }

  /** Matches one character; returns the position after it, or −1. */
  #one(set: number, at: number, back: boolean): number {
    const text = this.#text;
    if (at === (back ? 0 : text.length)) return -1;
    const begin = back ? before(text, at) : at;
    const codePoint = text.codePointAt(begin)!;
    if (!this.#program.sets[set](codePoint)) return -1;
    return back ? begin : after(text, at);
  }

  #step(kept: readonly number[]): void {
    if (kept.length > MOST_KEPT) this.#spend(Infinity);
    if (++this.#steps < PORTION) return;
    this.#spend(this.#steps);
    this.#steps = 0;
  }
}

/** The position of the character before `at`. */
function before(text: string, at: number): number {
  return at - (at > 1 && text.codePointAt(at - 2)! > 0xffff ? 2 : 1);
}
