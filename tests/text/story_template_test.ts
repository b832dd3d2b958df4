/** The template that makes a story of a conversation. */
import { assertEquals, assertThrows } from "@std/assert";
import { loadQwen3, type Message, renderChat } from "../../mod.ts";
import { STORY_TEMPLATE } from "../../lib/text/story_template.ts";

const rendered = (messages: Message[]) =>
  renderChat(STORY_TEMPLATE, messages, { variables: { bos_token: "^" } });

Deno.test("a reply continues what the user wrote, and the next message is a paragraph", () => {
  const first: Message[] = [{ role: "user", content: "Once upon " }];
  assertEquals(rendered(first), "^Once upon");
  const system: Message = { role: "system", content: "A tale.\n" };
  assertEquals(rendered([system, ...first]), "^A tale.\n\nOnce upon");
  const told: Message[] = [
    ...first,
    { role: "assistant", content: " a time." },
  ];
  assertEquals(rendered(told), "^Once upon a time.\n\n");
  const next: Message = { role: "user", content: "She" };
  assertEquals(rendered([...told, next]), "^Once upon a time.\n\nShe");
  assertEquals(rendered([next, ...first]), "^She\n\nOnce upon");
});

Deno.test("a story has no place for functions and reasoning", () => {
  const user: Message = { role: "user", content: "Hi" };
  assertThrows(
    () => rendered([user, { role: "tool", content: "3" }]),
    Error,
    "message 1 (tool) has content",
  );
  const thought: Message = {
    role: "assistant",
    content: "Hm.",
    reasoning_content: "Hm?",
  };
  assertThrows(() => rendered([user, thought]), Error, "reasoning_content");
});

Deno.test("the story model has it for chats, and generate does not use it", async () => {
  using qwen = await loadQwen3(undefined, { device: "cpu" });
  assertEquals(qwen.chatTemplate, STORY_TEMPLATE);
  const options = { temperature: 0, maxTokens: 4 };
  const plain = await qwen.generate("Once upon a time", options);
  const chatTemplate = qwen.chatTemplate!;
  const messages: Message[] = [{ role: "user", content: "Once upon a time" }];
  assertThrows(
    () => qwen.generate(messages, options),
    Error,
    "messages need a chat template",
  );
  const chat = await qwen.generate(messages, { ...options, chatTemplate });
  assertEquals(chat.tokenIds, plain.tokenIds); // both begin with <|endoftext|>
});
