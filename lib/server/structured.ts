/**
 * Replies that must be JSON: `response_format`, and calls that a request demands.
 *
 * @module
 */
import type { GenerateOptions, Piece, Run } from "../generate.ts";
import { isObject } from "../json.ts";
import type { Tool, ToolCall } from "../text/conversation.ts";
import { argumentsSchema, grammarOf } from "../text/grammar/mod.ts";
import { refusingAt, required, wrongParameter } from "./errors.ts";
import type { Fields } from "./fields.ts";

/** Reads the format of a reply; the fields of its schema are one level down in chats. */
export function readFormat(
  format: Fields | undefined,
  nested: boolean,
): Pick<GenerateOptions, "schema"> {
  const type = format?.oneOf("type", ["text", "json_object", "json_schema"]);
  if (format === undefined) return {};
  if (type === undefined) throw required(`${format.path}type`);
  let schema: object | true | undefined;
  if (type === "json_object") schema = true;
  if (type === "json_schema") {
    const holder = nested ? format.object("json_schema") : format;
    if (holder === undefined) throw required(`${format.path}json_schema`);
    const given = holder.object("schema"), param = `${holder.path}schema`;
    if (given === undefined) throw required(param);
    refusingAt(param, () => grammarOf(given.json));
    schema = given.json;
    // The schema is followed in any case; its name and description are for people.
    holder.ignore(["name", "description", "strict"]);
    holder.end();
  }
  format.end();
  return { schema };
}

/** A call that must be made: how the model is asked for it. */
export interface Demand
  extends Pick<GenerateOptions, "schema" | "templateVariables"> {
  demanded: true;
}

/**
 * Demands a call of one of some functions. The template prints all of them, and the reply is
 * the JSON of a call.
 */
export function demandCall(
  tools: readonly Tool[],
  among: readonly Tool[],
): Demand {
  const schema = among.length === 1 ? callSchema(among[0], "#") : {
    anyOf: among.map((tool, i) => callSchema(tool, `#/anyOf/${i}`)),
  };
  refusingAt("tools", () => grammarOf(schema));
  return { schema, templateVariables: { tools }, demanded: true };
}

/** The schema of a call's JSON, which lies at `path`. */
function callSchema({ function: { name, parameters } }: Tool, path: string) {
  const given = parameters &&
    rebased(parameters, `${path}/properties/arguments`);
  return {
    type: "object",
    properties: {
      name: { const: name },
      arguments: argumentsSchema(given as Record<string, unknown> | undefined),
    },
    required: ["name", "arguments"],
    additionalProperties: false,
  };
}

/** A schema whose references to its own parts hold where it lies now. */
function rebased(schema: unknown, path: string): unknown {
  if (Array.isArray(schema)) return schema.map((one) => rebased(one, path));
  if (!isObject(schema)) return schema;
  return Object.fromEntries(
    Object.entries(schema).map(([key, value]) => {
      const refers = key === "$ref" && typeof value === "string" &&
        /^#(\/|$)/.test(value);
      return [key, refers ? path + value.slice(1) : rebased(value, path)];
    }),
  );
}

/** What is read of a run. */
export type Reading =
  & Pick<
    Run,
    "text" | "reasoning" | "toolCalls" | "tokenIds" | "stats" | "finishReason"
  >
  & AsyncIterable<Piece>;

/** A run whose text is the JSON of a demanded call. */
export class DemandedCall implements Reading {
  readonly text = "";
  readonly #run: Run;

  constructor(run: Run) {
    this.#run = run;
  }

  get reasoning(): string {
    return this.#run.reasoning;
  }

  get tokenIds(): number[] {
    return this.#run.tokenIds;
  }

  get stats(): Run["stats"] {
    return this.#run.stats;
  }

  get finishReason(): Run["finishReason"] {
    const { finishReason } = this.#run;
    return finishReason === "stop" ? "tool_calls" : finishReason;
  }

  /** The call, once it is whole. */
  get toolCalls(): readonly ToolCall[] {
    if (this.#run.finishReason !== "stop") return [];
    return [{ type: "function", function: JSON.parse(this.#run.text) }];
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Piece, void> {
    for await (const piece of this.#run) {
      yield piece.kind === "text" ? { ...piece, text: "" } : piece;
    }
    const { text, finishReason } = this.#run;
    if (finishReason === "stop") yield { kind: "tool", text, tokenId: null };
  }
}

/** Reads `tool_choice` where it names a function, as chats and responses do. */
export function namedTool(
  choice: Record<string, unknown>,
  tools: readonly Tool[],
): Tool {
  const { type, function: called, name = isObject(called) ? called.name : "" } =
    choice;
  const tool = tools.find((one) => one.function.name === name);
  if (type === "function" && tool !== undefined) return tool;
  throw wrongParameter(
    "tool_choice",
    "is an object, must be a function with the name of one of tools",
  );
}
