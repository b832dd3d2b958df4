/**
 * How the user started a task: as `deno task NAME`, or as a command of `qwen3`.
 *
 * @module
 */

import { fileURLToPath } from "node:url";

let program = "deno task", args: readonly string[] = Deno.args;

/** Lets the task that is imported next be `PROGRAM NAME` with these arguments. */
export function startAs(name: string, rest: readonly string[]): void {
  [program, args] = [name, rest];
}

/** The arguments of the task. */
export function taskArgs(): string[] {
  return [...args];
}

/** A script of tasks/ as the user finds it: an installed command has no checkout. */
export function scriptText(name: string): string {
  if (program === "deno task") return `tasks/${name}`;
  const url = new URL(name, import.meta.url);
  return url.protocol === "file:" ? fileURLToPath(url) : url.href;
}

/** A text in which tasks are named as the user types them: `qwen3 show` for `deno task show`. */
export function asTyped(text: string): string {
  return text.replaceAll("deno task ", `${program} `);
}
