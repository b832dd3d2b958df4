/**
 * Shared by the tasks that answer requests: their flags, and the model behind a server.
 *
 * @module
 */
import { errorText } from "../lib/errors.ts";
import type { Server } from "../lib/server/server.ts";
import { compileTemplate } from "../lib/text/jinja/mod.ts";
import type { EngineOptions, Qwen3Options } from "../mod.ts";
import type { Flags, FlagTable } from "./flags.ts";
import {
  CONTEXT_FLAG,
  MODEL_FLAGS,
  openModel,
  placementOf,
  sayPlacement,
} from "./model.ts";
import type { Progress } from "./progress.ts";

/** The flags of tasks that answer requests. */
export const SERVED_FLAGS: FlagTable = {
  ...MODEL_FLAGS,
  ...CONTEXT_FLAG,
  "alias": ["texts", "further name of the model in requests; may be repeated"],
  "slots": ["number", "texts that are generated at once, at most 64", 8],
  "cache-tokens": [
    "number",
    "tokens whose keys and values are kept, of all texts and earlier prompts",
    "slots times context, or less if that takes much memory",
  ],
  "chat-template": [
    "text",
    "file of a chat template (Jinja) to use",
    "the checkpoint's; the story model has one of its own",
  ],
};

/** What {@linkcode SERVED_FLAGS} ask for. */
export interface ToServe {
  model: string | undefined;
  where: Qwen3Options;
  names: string[];
  options: EngineOptions;
  chatTemplate: string | undefined;
  verbose: boolean;
}

/** Reads {@linkcode SERVED_FLAGS}. */
export async function readServed(flags: Flags): Promise<ToServe> {
  const model = flags.text("model");
  flags.whole("context", 2); // a token to read and one to write
  return {
    model,
    where: placementOf(flags),
    names: [nameOf(model), ...flags.filled("alias")],
    options: {
      slots: flags.whole("slots", 1, 64),
      cacheTokens: flags.whole("cache-tokens", 1),
    },
    chatTemplate: await readTemplateFile(flags.text("chat-template")),
    verbose: flags.on("verbose") ?? false,
  };
}

/**
 * Loads a model and lets a server answer with it until it is disposed, with an engine unless
 * the model is only for vectors.
 *
 * @returns how many texts are generated at once
 */
export async function startServing(
  server: Server,
  { model, where, names, options, chatTemplate, verbose }: ToServe,
  signal: AbortSignal,
  progress: Progress,
): Promise<Disposable & { readonly slots: number }> {
  using parts = new DisposableStack();
  const opened = await openModel(model, { ...where, signal }, progress);
  const qwen = parts.use(opened.qwen);
  const engine = qwen.generates
    ? parts.use(await qwen.engine(options))
    : undefined;
  await engine?.warmUp({ signal });
  server.serve({ qwen, engine, names, chatTemplate });
  opened.tell();
  if (!opened.moved()) sayPlacement(qwen, verbose);
  const held = parts.move(), slots = engine?.stats.slots ?? 1;
  return { slots, [Symbol.dispose]: () => held.dispose() };
}

async function readTemplateFile(file?: string): Promise<string | undefined> {
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
