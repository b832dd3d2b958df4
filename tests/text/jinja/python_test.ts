/**
 * Expressions and templates against what Python's Jinja2 prints, which
 * tests/fixtures/chat/make_jinja.py wrote down.
 */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { compileTemplate, TemplateError } from "../../../lib/text/jinja/mod.ts";

type Variables = Record<string, unknown>;

interface Case {
  template: string;
  /** Variables, or the name of those that several cases share. */
  variables?: Variables | "chat";
}

interface Fixture {
  variables: Variables;
  chat: Variables;
  expressions: [expression: string, expected: string][];
  templates: (Case & { expected: string })[];
  errors: (Case & { error: string })[];
}

const fixture: Fixture = JSON.parse(
  await Deno.readTextFile(
    new URL("../../fixtures/chat/jinja.json", import.meta.url),
  ),
);

function render({ template, variables = {} }: Case): string {
  return compileTemplate(template).render(
    variables === "chat" ? fixture.chat : variables,
    { now: new Date(2024, 6, 26, 9, 5, 3) },
  );
}

Deno.test("expressions have the values that Python gives them", () => {
  const { expressions, variables } = fixture;
  assert(expressions.length > 600);
  for (const [expression, expected] of expressions) {
    const template = `{{ ${expression} }}`;
    assertEquals(render({ template, variables }), expected, expression);
  }
});

Deno.test("templates print what they print in Python", () => {
  assert(fixture.templates.length > 300);
  for (const { expected, ...test } of fixture.templates) {
    assertEquals(render(test), expected, test.template);
  }
});

Deno.test("what Python refuses is refused with its line", () => {
  assert(fixture.errors.length > 60);
  for (const { error, ...test } of fixture.errors) {
    const { message } = assertThrows(
      () => render(test),
      TemplateError,
      "line 1: ",
      `${test.template}: ${error}`,
    );
    assert(!message.includes("\n"), message);
  }
});
