/**
 * A terminal that asks for messages: keys in, rows out, and the history of what was sent.
 *
 * @module
 */
import { onTerminalChange } from "./interrupts.ts";
import { writeAll } from "./model.ts";
import { type Key, KeyReader } from "./keys.ts";
import { LineEditor, type Picture } from "./line_editor.ts";

/** Whether a conversation can be held on this terminal; otherwise lines are read. */
export const isInteractive = (): boolean =>
  Deno.stdin.isTerminal() && Deno.stdout.isTerminal() &&
  Deno.env.get("TERM") !== "dumb";

/** How the terminal marks what is pasted, so that its line breaks send nothing. */
const PASTES_ON = "\x1b[?2004h", PASTES_OFF = "\x1b[?2004l";
/** Where Ctrl-C is no signal while keys are read, so they are read only for a message. */
const WINDOWS = Deno.build.os === "windows";
/** Messages that the history keeps. */
const MOST = 1000;

/** Messages of earlier conversations, kept in a file. */
export class History {
  private constructor(
    readonly messages: string[],
    readonly path: string | undefined,
  ) {}

  /** Reads the history; without a path it is not kept. */
  static async read(path?: string): Promise<History> {
    const messages: string[] = [];
    const text = path === undefined
      ? ""
      : await Deno.readTextFile(path).catch(() => "");
    for (const line of text.split("\n").slice(-MOST)) {
      try {
        const message: unknown = JSON.parse(line);
        if (typeof message === "string") messages.push(message);
      } catch { /* an incomplete line */ }
    }
    return new History(messages, path);
  }

  /** Adds a message, unless it is the last one again. */
  async add(message: string): Promise<void> {
    if (message === this.messages.at(-1)) return;
    this.messages.push(message);
    if (this.path === undefined) return;
    const line = `${JSON.stringify(message)}\n`;
    const folder = this.path.slice(0, this.path.lastIndexOf("/"));
    try {
      await Deno.mkdir(folder, { recursive: true });
      // Others may not read what was said.
      await Deno.writeTextFile(this.path, line, { append: true, mode: 0o600 });
    } catch { /* the conversation matters more */ }
  }
}

/** The terminal. Keys are read one by one; Ctrl-C and Ctrl-Z stay signals. */
export class Terminal implements Disposable {
  readonly #reader = new KeyReader();
  #keys: Key[] = [];
  #reading?: Promise<Uint8Array | null>;
  #editor?: LineEditor;
  #prompt = "";
  /** Rows of the picture above the cursor. */
  #above = 0;
  #leave = Promise.withResolvers<null>();
  readonly #changes: Disposable;

  constructor(
    readonly history: History,
    readonly words: readonly string[],
  ) {
    this.#start();
    this.#changes = onTerminalChange(() => this.#start(), () => this.#draw());
  }

  #start(): void {
    this.#raw(!WINDOWS || this.#editor !== undefined);
    this.#write(PASTES_ON);
    this.#above = 0;
    this.#draw();
  }

  /** Asks for a message; undefined if the user leaves. */
  async ask(prompt: string, text = ""): Promise<string | undefined> {
    const { messages } = this.history;
    const editor = this.#editor = new LineEditor(messages, this.words, text);
    this.#prompt = prompt;
    this.#above = 0;
    this.#leave = Promise.withResolvers();
    if (WINDOWS) this.#raw(true);
    for (;;) {
      this.#draw();
      const key = await this.#key();
      if (key === undefined) return this.#end(undefined);
      if ("name" in key && key.name === "clear-screen") {
        this.#write("\x1b[H\x1b[2J");
        this.#above = 0;
        continue;
      }
      const ending = editor.press(key);
      if (ending === "leave") return this.#end(undefined);
      if (ending !== "send") continue;
      if (editor.text.trim() === "") editor.clear();
      else return this.#end(editor.text);
    }
  }

  /** What Ctrl-C does to the message that is typed: it is given up, an empty one leaves. */
  interrupt(): void {
    const editor = this.#editor;
    if (!editor) return;
    this.#finish("^C");
    if (editor.clear()) this.#draw();
    else this.#leave.resolve(null);
  }

  #end(message: string | undefined): string | undefined {
    if (this.#editor) this.#finish("");
    this.#editor = undefined;
    if (WINDOWS) this.#raw(false);
    return message;
  }

  #raw(on: boolean): void {
    Deno.stdin.setRaw(on, { cbreak: on && !WINDOWS });
  }

  /** Leaves the message as it is, and continues on a new line. */
  #finish(mark: string): void {
    const picture = this.#picture();
    if (!picture) return;
    const last = picture.rows.length - 1;
    this.#show({ ...picture, row: last, column: 0 });
    this.#write(`\r${picture.rows[last]}${mark}\r\n`);
    this.#above = 0;
  }

  async #key(): Promise<Key | undefined> {
    while (this.#keys.length === 0) {
      this.#reading ??= this.#read();
      const bytes = await Promise.race([this.#reading, this.#leave.promise]);
      if (bytes === null) {
        this.#editor = undefined;
        return undefined;
      }
      this.#reading = undefined;
      this.#keys = this.#reader.read(bytes);
    }
    return this.#keys.shift();
  }

  async #read(): Promise<Uint8Array | null> {
    const bytes = new Uint8Array(4096);
    const count = await Deno.stdin.read(bytes);
    // Where Ctrl-C is no signal, it is a byte.
    if (count === 1 && bytes[0] === 3) this.interrupt();
    return count === null ? null : bytes.subarray(0, count);
  }

  #picture(): Picture | undefined {
    return this.#editor?.picture(this.#prompt, size().columns);
  }

  #draw(): void {
    const picture = this.#picture();
    if (picture) this.#show(picture);
  }

  /** Draws over the last picture; of a long one, the rows around the cursor. */
  #show({ rows, row, column }: Picture): void {
    const most = Math.max(1, size().rows - 1);
    const first = Math.max(0, Math.min(row - (most >> 1), rows.length - most));
    const seen = rows.slice(first, first + most);
    const up = (n: number) => n > 0 ? `\x1b[${n}A` : "";
    const right = column > 0 ? `\x1b[${column}C` : "";
    this.#write(
      `${up(this.#above)}\r\x1b[J${seen.join("\r\n")}${
        up(seen.length - 1 - (row - first))
      }\r${right}`,
    );
    this.#above = row - first;
  }

  #write(text: string): void {
    writeAll(Deno.stdout, text);
  }

  [Symbol.dispose](): void {
    this.#changes[Symbol.dispose]();
    this.#write(PASTES_OFF);
    this.#raw(false);
  }
}

function size(): { columns: number; rows: number } {
  try {
    const { columns, rows } = Deno.consoleSize();
    // A terminal that does not know says 0.
    return { columns: columns || 80, rows: rows || 24 };
  } catch {
    return { columns: 80, rows: 24 };
  }
}
