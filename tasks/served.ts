/**
 * Shared by the tasks that answer requests: the name of the model, and its chat template.
 *
 * @module
 */
import { errorText } from "../lib/errors.ts";
import { compileTemplate } from "../lib/text/jinja/mod.ts";
import type { Engine, EngineOptions, Qwen3 } from "../mod.ts";
import type { Flags, FlagTable } from "./flags.ts";

/** The flag of tasks that answer conversations. */
export const TEMPLATE_FLAG: FlagTable = {
  "chat-template": [
    "text",
    "file of a chat template (Jinja) to use",
    "the checkpoint's; the story model has one of its own",
  ],
};

/** The flags of tasks that generate several texts at once. */
export const ENGINE_FLAGS: FlagTable = {
  "slots": ["number", "texts that are generated at once, at most 64", 8],
  "cache-tokens": [
    "number",
    "tokens whose keys and values are kept, of all texts and earlier prompts",
    "slots times context, or less if that takes much memory",
  ],
};

/** Reads {@linkcode ENGINE_FLAGS}. */
export function engineOptions(flags: Flags): EngineOptions {
  return {
    slots: flags.whole("slots", 1, 64),
    cacheTokens: flags.whole("cache-tokens", 1),
  };
}

/** Starts an engine, unless the model is only for vectors. */
export async function startEngine(
  qwen: Qwen3,
  options: EngineOptions,
): Promise<Engine | undefined> {
  return qwen.generates ? await qwen.engine(options) : undefined;
}

/** Reads {@linkcode TEMPLATE_FLAG}. */
export async function readTemplateFile(
  flags: Flags,
): Promise<string | undefined> {
  const file = flags.text("chat-template");
  if (file === undefined) return undefined;
  try {
    const bytes = await Deno.readFile(file);
    const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    compileTemplate(text); // rather than an error for each request
    return text;
  } catch (error) {
    throw new Error(
      `Cannot read the chat template ${file}: ${errorText(error)}`,
    );
  }
}

/** What requests call a model: the end of a path or URL, the id of a repository. */
export function nameOf(model = "stories-3m"): string {
  const isRepository = /^[\w.-]+\/[\w.-]+(?:[@:].*)?$/.test(model);
  if (isRepository || model.startsWith("synthetic:")) return model;
  const [name] = model.replace(/[?#].*/, "").replace(/[/\\]+$/, "")
    .split(/[/\\]/).slice(-1);
  return name.replace(/\.gguf$/i, "") || "model";
}
