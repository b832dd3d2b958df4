/**
 * Texts as embedding models and rerankers read them: Qwen3-Embedding and Qwen3-Reranker
 * (https://arxiv.org/abs/2506.05176).
 *
 * @module
 */
import { described, requireKind, wrongOption } from "../errors.ts";
import { TooManyTokens } from "./bpe.ts";
import { givenOptions } from "./options.ts";
import { atOnce, type Parts } from "./parts.ts";
import type { TokenizerSource } from "./prompt.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** Options of `embed`. */
export interface EmbedOptions {
  /** Scales each vector to length 1; true by default. */
  normalize?: boolean;
  /**
   * The elements of a vector to keep, its first ones, before it is normalized; all by default.
   * Qwen3-Embedding is trained so that 32 or more are useful.
   */
  dimensions?: number;
  /**
   * The task, for queries: `Instruct: TASK\nQuery:TEXT` is embedded. Documents go without.
   */
  instruction?: string;
  /** Ends the work; the promise is then rejected with its reason. */
  signal?: AbortSignal;
}

/** Options of `rerank`. */
export interface RerankOptions {
  /**
   * The task; "Given a web search query, retrieve relevant passages that answer the query"
   * by default.
   */
  instruction?: string;
  /** Ends the work; the promise is then rejected with its reason. */
  signal?: AbortSignal;
}

/** What `rerank` says about a document. */
export interface Ranking {
  /** The document's place in the list that was given. */
  index: number;
  /** How probable it is, from 0 to 1, that the document meets the query. */
  score: number;
}

/** A text or its token ids. */
export type Text = string | readonly number[];

const EMBEDDING = {
  normalize: "flag",
  dimensions: "number",
  instruction: "text",
  signal: "signal",
} as const;

/**
 * Checks the options of `embed` and adds the defaults.
 *
 * @param hiddenSize the elements of a whole vector
 * @throws {OptionError} if one is wrong or unknown.
 */
export function checkEmbedding(
  options: EmbedOptions,
  hiddenSize: number,
): EmbedOptions & { normalize: boolean; dimensions: number } {
  const cannot = "Cannot embed";
  const given = givenOptions(cannot, options, EMBEDDING);
  const { normalize = true, dimensions = hiddenSize } = given;
  const fits = Number.isInteger(dimensions) && dimensions >= 1 &&
    dimensions <= hiddenSize;
  if (!fits) {
    const must = `an integer from 1 to ${hiddenSize}`;
    throw wrongOption(cannot, "dimensions", dimensions, must);
  }
  return { ...given, normalize, dimensions };
}

const RERANKING = { instruction: "text", signal: "signal" } as const;

/**
 * Checks the options of `rerank`.
 *
 * @throws {OptionError} if one is wrong or unknown.
 */
export function checkReranking(options: RerankOptions): RerankOptions {
  return givenOptions("Cannot rerank", options, RERANKING);
}

/**
 * The list of texts that the argument of `embed` stands for.
 *
 * @throws {TypeError} if it is neither texts nor token ids.
 */
export function listTexts(texts: Text | readonly Text[]): Text[] {
  const cannot = "Cannot embed";
  if (typeof texts === "string") return [texts];
  requireKind(cannot, "the list of texts", texts, "list");
  if (texts.length > 0 && texts.every((one) => typeof one === "number")) {
    return [texts as readonly number[]];
  }
  const list: Text[] = [];
  for (const [i, text] of texts.entries()) {
    if (typeof text === "string" || Array.isArray(text)) list.push(text);
    else {
      throw new TypeError(
        `${cannot}: text ${i} is ${
          described(text)
        }, must be a string or a list of token ids`,
      );
    }
  }
  return list;
}

/** The token that Qwen3-Embedding puts after a text. */
const END = "<|endoftext|>";

/**
 * Encodes a text to embed. The end token follows it: the one that the tokenizer adds or, if
 * it adds none, `<|endoftext|>`, which tokenizers of older files forget. Token ids are used
 * as they are.
 *
 * @param which names the text in errors
 * @throws {Error} if it is empty, not well-formed or too long, or an instruction is given
 * for token ids.
 */
export function encodeToEmbed(
  text: Text,
  which: string,
  instruction: string | undefined,
  source: TokenizerSource,
): number[] {
  return atOnce(encodeToEmbedInParts(text, which, instruction, source));
}

/** Does as {@linkcode encodeToEmbed}, in parts if the text is long. */
export function* encodeToEmbedInParts(
  text: Text,
  which: string,
  instruction: string | undefined,
  source: TokenizerSource,
): Parts<number[]> {
  if (typeof text !== "string") {
    if (instruction === undefined) return [...text];
    throw new Error(
      `Cannot embed: ${which} is token ids, an instruction needs text`,
    );
  }
  if (text === "") {
    throw new Error(
      `Cannot embed: ${which} is empty, it must have at least one character`,
    );
  }
  const whole = instruction === undefined
    ? text
    : `Instruct: ${instruction}\nQuery:${text}`;
  const ids = yield* encodeOne("Cannot embed", whole, which, true, source);
  const tokenizer = source.tokenizer(), end = tokenizer.tokenId(END);
  return end === undefined || addsEnd(tokenizer) ? ids : [...ids, end];
}

/** Whether a tokenizer puts a special token after a text. */
function addsEnd(tokenizer: Tokenizer): boolean {
  const bare = tokenizer.encode("a", { addSpecialTokens: false });
  return tokenizer.encode("a").at(-1) !== bare.at(-1);
}

/** Encodes a prompt of {@linkcode rerankPrompt}; `which` names it in errors. */
export function encodeToRank(
  prompt: string,
  which: string,
  source: TokenizerSource,
): number[] {
  return atOnce(encodeOne("Cannot rerank", prompt, which, false, source));
}

/**
 * Tokens up to which a text that is too long is counted; encoding a longer one to the end
 * could take seconds.
 */
const COUNTED = 65_536;

function* encodeOne(
  cannot: string,
  text: string,
  which: string,
  addSpecialTokens: boolean,
  source: TokenizerSource,
): Parts<number[]> {
  if (!text.isWellFormed()) {
    throw new Error(
      `${cannot}: ${which} has half of a surrogate pair, must have whole characters`,
    );
  }
  const { context } = source, most = Math.max(COUNTED, 2 * context);
  const how = { addSpecialTokens, most };
  try {
    return yield* source.tokenizer().encodeInParts(text, how);
  } catch (error) {
    if (!(error instanceof TooManyTokens)) throw error;
    throw new RangeError(
      `${cannot}: ${which} has more than ${most} tokens, the context has room for ${context}`,
      { cause: error },
    );
  }
}

/** @throws {TypeError} if they are not a query and a list of documents. */
export function checkDocuments(
  query: string,
  documents: readonly string[],
): void {
  const cannot = "Cannot rerank";
  requireKind(cannot, "the query", query, "text");
  requireKind(cannot, "the list of documents", documents, "list");
  for (const [i, document] of documents.entries()) {
    requireKind(cannot, `document ${i}`, document, "text");
  }
  const empty = [query, ...documents].indexOf("");
  if (empty < 0) return;
  throw new Error(
    `${cannot}: ${
      empty === 0 ? "the query" : `document ${empty - 1}`
    } is empty, it must have at least one character`,
  );
}

/**
 * The tokens of a reranker's answers.
 *
 * @param name of the checkpoint, for errors
 * @throws {Error} if the tokenizer lacks one of them.
 */
export function answerTokens(
  tokenizer: Tokenizer,
  name: string,
): { yes: number; no: number } {
  const [yes, no] = ["yes", "no"].map((answer) => {
    const id = tokenizer.tokenId(answer);
    if (id !== undefined) return id;
    throw new Error(
      `Cannot rerank: the tokenizer of ${name} has no token "${answer}", must have one`,
    );
  });
  return { yes, no };
}

const SYSTEM =
  'Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer can only be "yes" or "no".';
/** The task of a query if none is given. */
export const SEARCH_TASK =
  "Given a web search query, retrieve relevant passages that answer the query";

/** The prompt of Qwen3-Reranker's model card, up to where it answers yes or no. */
const PROMPT = `<|im_start|>system
${SYSTEM}<|im_end|>
<|im_start|>user
<Instruct>: {instruction}
<Query>: {query}
<Document>: {document}<|im_end|>
<|im_start|>assistant
<think>

</think>

`;

/** The line of a template that has a fixed task. */
const FIXED_TASK = /(?<=<Instruct>: ).*/;

/**
 * The prompt of a reranker for a query and a document.
 *
 * @param template with `{query}` and `{document}`; the model card's by default
 * @throws {Error} if the template lacks one of them, or has no place for an instruction
 * that is given
 */
export function rerankPrompt(
  query: string,
  document: string,
  instruction: string | undefined,
  template: string = PROMPT,
): string {
  const refuse = (lacks: string): never => {
    throw new Error(
      `Cannot rerank: the file's template has no ${lacks}, must have one`,
    );
  };
  let form = template;
  if (instruction !== undefined && !/\{instruction\}/.test(form)) {
    if (!FIXED_TASK.test(form)) refuse("place for an instruction");
    form = form.replace(FIXED_TASK, "{instruction}");
  }
  for (const name of ["{query}", "{document}"]) {
    if (!form.includes(name)) refuse(name);
  }
  const values = { query, document, instruction: instruction ?? SEARCH_TASK };
  // All at once: a document may contain "{query}".
  return form.replaceAll(
    /\{(query|document|instruction)\}/g,
    (_, name: keyof typeof values) => values[name],
  );
}
