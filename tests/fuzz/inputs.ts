/** Inputs of the fuzzer: a checkpoint with a damaged file, a prompt and options. */
import { Random } from "../support/random.ts";
import {
  SMALL,
  smallTensors,
  tokenizerEntries,
  writeGguf,
} from "../support/gguf.ts";
import {
  chatTemplate,
  damageChat,
  damageConfig,
  damageGeneration,
  damageGguf,
  damageIndex,
  damageSafetensors,
  damageSchema,
  damageTokenizer,
  damageTokenizerConfig,
  damageTuning,
  damageWebIndex,
  someTemplate,
} from "./files.ts";
import { anyValue, Raw } from "./json.ts";

const ROOT = new URL("../../", import.meta.url);
const STORIES = "models/stories-3m/";
const FIXTURES = [
  ...["tied-bf16", "tied-with-head-bf16", "untied-f32", "sharded-f16"],
  ...["yarn-bf16", "outlier-bf16", "moe-bf16"],
].map((name) => `tests/fixtures/tiny-${name}/`);

const GGUF = "tests/fixtures/gguf/files/";
/** A folder without files of a checkpoint. */
const EMPTY = "tests/fuzz/";
/** Bytes of the headers of those files, at least. */
const GGUF_HEADER = 2000;

let stories: Uint8Array<ArrayBuffer> | undefined;
/** A small GGUF file with the story model's tokenizer. */
const storiesGguf = () =>
  stories ??= writeGguf([
    ...SMALL,
    ...tokenizerEntries(JSON.parse(textOf(STORIES, "tokenizer.json")), 2048),
    ["tokenizer.ggml.eos_token_id", "u32", 0],
    ["general.sampling.temp", "f32", 0.5],
  ], smallTensors(2048));
/** Bytes of its data, about. */
const STORIES_DATA = 2048 * 34 + 9000;

/** What is given to the library. */
export interface Input {
  /** What was damaged, for people. */
  what: string;
  /** The checkpoint's folder. */
  base: URL;
  /** Files that differ from the folder's. */
  changes: Record<string, string | Uint8Array<ArrayBuffer>>;
  /** Text of a file of tuned constants, if that is what is read. */
  tuning?: string;
  /** Text of the index of a kept web folder, if that is what is read. */
  index?: string;
  /** A saved chat, if that is what is read. */
  chat?: Uint8Array<ArrayBuffer>;
  prompt: unknown;
  options: unknown;
}

const texts = new Map<string, Uint8Array<ArrayBuffer>>();
function fileOf(base: string, name: string): Uint8Array<ArrayBuffer> {
  const path = base + name;
  let bytes = texts.get(path);
  if (!bytes) texts.set(path, bytes = Deno.readFileSync(new URL(path, ROOT)));
  return bytes;
}
const textOf = (base: string, name: string) =>
  new TextDecoder().decode(fileOf(base, name));

/** An input with nothing wrong. */
export const undamaged = (): Input => ({
  what: "nothing",
  base: new URL(STORIES, ROOT),
  changes: {},
  prompt: "Once",
  options: {},
});

/** What this library wrote and reads again. */
export interface Own {
  tuning: string;
  index: string;
  /** A saved chat of the story model. */
  chat: Uint8Array<ArrayBuffer>;
}

/** Input `index` of a seed. */
export function inputOf(seed: number, index: number, own: Own): Input {
  const random = new Random(
    Math.imul(seed ^ 0x5bd1e995, 0x9e3779b1) ^
      Math.imul(index + 1, 0x85ebca6b),
  );
  for (let i = 0; i < 8; i++) random.next(); // neighbors start similarly
  const tiny = random.pick(FIXTURES);
  const ids = [1, 2, 3];
  const input = (
    what: string,
    base: string,
    changes: Input["changes"],
    prompt: unknown = ids,
    options: unknown = {},
  ): Input => ({ what, base: new URL(base, ROOT), changes, prompt, options });

  switch (random.int(0, 16)) {
    case 0:
    case 1: {
      const text = textOf(tiny, "config.json");
      return input("config.json", tiny, {
        "config.json": damageConfig(text, random),
      });
    }
    case 2:
    case 3: {
      const name = tiny.includes("sharded")
        ? `model-0000${random.int(1, 9)}-of-00015.safetensors`
        : "model.safetensors";
      const file = fileOf(tiny, name);
      return input(name, tiny, { [name]: damageSafetensors(file, random) });
    }
    case 4: {
      const name = "model.safetensors.index.json";
      const text = textOf(FIXTURES[3], name);
      return input(name, FIXTURES[3], { [name]: damageIndex(text, random) });
    }
    case 5: {
      const base = random.int(0, 1) ? tiny : STORIES;
      const name = "generation_config.json";
      const prompt = base === STORIES ? "Once" : ids;
      return input(name, base, {
        [name]: damageGeneration(textOf(base, name), random),
      }, prompt);
    }
    case 6:
      return input("tokenizer.json", STORIES, {
        "tokenizer.json": damageTokenizer(
          textOf(STORIES, "tokenizer.json"),
          random,
        ),
      }, anyText(random));
    case 7:
      return input("tokenizer_config.json", STORIES, {
        "tokenizer_config.json": damageTokenizerConfig(
          textOf(STORIES, "tokenizer_config.json"),
          random,
        ),
      }, anyText(random));
    case 8:
      return input(
        "chat_template.jinja",
        STORIES,
        {
          "chat_template.jinja": chatTemplate(random),
        },
        anyMessages(random),
        { tools: random.int(0, 1) ? TOOLS : undefined },
      );
    case 9:
      return input(
        "messages and options",
        STORIES,
        {
          "chat_template.jinja": someTemplate(random),
        },
        random.int(0, 3) ? anyMessages(random) : plain(random),
        anyOptions(random),
      );
    case 14:
    case 15:
      return input("a JSON schema", STORIES, {}, "Once", {
        schema: parsed(damageSchema(random)),
        maxTokens: 8,
      });
    case 10:
      return {
        ...input("the index of a web folder", tiny, {}),
        index: damageWebIndex(own.index, random),
      };
    case 11:
    case 12: {
      const base = random.pick([
        ...["base-Q8_0", "tiny-outlier-bf16-Q4_K_M"],
        ...["tiny-moe-bf16-Q4_K_M", ""],
      ]);
      const file = base === "" ? storiesGguf() : fileOf(GGUF, `${base}.gguf`);
      const header = base === "" ? file.length - STORIES_DATA : GGUF_HEADER;
      return input("a GGUF file", EMPTY, {
        "x.gguf": damageGguf(file, header, random),
      }, base === "" ? anyText(random) : ids);
    }
    case 13:
      return {
        ...input("a saved chat", STORIES, {}),
        chat: damageChat(own.chat, random),
      };
    default:
      return {
        ...input("tuned constants", tiny, {}),
        tuning: damageTuning(own.tuning, random),
      };
  }
}

/** A value, or the text itself if it is not JSON. */
function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** Texts that are hard for tokenizers and templates. */
function anyText(random: Random): string {
  return random.pick([
    "Once upon a time",
    "",
    " ",
    "\u0000\u0001\u007f",
    "e".repeat(40) + "!",
    "e".repeat(2000),
    "a e\u0301 <|endoftext|> <|im_start|>",
    "\ud800 \udc00",
    "😀👨‍👩‍👧 \u202e \ufeff",
    "word ".repeat(40) + "!",
    "\r\n \n\t".repeat(30),
  ]);
}

const TOOLS = [{
  type: "function",
  function: { name: "f", parameters: { type: "object", properties: {} } },
}];

/** A value of any kind, without what only a file can hold. */
function plain(random: Random): unknown {
  const value = anyValue(random);
  return value instanceof Raw ? NaN : value;
}

function anyMessages(random: Random): unknown {
  const message = () => {
    const one: Record<string, unknown> = {
      role: random.pick([
        ...["user", "user", "assistant", "system", "tool", "developer"],
        plain(random),
      ]),
      content: random.pick([
        anyText(random),
        anyText(random),
        null,
        undefined,
        [{ type: "text", text: "a" }],
        [{ type: random.pick(["image", "text", "x"]), text: plain(random) }],
        plain(random),
      ]),
    };
    if (random.int(0, 3) === 0) {
      one.tool_calls = random.pick<unknown>([
        [{ type: "function", id: "1", function: { name: "f", arguments: {} } }],
        [{ function: { name: "f", arguments: "{" } }],
        [{ function: plain(random) }],
        plain(random),
      ]);
    }
    if (random.int(0, 5) === 0) one.reasoning_content = plain(random);
    return random.int(0, 15) === 0 ? plain(random) : one;
  };
  return Array.from({ length: random.int(0, 4) }, message);
}

function anyOptions(random: Random): unknown {
  if (random.int(0, 15) === 0) return plain(random);
  const options: Record<string, unknown> = {};
  for (let i = random.int(0, 3); i > 0; i--) {
    const name = random.pick([
      ...["temperature", "topK", "topP", "minP", "repetitionPenalty", "seed"],
      ...["stop", "ignoreEos", "system", "thinking", "raw", "tools", "signal"],
    ]);
    options[name] = plain(random);
  }
  return options;
}
