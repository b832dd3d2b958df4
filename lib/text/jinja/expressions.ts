/**
 * Parses expressions, with Jinja2's precedence.
 *
 * @module
 */
import type { Token } from "./lexer.ts";
import { atMost, Fault, MOST } from "./meter.ts";
import type { Applied, Arguments, Expression } from "./nodes.ts";
import type { Value } from "./values.ts";

const CONSTANTS = new Map<string, Value>([
  ["true", true],
  ["True", true],
  ["false", false],
  ["False", false],
  ["none", null],
  ["None", null],
]);
const COMPARE = ["==", "!=", "<", "<=", ">", ">="];
/** Words that follow a test and are not its argument. */
const AFTER_TEST = ["else", "or", "and"];

/** Reads tokens as expressions. */
export class ExpressionParser {
  #at = 0;
  #depth = 0;
  #names = new Set<string>();

  constructor(readonly tokens: readonly Token[]) {}

  /** The current token. */
  get token(): Token {
    return this.tokens[this.#at];
  }

  /** Advances by one token. */
  advance(): void {
    if (this.token.type !== "end") this.#at++;
  }

  /** Throws an error at the current token. */
  fail(reason: string): never {
    throw new Fault(reason).at(this.token.line);
  }

  /** Whether the current token is this operator. */
  isOperator(text: string): boolean {
    return this.token.type === "operator" && this.token.value === text;
  }

  /** Whether the current token is this word. */
  isName(name: string): boolean {
    return this.token.type === "name" && this.token.value === name;
  }

  /** Takes an operator if it is there. */
  skip(operator: string): boolean {
    const found = this.isOperator(operator);
    if (found) this.advance();
    return found;
  }

  /** Takes a word if it is there. */
  skipName(name: string): boolean {
    const found = this.isName(name);
    if (found) this.advance();
    return found;
  }

  /** Requires an operator or the end of a tag. */
  expect(text: string): void {
    const { type, value } = this.token;
    if (type === text || (type === "operator" && value === text)) {
      return this.advance();
    }
    this.fail(`expected token '${text}', got ${this.#found()}`);
  }

  /** Requires a word, or this one. */
  expectName(name?: string): string {
    const { type, value } = this.token;
    if (type !== "name" || (name !== undefined && value !== name)) {
      this.fail(
        `expected ${name ? `'${name}'` : "a name"}, got ${this.#found()}`,
      );
    }
    this.advance();
    return value;
  }

  #found(): string {
    const { type, value } = this.token;
    if (type === "end") return "the end of the template";
    return type === "operator" || type === "name" ? `'${value}'` : `'${type}'`;
  }

  /** Parses one level deeper. */
  nested<T>(parse: () => T): T {
    atMost(++this.#depth, MOST.nesting, "the template nests {} levels deep");
    const result = parse();
    this.#depth--;
    return result;
  }

  /** Also returns the names that are used in what is parsed. */
  namesIn<T>(parse: () => T): [T, Set<string>] {
    const outer = this.#names;
    this.#names = new Set();
    const result = parse(), found = this.#names;
    this.#names = outer.union(found);
    return [result, found];
  }

  /** Notes that a name is used. */
  use(name: string): string {
    this.#names.add(name);
    return name;
  }

  /** Whether a list without brackets ends here. */
  isTupleEnd(end?: string): boolean {
    return this.token.type === "}}" || this.token.type === "%}" ||
      this.isOperator(")") || (end !== undefined && this.isName(end));
  }

  /** An expression, or several with commas between them. */
  tuple(withChoice = true, end?: string, inBrackets = false): Expression {
    const { line } = this.token;
    const items: Expression[] = [];
    let several = false;
    while (!this.isTupleEnd(end)) {
      items.push(
        withChoice ? this.expression() : this.nested(() => this.#or()),
      );
      if (!this.skip(",")) break;
      several = true;
    }
    if (items.length === 0 && !inBrackets) {
      this.fail(`expected an expression, got ${this.#found()}`);
    }
    return several || items.length === 0
      ? { type: "tuple", line, items }
      : items[0];
  }

  /** Any expression. */
  expression(): Expression {
    return this.nested(() => this.#choice());
  }

  #choice(): Expression {
    let { line } = this.token;
    let yes = this.#or();
    while (this.skipName("if")) {
      const test = this.#or();
      const no = this.skipName("else") ? this.expression() : null;
      yes = { type: "choice", line, test, yes, no };
      line = this.token.line;
    }
    return yes;
  }

  #or(): Expression {
    const { line } = this.token;
    let left = this.#and();
    while (this.skipName("or")) {
      left = { type: "or", line, left, right: this.#and() };
    }
    return left;
  }

  #and(): Expression {
    const { line } = this.token;
    let left = this.#not();
    while (this.skipName("and")) {
      left = { type: "and", line, left, right: this.#not() };
    }
    return left;
  }

  #not(): Expression {
    const { line } = this.token;
    if (!this.skipName("not")) return this.#compare();
    return { type: "not", line, value: this.nested(() => this.#not()) };
  }

  #comparison(): string | undefined {
    const { type, value } = this.token;
    if (type === "operator" && COMPARE.includes(value)) {
      this.advance();
      return value;
    }
    if (this.skipName("in")) return "in";
    const next = this.tokens[this.#at + 1];
    if (this.isName("not") && next.type === "name" && next.value === "in") {
      this.advance();
      this.advance();
      return "not in";
    }
  }

  #compare(): Expression {
    const { line } = this.token;
    const first = this.#sum();
    const rest: { operator: string; value: Expression }[] = [];
    for (;;) {
      const operator = this.#comparison();
      if (operator === undefined) break;
      rest.push({ operator, value: this.#sum() });
    }
    return rest.length === 0 ? first : { type: "compare", line, first, rest };
  }

  /** Operators of one level, from the left. */
  #operators(operators: readonly string[], next: () => Expression): Expression {
    const { line } = this.token;
    let left = next();
    while (
      this.token.type === "operator" && operators.includes(this.token.value)
    ) {
      const operator = this.token.value;
      this.advance();
      left = { type: "binary", line, operator, left, right: next() };
    }
    return left;
  }

  #sum(): Expression {
    return this.#operators(["+", "-"], () => this.#concat());
  }

  #concat(): Expression {
    const { line } = this.token;
    const parts = [this.#product()];
    while (this.skip("~")) parts.push(this.#product());
    return parts.length === 1 ? parts[0] : { type: "concat", line, parts };
  }

  #product(): Expression {
    return this.#operators(
      ["*", "/", "//", "%"],
      () => this.#operators(["**"], () => this.#unary(true)),
    );
  }

  #unary(withFilter: boolean): Expression {
    const { line, value: operator } = this.token;
    let node: Expression;
    if (this.skip("-") || this.skip("+")) {
      const value = this.nested(() => this.#unary(false));
      node = { type: "unary", line, operator, value };
    } else node = this.#primary();
    node = this.#postfix(node);
    return withFilter ? this.#filters(node) : node;
  }

  #primary(): Expression {
    const { type, value, line } = this.token;
    switch (type) {
      case "name":
        this.advance();
        return CONSTANTS.has(value)
          ? { type: "constant", line, value: CONSTANTS.get(value)! }
          : { type: "name", line, name: this.use(value) };
      case "string":
        return { type: "constant", line, value: this.#strings() };
      case "integer":
        this.advance();
        return { type: "constant", line, value: this.#integer(value) };
      case "float":
        this.advance();
        return {
          type: "constant",
          line,
          value: Number(value.replaceAll("_", "")),
        };
    }
    if (this.skip("(")) {
      const node = this.tuple(true, undefined, true);
      this.expect(")");
      return node;
    }
    if (this.skip("[")) {
      return {
        type: "list",
        line,
        items: this.#series("]", () => this.expression()),
      };
    }
    if (this.skip("{")) return this.#dict(line);
    this.fail(`expected an expression, got ${this.#found()}`);
  }

  #strings(): string {
    let text = "";
    while (this.token.type === "string") {
      text += this.token.value;
      this.advance();
    }
    return text;
  }

  #integer(text: string): bigint {
    atMost(text.length, MOST.digits, "an integer has {} digits");
    return BigInt(text.replaceAll("_", ""));
  }

  /** Items with commas between them, also after the last, up to `end`. */
  #series<T>(end: string, parse: () => T): T[] {
    const items: T[] = [];
    while (!this.isOperator(end)) {
      if (items.length > 0) this.expect(",");
      if (this.isOperator(end)) break;
      items.push(parse());
    }
    this.expect(end);
    return items;
  }

  #dict(line: number): Expression {
    const pairs = this.#series("}", (): [Expression, Expression] => {
      const key = this.expression();
      this.expect(":");
      return [key, this.expression()];
    });
    return { type: "dict", line, pairs };
  }

  #postfix(node: Expression): Expression {
    for (;;) {
      const { line } = this.token;
      if (this.skip(".")) node = this.#member(node, line);
      else if (this.skip("[")) node = this.#subscript(node, line);
      else if (this.isOperator("(")) node = this.#call(node, line);
      else return node;
    }
  }

  #call(callee: Expression, line: number): Expression {
    return { type: "call", line, callee, ...this.#arguments() };
  }

  #member(object: Expression, line: number): Expression {
    const { type, value } = this.token;
    if (type !== "name" && type !== "integer") {
      this.fail("expected name or number");
    }
    this.advance();
    return type === "name"
      ? { type: "attribute", line, object, name: value }
      : {
        type: "item",
        line,
        object,
        key: { type: "constant", line, value: this.#integer(value) },
      };
  }

  #subscript(object: Expression, line: number): Expression {
    const parts = this.#series("]", () => this.#subscripted(object, line));
    if (parts.length === 1) {
      const [part] = parts;
      return part.type === "slice" && part.object === object
        ? part
        : { type: "item", line, object, key: part };
    }
    const slice = parts.find((part) =>
      part.type === "slice" && part.object === object
    );
    if (slice) this.fail("a slice must be the only index");
    return {
      type: "item",
      line,
      object,
      key: { type: "tuple", line, items: parts },
    };
  }

  #subscripted(object: Expression, line: number): Expression {
    const isEnd = () =>
      this.isOperator(":") || this.isOperator("]") || this.isOperator(",");
    const bound = () => isEnd() ? null : this.expression();
    const start = this.isOperator(":") ? null : this.expression();
    if (!this.skip(":")) return start!;
    const stop = bound();
    const step = this.skip(":") ? bound() : null;
    return { type: "slice", line, object, bounds: [start, stop, step] };
  }

  #arguments(): Arguments {
    const { line } = this.token;
    const found: Arguments = { args: [], named: [] };
    const ensure = (fits: boolean) => {
      if (!fits) {
        throw new Fault("invalid syntax for function call expression").at(line);
      }
    };
    this.expect("(");
    this.#series(")", () => {
      const next = this.tokens[this.#at + 1];
      if (this.skip("*")) {
        ensure(!found.list && !found.map);
        found.list = this.expression();
      } else if (this.skip("**")) {
        ensure(!found.map);
        found.map = this.expression();
      } else if (
        this.token.type === "name" && next.type === "operator" &&
        next.value === "="
      ) {
        ensure(!found.map);
        const name = this.expectName();
        this.advance();
        found.named.push({ name, value: this.expression() });
      } else {
        ensure(!found.list && !found.map && found.named.length === 0);
        found.args.push(this.expression());
      }
    });
    return found;
  }

  /** Filters, tests and calls after a value. */
  #filters(node: Expression): Expression {
    for (;;) {
      const { line } = this.token;
      if (this.isOperator("|")) node = this.filter(node, false);
      else if (this.isName("is")) node = this.#test(node);
      else if (this.isOperator("(")) node = this.#call(node, line);
      else return node;
    }
  }

  #dottedName(): string {
    let name = this.expectName();
    while (this.skip(".")) name += `.${this.expectName()}`;
    return name;
  }

  /** One or more filters; a block's first has no bar before it. */
  filter(value: Expression | null, inBlock: boolean): Expression {
    let node = value;
    while (inBlock || this.skip("|")) {
      const { line } = this.token;
      inBlock = false;
      const name = this.#dottedName();
      const found = this.isOperator("(")
        ? this.#arguments()
        : { args: [], named: [] };
      node = { type: "filter", line, name, value: node, ...found };
    }
    return node!;
  }

  #test(value: Expression): Expression {
    const { line } = this.token;
    this.advance();
    const negated = this.skipName("not");
    const name = this.#dottedName();
    const found = this.isOperator("(")
      ? this.#arguments()
      : { args: this.#testArgument(), named: [] };
    const test: Applied & { type: "test" } = {
      type: "test",
      line,
      name,
      value,
      ...found,
    };
    return negated ? { type: "not", line, value: test } : test;
  }

  #testArgument(): Expression[] {
    const { type, value } = this.token;
    const begins = type === "name"
      ? !AFTER_TEST.includes(value)
      : type === "string" || type === "integer" || type === "float" ||
        this.isOperator("[") || this.isOperator("{");
    if (!begins) return [];
    if (this.isName("is")) this.fail("You cannot chain multiple tests with is");
    return [this.#postfix(this.#primary())];
  }
}
