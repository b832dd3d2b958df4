/**
 * A small preprocessor for WGSL. naga neither unrolls loops nor keeps indexed local
 * arrays in registers (measured: 16 times slower), so hot code is unrolled in the text,
 * while the source still shows the loop:
 *
 * - `@unroll for (var i = 0; i < N; i++) { … }` repeats its body for each `i`;
 * - `@split var a: array<vec4f, N>;` declares `a_0 … a_N-1`; `a[i * 2]` becomes `a_4`;
 * - `@if EXPR { … } @else { … }` keeps one branch.
 *
 * @module
 */
import type { Constants } from "../dispatch/shapes.ts";

/**
 * Expands `text` with `constants`. `numbered` maps names declared elsewhere to how many
 * there are of each; if `f` is a function, `f[2 * i](x)` becomes `f_4(x)`.
 *
 * ```ts
 * import { unroll } from "./unroll.ts";
 * unroll("@unroll for (var i = 0; i < N; i++) { y[i] = i; }", { N: 2 });
 * // "{ y[0] = 0; }\n{ y[1] = 1; }"
 * ```
 *
 * @throws {Error} if a bound or an index is not a constant, or a brace is missing.
 */
export function unroll(
  text: string,
  constants: Constants,
  numbered: ReadonlyMap<string, number> = new Map(),
): string {
  const split = new Map(numbered);
  const expanded = expandBlocks(text, constants, split);
  return nameElements(expanded, constants, split);
}

const DIRECTIVE =
  /@unroll\s+for\s*\(\s*var\s+(\w+)\s*=\s*([^;]+);\s*\w+\s*<\s*([^;]+);\s*\w+\s*(?:\+\+|\+=\s*([^)]+))\s*\)\s*\{|@if\s+([^{]+)\{|@split\s+var\s+(\w+)\s*:\s*array<\s*([^,]+),\s*([^>]+)>\s*;/g;

/** More copies of a loop body than this must be a mistake. */
const MOST_COPIES = 4096;

function expandBlocks(
  text: string,
  constants: Constants,
  split: Map<string, number>,
): string {
  let out = "", from = 0;
  DIRECTIVE.lastIndex = 0;
  for (;;) {
    DIRECTIVE.lastIndex = from;
    const match = DIRECTIVE.exec(text);
    if (!match) return out + text.slice(from);
    out += text.slice(from, match.index);
    const [whole, loop, start, limit, step, condition, array, type, size] =
      match;
    let end = match.index + whole.length;
    if (array !== undefined) {
      const n = evaluate(size, constants);
      if (!(n <= MOST_COPIES)) {
        throw new Error(
          `Cannot unroll: ${array} has ${n} elements, must be at most ${MOST_COPIES}`,
        );
      }
      split.set(array, n);
      for (let i = 0; i < n; i++) out += `var ${array}_${i}: ${type}; `;
    } else if (loop !== undefined) {
      const close = closingBrace(text, end - 1);
      const body = text.slice(end, close);
      const first = evaluate(start, constants),
        last = evaluate(limit, constants);
      const by = step === undefined ? 1 : evaluate(step, constants);
      const rounds = (last - first) / by;
      if (!(by > 0 && rounds <= MOST_COPIES)) {
        throw new Error(
          `Cannot unroll: ${loop} goes from ${first} to ${last} by ${by}, must be at most ${MOST_COPIES} rounds`,
        );
      }
      const copies = [];
      for (let i = first; i < last; i += by) {
        const copy = body.replaceAll(new RegExp(`\\b${loop}\\b`, "g"), `${i}`);
        const known = { ...constants, [loop]: i };
        copies.push(`{${expandBlocks(copy, known, split)}}`);
      }
      out += copies.join("\n");
      end = close + 1;
    } else {
      const close = closingBrace(text, end - 1);
      let branch = truth(condition, constants)
        ? text.slice(end, close)
        : undefined;
      end = close + 1;
      const otherwise = /\s*@else\s*\{/y;
      otherwise.lastIndex = end;
      const found = otherwise.exec(text);
      if (found) {
        const open = otherwise.lastIndex - 1, shut = closingBrace(text, open);
        branch ??= text.slice(open + 1, shut);
        end = shut + 1;
      }
      out += expandBlocks(branch ?? "", constants, split);
    }
    from = end;
  }
}

/** Replaces `a[2 * 1 + 0]` with `a_2` for every array that was split. */
function nameElements(
  text: string,
  constants: Constants,
  split: Map<string, number>,
): string {
  for (const [name, size] of split) {
    const use = new RegExp(`\\b${name}\\[([^\\]]*)\\]`, "g");
    text = text.replaceAll(use, (_, index) => {
      const i = evaluate(index, constants);
      if (i < 0 || i >= size) {
        throw new Error(
          `Cannot unroll: ${name}[${i}] is used, it has ${size} elements`,
        );
      }
      return `${name}_${i}`;
    });
  }
  return text;
}

function closingBrace(text: string, open: number): number {
  let depth = 0;
  for (let i = open; i < text.length; i++) {
    if (text[i] === "{") depth++;
    else if (text[i] === "}" && --depth === 0) return i;
  }
  throw new Error(
    `Cannot unroll: no closing brace for "${text.slice(open - 40, open + 1)}"`,
  );
}

const truth = (expression: string, constants: Constants) =>
  evaluate(expression, constants) !== 0;

/** Integer arithmetic, comparisons and logic over constants, by precedence climbing. */
function evaluate(expression: string, constants: Constants): number {
  const tokens = expression.match(
    /"[^"]*"|\d+u?|\w+|\|\||&&|[=!<>]=|<<|>>|[-+*\/%<>!()]/g,
  ) ?? [];
  let at = 0;
  const fail = (why: string): never => {
    throw new Error(
      `Cannot unroll: "${expression.trim()}" must be a constant expression, ${why}`,
    );
  };
  const levels: string[][] = [
    ["||"],
    ["&&"],
    ["==", "!="],
    ["<", ">", "<=", ">="],
    ["<<", ">>"],
    ["+", "-"],
    ["*", "/", "%"],
  ];
  const number = (v: number | string) =>
    typeof v === "number" ? v : fail(`"${v}" is text`);
  const primary = (): number | string => {
    const token = tokens[at++];
    if (token === undefined) return fail("it ends early");
    if (token === "(") {
      const value = binary(0);
      if (tokens[at++] !== ")") fail("a bracket is open");
      return value;
    }
    if (token === "-") return -number(primary());
    if (token === "!") return number(primary()) ? 0 : 1;
    if (token[0] === '"') return token.slice(1, -1);
    if (/^\d/.test(token)) return parseInt(token);
    return constants[token] ?? fail(`${token} is unknown`);
  };
  const binary = (level: number): number | string => {
    if (level === levels.length) return primary();
    let left = binary(level + 1);
    while (levels[level].includes(tokens[at])) {
      const operator = tokens[at++], right = binary(level + 1);
      if (operator === "==" || operator === "!=") {
        left = Number((left === right) === (operator === "=="));
      } else left = apply(operator, number(left), number(right));
    }
    return left;
  };
  const value = number(binary(0));
  if (at !== tokens.length) fail(`"${tokens[at]}" is left over`);
  return value;
}

function apply(operator: string, a: number, b: number): number {
  switch (operator) {
    case "||":
      return Number(a !== 0 || b !== 0);
    case "&&":
      return Number(a !== 0 && b !== 0);
    case "<":
      return Number(a < b);
    case ">":
      return Number(a > b);
    case "<=":
      return Number(a <= b);
    case ">=":
      return Number(a >= b);
    case "<<":
      return a << b;
    case ">>":
      return a >> b;
    case "+":
      return a + b;
    case "-":
      return a - b;
    case "*":
      return a * b;
    case "/":
      return Math.trunc(a / b);
    default:
      return a % b;
  }
}
