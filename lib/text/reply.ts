/**
 * Separates a reply into text, reasoning and function calls while it is generated.
 *
 * @module
 */
import { readBlock, readBroken, XML_CALL } from "./tool_calls.ts";
import { anyStrict, type Tool, type ToolCall } from "./conversation.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** What a piece of a reply is: text for the user, reasoning, or a function call. */
export type PieceKind = "text" | "reasoning" | "tool";

/** A piece of a reply. */
export interface ReplyPiece {
  kind: PieceKind;
  text: string;
}

/** What a prompt implies for its reply. */
export interface ReplyFormat {
  /** The prompt ends with `<think>`, so the reply begins with reasoning. */
  thinking?: boolean;
  /** Their schemas give the types of Qwen3-Coder's parameters. */
  tools?: readonly Tool[];
  /** The reply is JSON, unless it begins with a call: tags inside it are text. */
  json?: boolean;
}

/** The tags that separate a reply. */
export const TAGS = {
  think: "<think>",
  thinkEnd: "</think>",
  call: "<tool_call>",
  callEnd: "</tool_call>",
} as const;

const { think: THINK, thinkEnd: THINK_END } = TAGS;
const { call: CALL, callEnd: CALL_END } = TAGS;
const XML_END = "</function>";

/** Special tokens that a reply is read without: all but its tags. */
export function hiddenIds(tokenizer: Tokenizer): ReadonlySet<number> {
  const tags = new Set(
    Object.values(TAGS).map((tag) => tokenizer.tokenId(tag)),
  );
  return new Set([...tokenizer.specialIds].filter((id) => !tags.has(id)));
}

/**
 * Separates a reply that arrives in pieces; how it is cut makes no difference.
 *
 * - `<think>` opens reasoning at the beginning of the reply and after a block; elsewhere
 *   it is text. Reasoning ends at `</think>`; tags of calls inside it are reasoning.
 * - `<tool_call>` opens a call if JSON or `<function=` follows, else it is text. A call
 *   comes as one piece, once it is complete. One without a name is text. Qwen3-Coder
 *   sometimes omits the tag: `<function=NAME>` opens a call of a tool that it was given.
 * - Line breaks at both ends of reasoning and after a block, and white space before a block,
 *   belong to the format and are left out.
 *
 * ```ts
 * const reply = new ReplyStream();
 * const pieces = [...reply.push("<think>\nHm.\n</thi"), ...reply.push("nk>\n\nHello!")];
 * pieces.push(...reply.end());
 * const text = pieces.filter(({ kind }) => kind === "text").map(({ text }) => text);
 * console.assert(text.join("") === "Hello!");
 * ```
 */
export class ReplyStream {
  /** The calls so far. */
  readonly toolCalls: ToolCall[] = [];
  readonly #tools: readonly Tool[];
  readonly #json: boolean;
  /** Calls are whole, or cut off. */
  readonly #strict: boolean;
  /** What opens the call of a tool without a tag. */
  readonly #bareTags: readonly string[];
  readonly #pieces = new Pieces();
  #kind: PieceKind;
  /** What may still be text or a tag; in a call, everything after its tag. */
  #held = "";
  /** At the beginning of the reply or after a block. */
  #fresh = true;
  /** The prompt's `<think>` may be repeated. */
  #repeats: boolean;
  /** The call has, or had, no opening tag, so a closing one is left out. */
  #bare = false;
  /** Where to look for the end of a call, and the first end that was skipped. */
  #searched = 0;
  #passed = -1;

  constructor(
    { thinking = false, tools = [], json = false }: ReplyFormat = {},
  ) {
    this.#json = json;
    this.#strict = anyStrict(tools);
    this.#kind = thinking ? "reasoning" : "text";
    this.#repeats = thinking;
    this.#tools = tools;
    this.#bareTags = tools.map((tool) => `${XML_CALL}${tool.function.name}>`);
  }

  /** The kind of the text that comes next, as far as is known. */
  get kind(): PieceKind {
    return this.#kind;
  }

  /** Adds text; returns the pieces that can be released. */
  push(text: string): ReplyPiece[] {
    this.#held += text;
    while (this.#step(true));
    return this.#pieces.take();
  }

  /**
   * Ends the reply; returns what was held back. If the reply was `cut` off, a call without
   * an end and a part of a tag are left out. Otherwise such a call counts if it is
   * complete; if not, it is text, or left out if a stop string ended it.
   */
  end(how: "whole" | "stopped" | "cut" = "whole"): ReplyPiece[] {
    if (how !== "cut") {
      for (;;) {
        if (this.#step(false)) continue;
        if (this.#kind !== "tool") break;
        this.#endCall(how === "stopped");
      }
    } else if (this.#held !== "") this.#pieces.block();
    this.#held = "";
    this.#pieces.end();
    return this.#pieces.take();
  }

  /** Takes one step; false if it needs more text or, at the end, there is none. */
  #step(more: boolean): boolean {
    if (this.#held === "") return false;
    if (this.#kind === "tool") return this.#call();
    return this.#kind === "reasoning" ? this.#reason(more) : this.#write(more);
  }

  #text(length: number): true {
    const text = this.#held.slice(0, length);
    this.#held = this.#held.slice(length);
    if (text.trim() !== "") this.#fresh = false;
    this.#pieces.text(text);
    return true;
  }

  #write(more: boolean): boolean {
    const held = this.#held, at = held.indexOf("<");
    if (this.#json && !this.#fresh) return this.#text(held.length);
    if (at !== 0) return this.#text(at < 0 ? held.length : at);
    if (this.#fresh && held.startsWith(THINK)) {
      this.#pieces.block();
      this.#held = held.slice(THINK.length);
      this.#kind = "reasoning";
      return true;
    }
    if (held.startsWith(CALL)) return this.#open(more);
    if (this.#bareTags.some((tag) => held.startsWith(tag))) {
      return this.#openAt(0);
    }
    const ends = this.#bare && this.#fresh; // the call before
    if (ends && held.startsWith(CALL_END)) {
      this.#held = held.slice(CALL_END.length);
      this.#bare = false;
      return true;
    }
    const waits = CALL.startsWith(held) ||
      (this.#fresh && THINK.startsWith(held)) ||
      (ends && CALL_END.startsWith(held)) ||
      this.#bareTags.some((tag) => tag.startsWith(held));
    return more && waits ? false : this.#text(1);
  }

  /** Opens a call, or continues with text if none follows the tag. */
  #open(more: boolean): boolean {
    const first = this.#held.slice(CALL.length).trimStart();
    if (/^[{[]/.test(first) || first.startsWith(XML_CALL)) {
      return this.#openAt(CALL.length);
    }
    const waits = XML_CALL.startsWith(first);
    return more && waits ? false : this.#text(CALL.length);
  }

  /** Opens a call after its tag, or without one. */
  #openAt(at: number): true {
    this.#held = this.#held.slice(at);
    this.#bare = at === 0;
    this.#kind = "tool";
    this.#searched = 0;
    this.#passed = -1;
    return true;
  }

  #reason(more: boolean): boolean {
    if (this.#repeats) {
      const rest = this.#held.trimStart();
      if (more && THINK.startsWith(rest) && rest !== THINK) return false;
      if (rest.startsWith(THINK)) this.#held = rest.slice(THINK.length);
      this.#repeats = false;
    }
    const held = this.#held, at = held.indexOf(THINK_END);
    const keep = at < 0 && more ? partial(held, THINK_END) : 0;
    const end = at < 0 ? held.length - keep : at;
    this.#pieces.reasoning(held.slice(0, end));
    this.#held = held.slice(at < 0 ? end : at + THINK_END.length);
    if (at >= 0) this.#close();
    return at >= 0;
  }

  /** Looks for the end of a call. */
  #call(): boolean {
    const tag = this.#bare ? XML_END : CALL_END;
    for (;;) {
      const held = this.#held, at = held.indexOf(tag, this.#searched);
      if (at < 0) {
        this.#searched = Math.max(0, held.length - tag.length + 1);
        return false;
      }
      // This end belongs to the call itself.
      const end = this.#bare ? at + tag.length : at;
      const block = readBlock(held.slice(0, end), this.#tools);
      if (block !== "open") {
        this.#endBlock(end, block);
        return true;
      }
      if (this.#passed < 0) this.#passed = end;
      this.#searched = at + 1;
    }
  }

  /** Ends a call at the end of the reply, where no more ends follow. */
  #endCall(stopped: boolean): void {
    const block = readBlock(this.#held, this.#tools);
    if (Array.isArray(block)) this.#endBlock(this.#held.length, block);
    else if (this.#passed >= 0 && !this.#strict) {
      this.#endBlock(this.#passed, "broken");
    } else if (stopped && (this.#strict || !this.#held.includes(CALL))) {
      this.#held = "";
      this.#close();
    } else this.#endBlock(this.#held.length, "text");
  }

  /** Ends a call whose body ends at `at`. */
  #endBlock(at: number, block: ToolCall[] | "broken" | "text"): void {
    const held = this.#held;
    let calls = Array.isArray(block) ? block : undefined;
    const inner = calls ? -1 : held.slice(0, at).indexOf(CALL);
    if (inner >= 0) {
      // Another call begins before the end of this one.
      at = inner;
      const first = readBlock(held.slice(0, at), this.#tools);
      if (Array.isArray(first)) calls = first;
    } else if (block === "broken") {
      calls = readBroken(held.slice(0, at), this.#tools);
    }
    const ends = !this.#bare && held.startsWith(CALL_END, at);
    const next = at + (ends ? CALL_END.length : 0);
    this.#kind = "text";
    if (!calls) {
      const tag = this.#bare ? "" : CALL;
      this.#held = tag + held;
      this.#text(tag.length + next);
      return;
    }
    this.toolCalls.push(...calls);
    this.#pieces.tool(held.slice(0, at).trim());
    this.#held = held.slice(next);
    this.#close();
  }

  #close(): void {
    this.#pieces.block();
    this.#kind = "text";
    this.#fresh = true;
  }
}

/** Pieces to release, without white space that belongs to the format. */
class Pieces {
  #pieces: ReplyPiece[] = [];
  /** White space at the end of the text so far; more text releases it. */
  #blank = "";
  #lines = "";
  /** Line breaks are left out: after a block, or at the beginning of reasoning. */
  #leading = false;
  #thoughtLeading = true;
  #written = false;
  #reasoned = false;

  text(text: string): void {
    if (this.#leading) {
      text = text.replace(/^\n+/, "");
      if (text === "") return;
      this.#leading = false;
    }
    const all = this.#blank + text, shown = all.trimEnd();
    this.#blank = all.slice(shown.length);
    if (shown === "") return;
    this.#written = true;
    this.#add("text", shown);
  }

  reasoning(text: string): void {
    if (this.#thoughtLeading) {
      text = text.replace(/^\n+/, "");
      if (text === "") return;
      this.#thoughtLeading = false;
      // Of a second block.
      if (this.#reasoned) text = `\n${text}`;
    }
    const all = this.#lines + text, shown = all.replace(/\n+$/, "");
    this.#lines = all.slice(shown.length);
    if (shown === "") return;
    this.#reasoned = true;
    this.#add("reasoning", shown);
  }

  tool(text: string): void {
    this.#add("tool", text);
  }

  /** Begins or ends a block. */
  block(): void {
    if (!this.#written) this.#blank = "";
    this.#lines = "";
    this.#leading = this.#thoughtLeading = true;
  }

  /** Ends the reply, which may end with white space, but not directly after a block. */
  end(): void {
    if (!this.#leading) this.#add("text", this.#blank);
    this.#blank = "";
  }

  take(): ReplyPiece[] {
    return this.#pieces.splice(0);
  }

  #add(kind: PieceKind, text: string): void {
    if (text === "") return;
    const last = this.#pieces.at(-1);
    if (last?.kind === kind && kind !== "tool") last.text += text;
    else this.#pieces.push({ kind, text });
  }
}

/** How many characters at the end of `text` may begin `tag`. */
function partial(text: string, tag: string): number {
  for (let n = Math.min(text.length, tag.length - 1); n > 0; n--) {
    if (tag.startsWith(text.slice(-n))) return n;
  }
  return 0;
}
