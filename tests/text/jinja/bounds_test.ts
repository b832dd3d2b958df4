/** Templates that loop, recurse, print or grow without end, and what stops them. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { compileTemplate, TemplateError } from "../../../lib/text/jinja/mod.ts";
import { slowTest } from "../../support/quick.ts";

const STEPS =
  "it takes 20,000,001 steps (is a loop endless?), must be at most 20,000,000";
const DEPTH = "it nests 1,001 levels deep, must be at most 1,000";
const WORK = "must be at most 268,435,456";
const TEXT = "must be at most 67,108,864";
const BITS = "must be at most 65,536";
const NESTING = "the template nests 101 levels deep, must be at most 100";

/** A template that applies `change` to `ns.x` very often. */
function repeated(first: string, change: string, then = ""): string {
  return `{% set ns = namespace(x=${first}) %}{% for i in range(100000) %}` +
    `{% set ns.x = ${change} %}{% endfor %}${then}`;
}

const LOOPS = "{% for i in range(100000) %}{% for j in range(100000) %}";

const CASES: Readonly<
  Record<string, readonly (readonly [template: string, reason: string])[]>
> = {
  loops: [
    [`${LOOPS}{% endfor %}{% endfor %}`, STEPS],
    [
      `${LOOPS}{% if j > i %}{% set x = j %}{% endif %}{% endfor %}{% endfor %}`,
      STEPS,
    ],
    ["{% for c in 'x' * 60000000 %}{{ c }}{% endfor %}", STEPS],
    [
      "{{ range(100001) }}",
      "range() has 100001 items, must have at most 100000",
    ],
    ["{{ range(0, 10 ** 30) }}", "must have at most 100000"],
  ],
  recursion: [
    ["{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", DEPTH],
    ["{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}", DEPTH],
    [repeated("[1]", "[ns.x]", "{{ ns.x }}"), DEPTH],
    [repeated("[1]", "[ns.x]", "{{ ns.x | tojson }}"), DEPTH],
    [
      repeated("[1]", "[ns.x]", repeated("[1]", "[ns.x]", "{{ ns.x == x }}"))
        .replace("{% endfor %}", "{% endfor %}{% set x = ns.x %}"),
      DEPTH,
    ],
    [repeated("(1,)", "(ns.x,)", "{{ {ns.x: 1} }}"), DEPTH],
    [`{{ 1${" + 1".repeat(5000)} }}`, DEPTH],
    [`{{ 'a'${" | upper".repeat(5000)} }}`, DEPTH],
  ],
  size: [
    [
      `${LOOPS}{{ 'x' * 1000 }}{% endfor %}{% endfor %}`,
      "it prints 67,109,000 characters, " + TEXT,
    ],
    [repeated("'x'", "ns.x + ns.x"), TEXT],
    [repeated("'x'", "ns.x ~ ns.x"), TEXT],
    [repeated("[1]", "ns.x + ns.x"), WORK],
    [
      repeated("[1]", "[ns.x, ns.x]", "{{ ns.x }}").replace("100000", "60"),
      WORK,
    ],
    [
      repeated("[1]", "[ns.x, ns.x]", "{{ ns.x | tojson }}").replace(
        "100000",
        "60",
      ),
      WORK,
    ],
    [
      repeated("(1,)", "(ns.x, ns.x)", "{{ {ns.x: 1} }}").replace(
        "100000",
        "60",
      ),
      WORK,
    ],
    [repeated("3", "ns.x * ns.x"), BITS],
    ["{{ 10 ** 100000000 }}", BITS],
    ["{{ 10 ** (10 ** 100) }}", BITS],
    ["{{ 'x' * 10000000000 }}", TEXT],
    ["{{ [1] * 10000000000 }}", WORK],
    ["{{ 'x' | center(10000000000) }}", TEXT],
    ["{{ 'x'.ljust(10000000000) }}", TEXT],
    ["{{ 'x'.zfill(10000000000) }}", TEXT],
    ["{{ '%10000000000d' % 1 }}", TEXT],
    ["{{ '{:10000000000}'.format(1) }}", TEXT],
    ["{{ '%.100000000f' % 1 }}", "must be at most 4,096"],
    ["{{ '%.100000000d' % 1 }}", "must be at most 4,096"],
    ["{{ ('a\n' * 100000) | indent(1000000) }}", TEXT],
    ["{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}", TEXT],
    ["{{ (['a' * 1000000] * 1000) | join }}", WORK],
    ["{{ (['a' * 60000000] * 1000) | string }}", WORK],
    ["{{ [[1]] | tojson(indent=10000000000) }}", TEXT],
    ["{{ ('\t' * 100000).expandtabs(1000000) }}", WORK],
    ["{{ [1] | batch(10000000000, 1) | list }}", WORK],
    ["{{ [1] | slice(10000000000, 1) | list }}", WORK],
    [
      "{% set s = 'ab' * 1000000 %}{% for i in range(100000) %}" +
      "{% set x = s | float %}{% endfor %}",
      WORK,
    ],
    [
      "{% set s = 'ab' * 1000000 %}{% for i in range(100000) %}" +
      "{% set x = s | escape %}{% endfor %}",
      WORK,
    ],
    [
      "{% set s = 'ab' * 1000000 %}{% for i in range(100000) %}" +
      "{% set x = s | length %}{% endfor %}",
      WORK,
    ],
    [
      "{% set s = 'ab' * 1000000 %}{% for i in range(100000) %}" +
      "{% set x = s ~ 'x' == s ~ 'x' %}{% endfor %}",
      WORK,
    ],
  ],
  source: [
    [`{{ ${"(".repeat(500)}1${")".repeat(500)} }}`, NESTING],
    [`{{ ${"-".repeat(50000)}1 }}`, NESTING],
    [`{{ ${"not ".repeat(50000)}1 }}`, NESTING],
    ["{% if 1 %}".repeat(500) + "{% endif %}".repeat(500), NESTING],
    [`{{ 1${" if 1 else 1".repeat(50000)} }}`, NESTING],
    [
      `{{ ${"1".repeat(5000)} }}`,
      "an integer has 5,000 digits, must be at most 4,096",
    ],
  ],
};

for (const [what, cases] of Object.entries(CASES)) {
  slowTest(`bounds on ${what} end a template with one line`, () => {
    for (const [template, reason] of cases) {
      const error = assertThrows(
        () => compileTemplate(template).render({}),
        TemplateError,
      );
      const { message } = error;
      assert(message.includes(reason), `${template.slice(0, 200)}: ${message}`);
      assert(
        /^Cannot (parse|render) a template: line 1?2?: /.test(message),
        message,
      );
      assert(!message.includes("\n") && message.length < 300, message);
    }
  });
}

Deno.test("the deepest template that is allowed fits the stack", () => {
  const nested = (depth: number) =>
    `{{ ${"(".repeat(depth)}1${")".repeat(depth)} }}`;
  assertEquals(compileTemplate(nested(98)).render({}), "1");
  assertThrows(() => compileTemplate(nested(101)), TemplateError);
  // Every call takes several levels.
  const recursive =
    "{% macro f(n) %}{% if n > 0 %}{{ n }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}";
  assert(compileTemplate(recursive).render({}).endsWith("54321"));
});

Deno.test("a large conversation stays far below the bounds", () => {
  const template = compileTemplate(
    "{% set ns = namespace(text='', n=0) %}" +
      "{% for tool in tools %}{{ tool | tojson(indent=2) }}{% endfor %}" +
      "{% for m in messages %}{% set ns.text = ns.text + m.content.strip() %}" +
      "{% for p in messages[::-1] %}{% if loop.index > 20 %}{% break %}{% endif %}{% endfor %}" +
      "{{ '<|' ~ m.role ~ '|>' + m.content.split('x')[-1] | trim }}{% endfor %}{{ ns.text | length }}",
  );
  const messages = Array.from({ length: 1000 }, (_, i) => ({
    role: i % 2 ? "assistant" : "user",
    content: `${"é😀 ".repeat(2000)}${i}`,
  }));
  const tools = Array.from({ length: 100 }, (_, i) => ({
    type: "function",
    function: { name: `f${i}`, parameters: { a: ["b".repeat(1000)] } },
  }));
  const text = template.render({ messages, tools });
  assert(text.length > 8_000_000);
  // Qwen3's template asks for the length in a loop.
  const many = compileTemplate(
    "{% for m in messages[::-1] %}{{ (messages | length) - loop.index0 }};{% endfor %}",
  ).render({ messages: Array(50_000).fill({ role: "user" }) });
  assert(many.endsWith(";2;1;"), many.slice(-20));
  assert(text.endsWith(String(1000 * 6000 + 2890)), text.slice(-20));
});
