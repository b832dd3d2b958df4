/**
 * The conversation of a request for `/v1/responses`, whose turns are lists of items.
 *
 * @module
 */
import { described, quoted } from "../errors.ts";
import { isObject } from "../json.ts";
import type { Message, ToolCall } from "../text/conversation.ts";
import { required, wrongParameter } from "./errors.ts";
import { Fields } from "./fields.ts";

/** Fields of items that the template does not read, some of them clients' own. */
const RECORDS = ["id", "status", "phase", "parsed_arguments"];

/** An assistant's turn, as its items are read. */
interface Turn extends Message {
  role: "assistant";
  tool_calls?: ToolCall[];
}

/** Reads `instructions` and `input`. */
export function readInput(fields: Fields): Message[] {
  const instructions = fields.text("instructions");
  const input = fields.get("input");
  const messages: Message[] = instructions === undefined
    ? []
    : [{ role: "system", content: instructions }];
  if (input === undefined) throw required("input");
  if (typeof input === "string") {
    return [...messages, { role: "user", content: input }];
  }
  if (!Array.isArray(input)) {
    throw fields.wrong("input", "a string or a list of items");
  }
  if (input.length === 0) {
    throw wrongParameter("input", "has 0 messages, must have at least one");
  }
  const turns = new Turns();
  for (const [i, item] of input.entries()) {
    const where = `input[${i}]`;
    if (!isObject(item)) {
      throw wrongParameter(where, `is ${described(item)}, must be an object`);
    }
    turns.add(new Fields(item, `${where}.`));
  }
  return [...messages, ...turns.messages];
}

/** Puts the items of an assistant's turn together. */
class Turns {
  readonly messages: Message[] = [];
  /** The turn that further items of the assistant belong to. */
  #open?: Turn;

  add(item: Fields): void {
    item.ignore(RECORDS);
    const type = item.text("type") ?? "message";
    if (type === "message") this.#message(item);
    else if (type === "reasoning") this.#reasoning(item);
    else if (type === "function_call") this.#call(item);
    else if (type === "function_call_output") this.#output(item);
    else {
      throw wrongParameter(
        `${item.path}type`,
        `is ${
          quoted(type)
        }, must be message, reasoning, function_call or function_call_output`,
      );
    }
    item.end();
  }

  #message(item: Fields): void {
    const role = item.oneOf(
      "role",
      ["user", "assistant", "system", "developer"],
    );
    if (role === undefined) throw required(`${item.path}role`);
    const content = item.get("content") as Message["content"];
    if (role !== "assistant") {
      this.#open = undefined;
      this.messages.push({ role, content });
      return;
    }
    const taken = this.#open?.content !== undefined || this.#open?.tool_calls;
    this.#turn(!taken).content = content;
  }

  #reasoning(item: Fields): void {
    const parts = item.list("content") ?? item.list("summary") ?? [];
    item.ignore(["summary", "encrypted_content"]);
    const text = parts.map((part) =>
      isObject(part) && typeof part.text === "string" ? part.text : undefined
    );
    if (text.length === 0 || text.includes(undefined)) {
      throw wrongParameter(
        `${item.path}content`,
        "has no text, must be like the reasoning of a reply",
      );
    }
    this.#turn(false).reasoning_content = text.join("\n");
  }

  #call(item: Fields): void {
    const turn = this.#turn(true);
    turn.tool_calls ??= [];
    turn.tool_calls.push({
      type: "function",
      id: this.#text(item, "call_id"),
      function: {
        name: this.#text(item, "name"),
        arguments: this.#text(item, "arguments"),
      },
    });
  }

  #output(item: Fields): void {
    this.#open = undefined;
    this.messages.push({
      role: "tool",
      tool_call_id: this.#text(item, "call_id"),
      content: item.get("output") as Message["content"],
    });
  }

  #text(item: Fields, name: string): string {
    const text = item.text(name);
    if (text === undefined) throw required(item.path + name);
    return text;
  }

  /** The assistant's turn: the one before, if the item may continue it, or a new one. */
  #turn(continues: boolean): Turn {
    if (continues && this.#open) return this.#open;
    this.#open = { role: "assistant" };
    this.messages.push(this.#open);
    return this.#open;
  }
}
