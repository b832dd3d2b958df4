/**
 * The syntax tree of a template.
 *
 * @module
 */
import type { Value } from "./values.ts";

/** What every node has. */
interface At {
  /** The line of the template, from 1. */
  line: number;
}

/** The arguments of a call, filter or test. */
export interface Arguments {
  args: Expression[];
  named: { name: string; value: Expression }[];
  /** What follows `*` and `**`. */
  list?: Expression;
  map?: Expression;
}

/** A filter or test in use; a block's filter has no value of its own. */
export interface Applied extends At, Arguments {
  type: "filter" | "test";
  name: string;
  value: Expression | null;
}

/** Expressions by their type. */
export interface Expressions {
  constant: At & { type: "constant"; value: Value };
  name: At & { type: "name"; name: string };
  attribute: At & { type: "attribute"; object: Expression; name: string };
  item: At & { type: "item"; object: Expression; key: Expression };
  slice: At & {
    type: "slice";
    object: Expression;
    bounds: (Expression | null)[];
  };
  call: At & Arguments & { type: "call"; callee: Expression };
  filter: Applied & { type: "filter" };
  test: Applied & { type: "test" };
  list: At & { type: "list"; items: Expression[] };
  tuple: At & { type: "tuple"; items: Expression[] };
  dict: At & { type: "dict"; pairs: [Expression, Expression][] };
  concat: At & { type: "concat"; parts: Expression[] };
  binary: At & {
    type: "binary";
    operator: string;
    left: Expression;
    right: Expression;
  };
  unary: At & { type: "unary"; operator: string; value: Expression };
  not: At & { type: "not"; value: Expression };
  and: At & { type: "and"; left: Expression; right: Expression };
  or: At & { type: "or"; left: Expression; right: Expression };
  compare: At & {
    type: "compare";
    first: Expression;
    rest: { operator: string; value: Expression }[];
  };
  choice: At & {
    type: "choice";
    test: Expression;
    yes: Expression;
    no: Expression | null;
  };
}

/** Any expression. */
export type Expression = Expressions[keyof Expressions];

/** What can be assigned to. */
export type Target =
  | (At & { type: "name"; name: string })
  | (At & { type: "member"; object: string; name: string })
  | (At & { type: "targets"; items: Target[] });

/** The parameters and body of a macro or call block. */
export interface Signature {
  parameters: { name: string; initial: Expression | null }[];
  body: Statement[];
  /** Which of `caller`, `kwargs` and `varargs` the body uses. */
  uses: ReadonlySet<string>;
}

/** Statements by their type. */
export interface Statements {
  text: At & { type: "text"; text: string };
  print: At & { type: "print"; value: Expression };
  if: At & {
    type: "if";
    cases: { test: Expression; body: Statement[] }[];
    otherwise: Statement[];
  };
  for: At & {
    type: "for";
    target: Target;
    items: Expression;
    test: Expression | null;
    recursive: boolean;
    body: Statement[];
    otherwise: Statement[];
  };
  set: At & { type: "set"; target: Target; value: Expression };
  setBlock: At & {
    type: "setBlock";
    target: Target;
    filter: Expression | null;
    body: Statement[];
  };
  with: At & {
    type: "with";
    values: { target: Target; value: Expression }[];
    body: Statement[];
  };
  macro: At & Signature & { type: "macro"; name: string };
  callBlock: At & Signature & {
    type: "callBlock";
    call: Expressions["call"];
  };
  filterBlock: At & {
    type: "filterBlock";
    filter: Expression;
    body: Statement[];
  };
  /** A body with its own names: `block` and `generation`. */
  scope: At & { type: "scope"; body: Statement[] };
  do: At & { type: "do"; value: Expression };
  break: At & { type: "break" };
  continue: At & { type: "continue" };
}

/** Any statement. */
export type Statement = Statements[keyof Statements];
