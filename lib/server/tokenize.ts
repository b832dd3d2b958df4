/**
 * `/tokenize`: the token ids of a text or a conversation.
 *
 * @module
 */
import { encodePrompt } from "../text/prompt.ts";
import { readMessages, readTemplate, readTools } from "./conversation.ts";
import { refusing, required } from "./errors.ts";
import { Fields } from "./fields.ts";
import { checkModel } from "./parameters.ts";
import { type Call, sourceOf } from "./service.ts";

/** Answers a request. */
export function tokenize({ service, body }: Call): Response {
  const fields = new Fields(body);
  checkModel(fields, service);
  const prompt = fields.text("prompt");
  const special = fields.flag("add_special_tokens") ?? true;
  let tokens: number[];
  if (prompt !== undefined) {
    fields.end();
    tokens = refusing(
      "prompt",
      () =>
        service.qwen.tokenizer.encode(prompt, { addSpecialTokens: special }),
    );
  } else if (fields.get("messages") !== undefined) {
    const messages = readMessages(fields);
    const options = readTemplate(fields, service);
    const { tools, templateVariables } = readTools(
      fields,
      fields.list("tools") ?? [],
    );
    fields.end();
    tokens = refusing("messages", () =>
      encodePrompt(
        messages,
        {
          ...options,
          tools,
          templateVariables: {
            ...options.templateVariables,
            ...templateVariables,
          },
        },
        sourceOf(service),
      ).tokenIds);
  } else throw required("prompt");
  return Response.json({
    count: tokens.length,
    max_model_len: service.qwen.context,
    tokens,
  });
}
