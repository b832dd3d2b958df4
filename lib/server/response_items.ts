/**
 * The items of a response: reasoning, messages and function calls, with the events that tell
 * a client how they grow.
 *
 * @module
 */
import type { Piece } from "../generate.ts";
import type { ToolCall } from "../text/conversation.ts";
import { callOf } from "./conversation.ts";
import { newId } from "./service.ts";

/** Text that grows, and what its item and events are called. */
const KINDS = {
  text: {
    id: "msg_",
    event: "response.output_text",
    part: (text: string, logprobs: readonly object[]) => ({
      type: "output_text",
      text,
      annotations: [],
      logprobs,
    }),
    item: (content: object[]) => ({
      type: "message",
      role: "assistant",
      content,
    }),
    scored: true,
  },
  reasoning: {
    id: "rs_",
    event: "response.reasoning_text",
    part: (text: string) => ({ type: "reasoning_text", text }),
    item: (content: object[]) => ({ type: "reasoning", summary: [], content }),
    scored: false,
  },
};

/** Gives the log probabilities of a piece's token; none if they are not asked for. */
export type Scorer = (piece: Piece) => object[];

/** An item that is complete, or was cut off. */
export interface Output {
  id: string;
  type: string;
  status: string;
  [field: string]: unknown;
}

/** Sorts the pieces of a reply into items. */
export class Items {
  /** The items that have ended. */
  readonly output: Output[] = [];
  #open?: {
    id: string;
    kind: "text" | "reasoning";
    text: string;
    logprobs: object[];
  };
  /** Log probabilities of tokens that no event has had yet. */
  #held: object[] = [];
  #calls = 0;

  /**
   * @param emit takes events: their type, and their fields
   * @param score gives log probabilities, if they are asked for
   */
  constructor(
    readonly emit: (type: string, fields: object) => void,
    readonly score: Scorer,
  ) {}

  /** Adds a piece; `calls` are all calls so far. */
  add(piece: Piece, calls: readonly ToolCall[]): void {
    const { kind, text } = piece;
    this.#held.push(...this.score(piece));
    if (kind === "tool") {
      this.#close();
      for (; this.#calls < calls.length; this.#calls++) {
        this.#call(calls[this.#calls]);
      }
      return;
    }
    if (text === "") return;
    if (this.#open?.kind !== kind) {
      this.#close();
      this.#begin(kind);
    }
    const open = this.#open!, { event, scored } = KINDS[kind];
    open.text += text;
    const logprobs = this.#held.splice(0);
    open.logprobs.push(...logprobs);
    this.emit(`${event}.delta`, {
      ...this.#place(open.id),
      delta: text,
      ...(scored && { logprobs }),
    });
  }

  /** Ends the reply; an item that was cut off is incomplete. */
  end(cut: boolean): void {
    // A reply without anything is an empty message.
    if (!this.#open && this.output.length === 0) this.#begin("text");
    this.#close(cut ? "incomplete" : "completed");
  }

  #place(item_id: string) {
    return { item_id, output_index: this.output.length, content_index: 0 };
  }

  #begin(kind: "text" | "reasoning"): void {
    const { id: prefix, part, item } = KINDS[kind], id = newId(prefix);
    this.#open = { id, kind, text: "", logprobs: [] };
    this.emit("response.output_item.added", {
      output_index: this.output.length,
      item: { id, status: "in_progress", ...item([]) },
    });
    this.emit("response.content_part.added", {
      ...this.#place(id),
      part: part("", []),
    });
  }

  #close(status = "completed"): void {
    if (!this.#open) return;
    const { id, kind, text, logprobs } = this.#open;
    const { event, part, item, scored } = KINDS[kind];
    const place = this.#place(id), whole = part(text, logprobs);
    this.#open = undefined;
    this.emit(`${event}.done`, { ...place, text, ...(scored && { logprobs }) });
    this.emit("response.content_part.done", { ...place, part: whole });
    this.#done({ id, status, ...item([whole]) });
  }

  /** A call, which comes whole. */
  #call(call: ToolCall): void {
    const id = newId("fc_"), output_index = this.output.length;
    const { id: call_id, function: { name, arguments: text } } = callOf(call);
    const item = { type: "function_call", call_id, name };
    this.emit("response.output_item.added", {
      output_index,
      item: { id, status: "in_progress", ...item, arguments: "" },
    });
    const place = { item_id: id, output_index };
    const event = "response.function_call_arguments";
    this.emit(`${event}.delta`, { ...place, delta: text });
    this.emit(`${event}.done`, { ...place, name, arguments: text });
    this.#done({ id, status: "completed", ...item, arguments: text });
  }

  #done(item: Output): void {
    this.emit("response.output_item.done", {
      output_index: this.output.length,
      item,
    });
    this.output.push(item);
  }
}
