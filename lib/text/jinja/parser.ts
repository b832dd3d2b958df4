/**
 * Builds the syntax tree of a template.
 *
 * @module
 */
import { ExpressionParser } from "./expressions.ts";
import { tokenize } from "./lexer.ts";
import { Fault } from "./meter.ts";
import type { Expression, Signature, Statement, Target } from "./nodes.ts";

/** Statements that need other templates or change how output is written. */
const REFUSED = new Map([
  ["autoescape", "chat templates are not HTML"],
  ["extends", "a chat template is one file"],
  ["from", "a chat template is one file"],
  ["import", "a chat template is one file"],
  ["include", "a chat template is one file"],
]);

class Parser extends ExpressionParser {
  /** How many loops surround the statement, within its macro. */
  #loops = 0;

  readonly #statements: Readonly<
    Record<string, (line: number) => Statement | Statement[]>
  > = {
    block: (line) => this.#block(line),
    break: (line) => this.#jump("break", line),
    call: (line) => this.#callBlock(line),
    continue: (line) => this.#jump("continue", line),
    do: (line) => ({ type: "do", line, value: this.tuple() }),
    filter: (line) => ({
      type: "filterBlock",
      line,
      filter: this.filter(null, true),
      body: this.#body("endfilter"),
    }),
    for: (line) => this.#for(line),
    generation: (line) => ({
      type: "scope",
      line,
      body: this.#apart(() => this.#body("endgeneration")),
    }),
    if: (line) => this.#if(line),
    macro: (line) => this.#macro(line),
    print: (line) => this.#print(line),
    set: (line) => this.#set(line),
    with: (line) => this.#with(line),
  };

  template(): Statement[] {
    const body = this.#until([]);
    if (this.token.type !== "end") this.#unknown();
    return body;
  }

  /** Statements until one of the named tags, which becomes the current token. */
  #until(ends: readonly string[]): Statement[] {
    const body: Statement[] = [];
    for (;;) {
      const { type, value, line } = this.token;
      if (type === "end") return body;
      this.advance();
      if (type === "text") body.push({ type: "text", line, text: value });
      else if (type === "{{") {
        body.push({ type: "print", line, value: this.tuple() });
        this.expect("}}");
      } else {
        if (this.token.type === "name" && ends.includes(this.token.value)) {
          return body;
        }
        body.push(...[this.#statement()].flat());
        this.expect("%}");
      }
    }
  }

  /** The body of a statement, from the end of its tag to the tag named `ends`. */
  #bodyUntil(...ends: string[]): Statement[] {
    this.skip(":");
    this.expect("%}");
    const body = this.nested(() => this.#until(ends));
    if (this.token.type === "end") {
      const all = ends.map((end) => `'${end}'`).join(" or ");
      this.fail(`unexpected end of template, expected ${all}`);
    }
    return body;
  }

  #body(end: string): Statement[] {
    const body = this.#bodyUntil(end);
    this.advance();
    return body;
  }

  #unknown(): never {
    this.fail(`unknown tag '${this.token.value}'`);
  }

  #statement(): Statement | Statement[] {
    const { type, value, line } = this.token;
    if (type !== "name") this.fail("tag name expected");
    const reason = REFUSED.get(value);
    if (reason) this.fail(`the tag '${value}' is not supported, ${reason}`);
    if (!Object.hasOwn(this.#statements, value)) this.#unknown();
    this.advance();
    return this.#statements[value](line);
  }

  /** Parses what runs outside of the loops around it: break does not reach them. */
  #apart<T>(parse: () => T): T {
    const loops = this.#loops;
    this.#loops = 0;
    const result = parse();
    this.#loops = loops;
    return result;
  }

  #jump(type: "break" | "continue", line: number): Statement {
    if (this.#loops === 0) this.fail(`'${type}' outside loop`);
    return { type, line };
  }

  #block(line: number): Statement {
    const name = this.expectName();
    while (this.skipName("scoped") || this.skipName("required"));
    const body = this.#apart(() => this.#body("endblock"));
    this.skipName(name);
    return { type: "scope", line, body };
  }

  #for(line: number): Statement {
    const target = this.#targets("in");
    this.expectName("in");
    const items = this.tuple(false, "recursive");
    const test = this.skipName("if") ? this.expression() : null;
    const recursive = this.skipName("recursive");
    this.#loops++;
    const body = this.#bodyUntil("endfor", "else");
    this.#loops--;
    const otherwise = this.#next() === "else" ? this.#body("endfor") : [];
    return {
      type: "for",
      line,
      target,
      items,
      test,
      recursive,
      body,
      otherwise,
    };
  }

  /** Takes the tag that ended a body. */
  #next(): string {
    const { value } = this.token;
    this.advance();
    return value;
  }

  #if(line: number): Statement {
    const cases: { test: Expression; body: Statement[] }[] = [];
    for (;;) {
      const test = this.tuple(false);
      cases.push({ test, body: this.#bodyUntil("elif", "else", "endif") });
      const end = this.#next();
      if (end === "elif") continue;
      const otherwise = end === "else" ? this.#body("endif") : [];
      return { type: "if", line, cases, otherwise };
    }
  }

  #print(line: number): Statement[] {
    const prints: Statement[] = [];
    while (this.token.type !== "%}") {
      if (prints.length > 0) this.expect(",");
      prints.push({ type: "print", line, value: this.expression() });
    }
    return prints;
  }

  #set(line: number): Statement {
    const target = this.#targets();
    if (this.skip("=")) {
      return { type: "set", line, target, value: this.tuple() };
    }
    const filter = this.isOperator("|") ? this.filter(null, false) : null;
    const body = this.#apart(() => this.#body("endset"));
    return { type: "setBlock", line, target, filter, body };
  }

  #with(line: number): Statement {
    const values: { target: Target; value: Expression }[] = [];
    while (this.token.type !== "%}") {
      if (values.length > 0) this.expect(",");
      const target = this.#targets();
      this.expect("=");
      values.push({ target, value: this.expression() });
    }
    return { type: "with", line, values, body: this.#body("endwith") };
  }

  #parameters(): Signature["parameters"] {
    const parameters: Signature["parameters"] = [];
    this.expect("(");
    while (!this.isOperator(")")) {
      if (parameters.length > 0) this.expect(",");
      const name = this.expectName();
      const initial = this.skip("=") ? this.expression() : null;
      if (!initial && parameters.at(-1)?.initial) {
        this.fail("non-default argument follows default argument");
      }
      parameters.push({ name, initial });
    }
    this.expect(")");
    return parameters;
  }

  /** Parses a macro's body and notes which special names it uses. */
  #signature(parameters: Signature["parameters"], end: string): Signature {
    const [body, names] = this.namesIn(() =>
      this.#apart(() => this.#body(end))
    );
    const uses = new Set(
      ["caller", "kwargs", "varargs"].filter((name) =>
        names.has(name) &&
        !parameters.some((parameter) => parameter.name === name)
      ),
    );
    return { parameters, body, uses };
  }

  #macro(line: number): Statement {
    const name = this.expectName();
    const parameters = this.#parameters();
    return {
      type: "macro",
      line,
      name,
      ...this.#signature(parameters, "endmacro"),
    };
  }

  #callBlock(line: number): Statement {
    const parameters = this.isOperator("(") ? this.#parameters() : [];
    const call = this.expression();
    if (call.type !== "call") this.fail("expected call");
    return {
      type: "callBlock",
      line,
      call,
      ...this.#signature(parameters, "endcall"),
    };
  }

  /** What is assigned to: names and members, also several. */
  #targets(end?: string): Target {
    const { line } = this.token;
    const items: Target[] = [];
    let several = false;
    while (!this.isTupleEnd(end)) {
      items.push(this.#target());
      if (!this.skip(",")) break;
      several = true;
    }
    if (items.length === 0) this.fail("expected a name to assign to");
    return several ? { type: "targets", line, items } : items[0];
  }

  #target(): Target {
    const { line } = this.token;
    if (this.skip("(")) {
      const target = this.#targets();
      this.expect(")");
      return target;
    }
    const name = this.expectName();
    if (/^(true|false|none|True|False|None)$/.test(name)) {
      this.fail(`can't assign to '${name}'`);
    }
    return this.skip(".")
      ? {
        type: "member",
        line,
        object: this.use(name),
        name: this.expectName(),
      }
      : { type: "name", line, name };
  }
}

/** Parses a template. */
export function parseTemplate(source: string): Statement[] {
  const parser = new Parser(tokenize(source));
  try {
    return parser.template();
  } catch (error) {
    throw error instanceof Fault ? error.at(parser.token.line) : error;
  }
}
