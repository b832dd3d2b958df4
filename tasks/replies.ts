/**
 * Shared by the tasks that generate replies: the flags that say how, and files of tools and schemas.
 *
 * @module
 */
import { described, errorText } from "../lib/errors.ts";
import { checkGenerating } from "../lib/generate.ts";
import { isObject, parseJson } from "../lib/json.ts";
import { resolveSampling } from "../lib/model/sampling.ts";
import { readTools } from "../lib/text/conversation.ts";
import type { GenerateOptions, Tool } from "../mod.ts";
import type { Flags, FlagTable } from "./flags.ts";
import { CONTEXT_FLAG } from "./model.ts";

/** Flags that say how a reply is generated. */
export const REPLY_FLAGS: FlagTable = {
  ...CONTEXT_FLAG,
  "max-tokens": [
    "number",
    "maximum tokens to generate",
    "checkpoint's, else what the context has room for",
  ],
  "temperature": [
    "number",
    "0 always picks the most likely token",
    "checkpoint's, else 0, or 1 with --top-k, --top-p or --min-p",
  ],
  "top-k": [
    "number",
    "sample from the k most likely tokens; 0 for all",
    "checkpoint's, else 50",
  ],
  "top-p": [
    "number",
    "sample from the most likely tokens that add up to this probability",
    "checkpoint's, else 1",
  ],
  "min-p": [
    "number",
    "sample from tokens at least this fraction as likely as the best",
    "checkpoint's, else 0",
  ],
  "repetition-penalty": [
    "number",
    "above 1 makes tokens that already occurred less likely",
    "checkpoint's, else 1",
  ],
  "presence-penalty": [
    "number",
    "-2 to 2: above 0 makes tokens of the reply less likely",
    "0",
  ],
  "frequency-penalty": [
    "number",
    "-2 to 2: above 0 makes them less likely each time",
    "0",
  ],
  "seed": ["number", "makes the reply reproducible", "random"],
  "stop": ["texts", "stop before this text; may be repeated"],
  "ignore-eos": ["switch", "continue past the end-of-text token"],
  "system": ["text", "system message, for instruct checkpoints"],
  "think": [
    "switch",
    "let an instruct checkpoint think first; --no-think turns this off",
    "the chat template's",
  ],
  "tools": [
    "text",
    "JSON file of functions that an instruct checkpoint may call, as in OpenAI's API",
  ],
  "schema": [
    "text",
    "JSON file of a JSON schema; the reply is JSON that is valid under it",
  ],
};

/**
 * Reads {@linkcode REPLY_FLAGS}.
 *
 * @throws {Error} if an option is out of range.
 */
export async function replyOptions(flags: Flags): Promise<GenerateOptions> {
  const sampling = {
    temperature: flags.number("temperature"),
    topK: flags.number("top-k"),
    topP: flags.number("top-p"),
    minP: flags.number("min-p"),
    repetitionPenalty: flags.number("repetition-penalty"),
    presencePenalty: flags.number("presence-penalty"),
    frequencyPenalty: flags.number("frequency-penalty"),
    seed: flags.number("seed"),
  };
  resolveSampling(sampling);
  const options: GenerateOptions = {
    ...sampling,
    maxTokens: flags.whole("max-tokens", 1),
    stop: flags.texts("stop"),
    ignoreEos: flags.on("ignore-eos"),
    system: flags.text("system"),
    thinking: flags.on("think"),
  };
  const schema = flags.text("schema");
  if (schema !== undefined) options.schema = await readSchemaFile(schema);
  checkGenerating(options);
  const file = flags.text("tools");
  return file === undefined
    ? options
    : { ...options, tools: await readToolsFile(file) };
}

/** Reads a list of tools, or the `tools` of an object as in OpenAI's requests. */
export async function readToolsFile(file: string): Promise<Tool[]> {
  const cannot = `Cannot read the tools in ${file}`;
  const json = await readJsonFile(file, cannot);
  const tools = readTools(isObject(json) ? json.tools : json, cannot);
  if (tools.length > 0) return tools;
  throw new Error(`${cannot}: it lists 0 tools, must list at least one`);
}

/** Reads a JSON schema. */
async function readSchemaFile(file: string): Promise<object> {
  const cannot = `Cannot read the schema in ${file}`;
  const json = await readJsonFile(file, cannot);
  if (isObject(json)) return json;
  throw new Error(`${cannot}: it is ${described(json)}, must be an object`);
}

async function readJsonFile(file: string, cannot: string): Promise<unknown> {
  let text: string;
  try {
    text = await Deno.readTextFile(file);
  } catch (error) {
    throw new Error(`${cannot}: ${errorText(error)}`);
  }
  // Editors on Windows write a byte order mark.
  return parseJson(text.replace(/^\uFEFF/, ""), file);
}
