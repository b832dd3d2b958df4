import { assert, assertEquals, assertThrows } from "@std/assert";
import { compileTemplate, TemplateError } from "../../../lib/text/jinja/mod.ts";

function render(template: string, variables: Record<string, unknown> = {}) {
  return compileTemplate(template).render(variables);
}

Deno.test("a compiled template renders many times and remembers nothing", () => {
  const template = compileTemplate(
    "{% set ns = namespace(n=n) %}{% set ns.n = ns.n + 1 %}" +
      "{% macro f() %}{{ ns.n }}{% endmacro %}{{ f() }}{{ later }}{% set later = 1 %}",
  );
  assertEquals(template.render({ n: 1 }), "2");
  assertEquals(template.render({ n: 5 }), "6");
  assertEquals(template.render({ n: 1, later: "x" }), "2x");
});

Deno.test("JavaScript's values become Python's", () => {
  const variables = {
    a: [1, 1.5, -0, 2 ** 53, 1e21, 2n ** 70n, true, null, undefined, "é"],
    map: new Map<unknown, unknown>([["2", "b"], [1, "a"], ["x", undefined]]),
    set: new Set([1, 2]),
    date: new Date(0),
    object: { b: { c: undefined, d: [] }, 2: "two", 1: "one" },
    nothing: undefined,
  };
  assertEquals(
    render("{{ a }}", variables),
    "[1, 1.5, 0, 9007199254740992, 1e+21, 1180591620717411303424, True, None, None, 'é']",
  );
  assertEquals(
    render("{{ map }}{{ map[1] }}", variables),
    "{'2': 'b', 1: 'a'}a",
  );
  assertEquals(
    render("{{ set }}{{ date }}", variables),
    "[1, 2]1970-01-01T00:00:00.000Z",
  );
  assertEquals(
    render("{{ object | tojson }}", variables),
    '{"1": "one", "2": "two", "b": {"d": []}}',
  );
  assertEquals(render("{{ nothing is defined }}", variables), "False");
});

Deno.test("values without a Python equivalent are refused by name", () => {
  assertThrows(
    () => render("", { tools: [{ run: () => 1 }] }),
    TemplateError,
    "Cannot render a template: the variable tools[0].run is a function, must be " +
      "a string, number, boolean, null, array, Map or object",
  );
});

Deno.test("an object that holds itself ends at the depth bound", () => {
  const loop: Record<string, unknown> = { name: "x" };
  loop.self = loop;
  assertEquals(render("{{ loop.self.self.name }}", { loop }), "x");
  for (const template of ["{{ loop }}", "{{ loop | tojson }}"]) {
    assertThrows(
      () => render(template, { loop }),
      TemplateError,
      "line 1: it nests 1,001 levels deep, must be at most 1,000",
    );
  }
});

Deno.test("errors name the line where they arise", () => {
  const cases: readonly (readonly [template: string, message: string])[] = [
    ["\n\n{{ x.y }}", "Cannot render a template: line 3: 'x' is undefined"],
    [
      "{% if a\n%}{{ [1,\n2,\n'a' + 1] }}{% endif %}",
      "line 4: can only concatenate str",
    ],
    [
      "{% macro f() %}\n{{ 1 / 0 }}{% endmacro %}\n\n{{ f() }}",
      "line 2: division by zero",
    ],
    [
      "a\n{# b\n c #}\n{% set x = [\n1\n%}",
      "Cannot parse a template: line 6: unexpected '}', expected ']'",
    ],
    ["{% for x in y %}\n\n{% endif %}", "line 3: unknown tag 'endif'"],
    [
      "\n{% if x %}\n",
      "line 2: unexpected end of template, expected 'elif' or 'else' or 'endif'",
    ],
    [
      "\n{% include 'a' %}",
      "line 2: the tag 'include' is not supported, a chat template is one file",
    ],
    [
      "\n{{ raise_exception('a\n b') }}",
      "Cannot render a template: line 2: a b",
    ],
    ["\n{{ 'a' | foo }}", "line 2: No filter named 'foo'."],
    [
      "{{ [].append(1) }}",
      "line 1: access to attribute 'append' of 'list' object is unsafe.",
    ],
  ];
  for (const [template, message] of cases) {
    const error = assertThrows(
      () => render(template, { a: 1, y: [1] }),
      TemplateError,
      message,
    );
    assert(error.message.endsWith(error.reason));
  }
});

Deno.test("strftime_now formats the time it is given, or the present", () => {
  const template = compileTemplate("{{ strftime_now('%Y-%m-%d') }}");
  assertEquals(
    template.render({}, { now: new Date(2031, 0, 2) }),
    "2031-01-02",
  );
  assert(/^20\d\d-\d\d-\d\d$/.test(template.render({})));
});

Deno.test("variables hide functions of the same name", () => {
  assertEquals(render("{{ range }}{{ dict }}", { range: "r", dict: 1 }), "r1");
});
