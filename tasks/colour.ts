/**
 * Colours for text on a terminal. Text for a pipe or a file stays plain, and so does all
 * text where NO_COLOR is set (https://no-color.org) or the terminal is dumb.
 *
 * @module
 */

/** Marks text for one stream. */
export interface Colours {
  /** Whether the stream shows colours. */
  readonly on: boolean;
  red(text: string): string;
  yellow(text: string): string;
  green(text: string): string;
  bold(text: string): string;
  dim(text: string): string;
}

/** The colours of a stream, if it shows any. */
export function coloursOf(
  stream: { isTerminal(): boolean },
  plain = Deno.noColor,
): Colours {
  const on = !plain && stream.isTerminal() && Deno.env.get("TERM") !== "dumb";
  const mark = (begin: number, end: number) => (text: string) =>
    on && text !== "" ? `\x1b[${begin}m${text}\x1b[${end}m` : text;
  return {
    on,
    red: mark(31, 39),
    yellow: mark(33, 39),
    green: mark(32, 39),
    bold: mark(1, 22),
    dim: mark(2, 22),
  };
}

/** Colours for what a task prints on stdout. */
export const stdout: Colours = coloursOf(Deno.stdout);

/** Colours for what a task prints on stderr. */
export const stderr: Colours = coloursOf(Deno.stderr);
