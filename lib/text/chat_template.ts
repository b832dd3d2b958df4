/**
 * Renders conversations in the text format that a chat checkpoint was trained on.
 *
 * @module
 */
import { errorText } from "../errors.ts";
import { compileTemplate, TemplateError } from "./jinja/mod.ts";

/** A function call that the assistant made. */
export interface ToolCall {
  /** Only functions can be called. */
  type?: "function";
  /** Matches the call to the message with its result. */
  id?: string;
  /** The function and its arguments. */
  function: {
    /** The name of the function. */
    name: string;
    /** An object, or its JSON. */
    arguments: Record<string, unknown> | string;
  };
}

/** One turn of a conversation, as in the OpenAI and Hugging Face chat formats. */
export interface Message {
  /** The speaker; `tool` messages carry the result of a call. */
  role: "system" | "user" | "assistant" | "tool";
  /** The text of the turn. */
  content: string;
  /**
   * The assistant's reasoning before `content`. Qwen3 also accepts it in `<think>` tags
   * in `content`.
   */
  reasoning_content?: string;
  /** Functions that the assistant called in this turn. */
  tool_calls?: ToolCall[];
}

/** A function that the assistant may call; `parameters` is a JSON Schema. */
export interface Tool {
  /** Only functions can be called. */
  type: "function";
  /** The description of the function that the assistant sees. */
  function: {
    /** The name it is called by. */
    name: string;
    /** What the function does, in words for the assistant. */
    description?: string;
    /** A JSON Schema of its arguments. */
    parameters?: Record<string, unknown>;
  };
}

/** Template variables other than the messages. */
export interface ChatOptions {
  /** Appends the header of the assistant's turn. Default: true. */
  addGenerationPrompt?: boolean;
  /** Sets `enable_thinking`, which Qwen3's template reads; if absent, the template decides. */
  thinking?: boolean;
  tools?: Tool[];
  /** Any other variables (`bos_token`, …). */
  variables?: Record<string, unknown>;
}

/**
 * Renders `messages` with a checkpoint's chat template. Encode the result without
 * adding special tokens, because the template writes them.
 *
 * ```ts
 * const template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
 * const text = renderChat(template, [{ role: "user", content: "Hi" }]);
 * console.assert(text === "user: Hi\n");
 * ```
 *
 * @throws {Error} if there are no messages, or the template is broken or rejects them.
 */
export function renderChat(
  template: string,
  messages: readonly Message[],
  options: ChatOptions = {},
): string {
  if (messages.length === 0) {
    throw new Error(
      "Cannot render a chat: it has 0 messages, must have at least one",
    );
  }
  const { addGenerationPrompt = true, thinking, tools, variables } = options;
  try {
    return compileTemplate(template).render({
      ...variables,
      messages,
      add_generation_prompt: addGenerationPrompt,
      // Templates test whether a variable is defined, so do not define it as undefined.
      ...(tools && { tools }),
      ...(thinking !== undefined && { enable_thinking: thinking }),
    });
  } catch (error) {
    const reason = error instanceof TemplateError
      ? error.reason
      : errorText(error);
    throw new Error(`Cannot render a chat with its template: ${reason}`, {
      cause: error,
    });
  }
}
