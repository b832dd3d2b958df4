/**
 * Renders Jinja2 templates as Python does for chat templates: in the immutable sandbox, with
 * `trim_blocks`, `lstrip_blocks`, loop controls and the additions of Hugging Face transformers
 * (`tojson` without HTML escapes, `raise_exception`, `strftime_now`, `{% generation %}`).
 *
 * Source: https://jinja.palletsprojects.com and the chat templates of transformers.
 *
 * @module
 */
import { convertVariables } from "./convert.ts";
import { execute, Output } from "./execute.ts";
import { GLOBALS } from "./globals.ts";
import { Fault } from "./meter.ts";
import type { Statement } from "./nodes.ts";
import { parseTemplate } from "./parser.ts";
import { TESTS } from "./predicates.ts";
import { Scope } from "./scope.ts";
import { SEQUENCE_FILTERS } from "./sequence_filters.ts";
import { TEXT_FILTERS } from "./text_filters.ts";
import { type Builtin, counted, type RenderOptions, Run } from "./values.ts";

export type { RenderOptions } from "./values.ts";

/** Filters that accept a list as it is, so that a loop over it may use them. */
const GO_THROUGH_NOTHING = ["count", "length"];

const FILTERS: ReadonlyMap<string, Builtin> = new Map(
  Object.entries({ ...TEXT_FILTERS, ...SEQUENCE_FILTERS }).map((
    [name, filter],
  ) => [name, GO_THROUGH_NOTHING.includes(name) ? filter : counted(filter)]),
);

/** A template that is broken, refuses its variables, or costs too much. */
export class TemplateError extends Error {
  /** Always `TemplateError`. */
  override name = "TemplateError";

  /** `reason` begins with the line, if there is one. */
  constructor(action: string, readonly reason: string, cause: unknown) {
    super(`Cannot ${action}: ${reason}`, { cause });
  }

  /** Whether a bound on time or size ended it. */
  get exceeds(): boolean {
    return this.cause instanceof Fault && this.cause.exceeds;
  }
}

/** A template that was parsed. */
export interface Template {
  /**
   * Returns what the template prints. Plain objects and Maps become dicts, integers `int`,
   * other numbers `float`.
   *
   * @throws {TemplateError} if the template fails or exceeds a bound.
   */
  render(
    variables: Readonly<Record<string, unknown>>,
    options?: RenderOptions,
  ): string;
}

/** Turns what `body` throws into an error with one line. */
function guarded<T>(action: string, body: () => T): T {
  try {
    return body();
  } catch (error) {
    if (error instanceof Fault) {
      const line = error.line === undefined ? "" : `line ${error.line}: `;
      const reason = error.message.replaceAll(/\s+/g, " ").trim();
      throw new TemplateError(action, line + reason, error);
    }
    // The stack may be nearly full, or memory short, before the template begins.
    if (error instanceof RangeError) {
      const reason = `it nests too deeply or is too large (${error.message})`;
      throw new TemplateError(action, reason, error);
    }
    throw error;
  }
}

/**
 * Parses a template; the result renders any number of times.
 *
 * ```ts
 * import { compileTemplate } from "./mod.ts";
 *
 * const template = compileTemplate("{% for x in xs %}{{ x }};{% endfor %}");
 * console.assert(template.render({ xs: [1, 0.5, true] }) === "1;0.5;True;");
 * ```
 *
 * @throws {TemplateError} if the template is malformed; the reason begins with its line.
 */
export function compileTemplate(source: string): Template {
  const body = guarded("parse a template", () => parseTemplate(source));
  return {
    render: (variables, options = {}) =>
      guarded("render a template", () => renderBody(body, variables, options)),
  };
}

function renderBody(
  body: readonly Statement[],
  variables: Readonly<Record<string, unknown>>,
  options: RenderOptions,
): string {
  const run = new Run(FILTERS, TESTS, options);
  const globals = new Scope();
  for (const [name, value] of GLOBALS) globals.set(name, value);
  for (const [name, value] of convertVariables(variables, run)) {
    globals.set(name, value);
  }
  const output = new Output();
  execute(body, { scope: new Scope(globals), run, output });
  return output.text();
}
