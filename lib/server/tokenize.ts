/**
 * `/tokenize`: the token ids of a text or a conversation.
 *
 * @module
 */
import { encodePromptInParts } from "../text/prompt.ts";
import { readMessages, readTemplate, readTools } from "./conversation.ts";
import { refusing, required } from "./errors.ts";
import { Fields } from "./fields.ts";
import { checkModel } from "./parameters.ts";
import { inTurns } from "./rests.ts";
import { type Call, sourceOf } from "./service.ts";

/** Answers a request. */
export async function tokenize(
  { service, body, signal }: Call,
): Promise<Response> {
  const fields = new Fields(body);
  checkModel(fields, service);
  const prompt = fields.text("prompt");
  const special = fields.flag("add_special_tokens") ?? true;
  let tokens: number[];
  if (prompt !== undefined) {
    fields.end();
    const tokenizer = refusing("prompt", () => service.qwen.tokenizer);
    const parts = tokenizer.encodeInParts(prompt, {
      addSpecialTokens: special,
    });
    tokens = await inTurns("prompt", parts, signal);
  } else if (fields.get("messages") !== undefined) {
    const messages = readMessages(fields);
    const options = readTemplate(fields, service);
    const { tools, templateVariables } = readTools(
      fields,
      fields.list("tools") ?? [],
    );
    fields.end();
    const parts = encodePromptInParts(messages, {
      ...options,
      tools,
      templateVariables: {
        ...options.templateVariables,
        ...templateVariables,
      },
    }, sourceOf(service));
    ({ tokenIds: tokens } = await inTurns("messages", parts, signal));
  } else throw required("prompt");
  return Response.json({
    count: tokens.length,
    max_model_len: service.qwen.context,
    tokens,
  });
}
