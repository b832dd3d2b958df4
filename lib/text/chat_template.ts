/**
 * Conversations as the text that a chat checkpoint was trained on.
 *
 * @module
 */
import { errorText } from "../errors.ts";
import { Template } from "npm:@huggingface/jinja@0.5.11";

/** A function call that the assistant made. */
export interface ToolCall {
  type?: "function";
  id?: string;
  function: {
    name: string;
    /** An object, or its JSON. */
    arguments: Record<string, unknown> | string;
  };
}

/** One turn of a conversation, as in the OpenAI and Hugging Face chat formats. */
export interface Message {
  role: "system" | "user" | "assistant" | "tool";
  content: string;
  /** What an assistant thought before `content`. Qwen3 also finds it in `<think>` tags there. */
  reasoning_content?: string;
  tool_calls?: ToolCall[];
}

/** A function that the assistant may call; `parameters` is a JSON Schema. */
export interface Tool {
  type: "function";
  function: {
    name: string;
    description?: string;
    parameters?: Record<string, unknown>;
  };
}

/** What a template is told beside the messages. */
export interface ChatOptions {
  /** Ends with the header of the assistant's turn. Default: true. */
  addGenerationPrompt?: boolean;
  /** `enable_thinking`, which Qwen3 reads; left to the template where absent. */
  thinking?: boolean;
  tools?: Tool[];
  /** Other names that a template may read (`bos_token`, …). */
  variables?: Record<string, unknown>;
}

/**
 * Renders `messages` by a checkpoint's chat template. Encode the result
 * without adding special tokens: the template wrote them.
 *
 * ```ts
 * const template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
 * const text = renderChat(template, [{ role: "user", content: "Hi" }]);
 * console.assert(text === "user: Hi\n");
 * ```
 *
 * @throws {Error} if there are no messages, or the template is broken or
 * refuses them.
 */
export function renderChat(
  template: string,
  messages: readonly Message[],
  options: ChatOptions = {},
): string {
  if (messages.length === 0) {
    throw new Error("Cannot render a chat: it has 0 messages, must have one");
  }
  const { addGenerationPrompt = true, thinking, tools, variables } = options;
  try {
    return new Template(template).render({
      ...variables,
      messages,
      add_generation_prompt: addGenerationPrompt,
      // Templates ask whether a name is defined, so absent must stay absent.
      ...(tools && { tools }),
      ...(thinking !== undefined && { enable_thinking: thinking }),
    });
  } catch (error) {
    throw new Error(
      `Cannot render a chat by its template: ${errorText(error)}`,
      { cause: error },
    );
  }
}
