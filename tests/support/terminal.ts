/** A task on a terminal: keys go in one after another, and the screen shows what users see. */
import { RUN } from "./run_task.ts";

/** The beginning of an escape sequence. */
// deno-lint-ignore no-control-regex
const PARTIAL = /^\x1b(\[[?\d;]*)?$/;

/** What a terminal of some columns shows of the text that it was sent. */
export class Screen {
  #rows: string[][] = [[]];
  #row = 0;
  #column = 0;
  #rest = "";

  constructor(readonly columns: number) {}

  /** Takes text with escape sequences, which may be cut anywhere. */
  write(text: string): void {
    const all = this.#rest + text;
    // deno-lint-ignore no-control-regex
    const parts = /\x1b\[([?\d;]*)([@-~])|[^]/gu;
    let end = 0;
    for (const match of all.matchAll(parts)) {
      const [part, numbers, command] = match;
      if (part === "\x1b" && PARTIAL.test(all.slice(match.index))) break;
      end = match.index + part.length;
      if (command === undefined) this.#put(part);
      else this.#command(command, Number(numbers) || 0);
    }
    this.#rest = all.slice(end);
  }

  #put(character: string): void {
    if (character === "\r") this.#column = 0;
    else if (character === "\n") this.#down();
    else {
      if (this.#column === this.columns) {
        this.#column = 0;
        this.#down();
      }
      const row = this.#rows[this.#row];
      while (row.length < this.#column) row.push(" ");
      row[this.#column++] = character;
    }
  }

  #down(): void {
    this.#row++;
    if (this.#row === this.#rows.length) this.#rows.push([]);
  }

  #command(command: string, n: number): void {
    const row = this.#rows[this.#row];
    if (command === "A") this.#row = Math.max(0, this.#row - (n || 1));
    else if (command === "C") this.#column += n || 1;
    else if (command === "G") this.#column = Math.max(0, n - 1);
    else if (command === "K" && n === 2) row.length = 0;
    else if (command === "K") row.length = Math.min(row.length, this.#column);
    else if (command === "J" && n === 0) {
      row.length = Math.min(row.length, this.#column);
      this.#rows.length = this.#row + 1;
    }
  }

  /** The rows, without white space at their ends, and the cursor as `|`. */
  text(cursor = false): string {
    return this.#rows.map((row, i) => {
      const shown = [...row];
      if (cursor && i === this.#row) {
        while (shown.length < this.#column) shown.push(" ");
        shown.splice(this.#column, 0, "|");
      }
      return shown.join("").trimEnd();
    }).join("\n");
  }
}

/** A running task. */
export interface TerminalTask extends AsyncDisposable {
  readonly screen: Screen;
  /** Everything it has written. */
  readonly written: () => string;
  /** Presses keys. */
  type(keys: string): Promise<void>;
  /** Waits until the screen shows a text, with the cursor as `|` if the text has one. */
  until(text: string): Promise<void>;
  /** Waits for its end; returns the exit code. */
  ended(): Promise<number>;
}

/** Starts a task on a terminal that util-linux's script makes. */
export function startOnTerminal(
  command: string,
  { columns = 80, env = {} }: {
    columns?: number;
    env?: Record<string, string>;
  } = {},
): TerminalTask {
  const deno = [Deno.execPath(), ...RUN].join(" ");
  const line = `stty cols ${columns} rows 24; exec ${deno} ${command}`;
  const child = new Deno.Command("script", {
    args: ["-qfec", line, "/dev/null"],
    cwd: new URL("../..", import.meta.url),
    env: { TERM: "xterm", NO_COLOR: "", ...env },
    stdin: "piped",
    stdout: "piped",
    stderr: "null",
  }).spawn();
  const writer = child.stdin.getWriter(), encoder = new TextEncoder();
  const screen = new Screen(columns), decoder = new TextDecoder();
  let written = "", arrived = Promise.withResolvers<boolean>();
  const reading = (async () => {
    for await (const bytes of child.stdout) {
      const text = decoder.decode(bytes, { stream: true });
      written += text;
      screen.write(text);
      arrived.resolve(true);
      arrived = Promise.withResolvers();
    }
    arrived.resolve(false);
  })();
  return {
    screen,
    written: () => written,
    type: (keys) => writer.write(encoder.encode(keys)),
    async until(text) {
      for (let more = true; !screen.text(text.includes("|")).includes(text);) {
        if (!more) {
          throw new Error(
            `Cannot find ${JSON.stringify(text)} on:\n${screen.text(true)}`,
          );
        }
        more = await arrived.promise;
      }
    },
    async ended() {
      await reading;
      return (await child.status).code;
    },
    async [Symbol.asyncDispose]() {
      await writer.close().catch(() => {});
      try {
        child.kill();
      } catch { /* it has ended */ }
      await reading;
      await child.status;
    },
  };
}
