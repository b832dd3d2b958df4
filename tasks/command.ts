/**
 * How the user started a task: as `deno task NAME`, or as a command of `qwen3`.
 *
 * @module
 */

let program = "deno task", args: readonly string[] = Deno.args;

/** Lets the task that is imported next be `PROGRAM NAME` with these arguments. */
export function startAs(name: string, rest: readonly string[]): void {
  [program, args] = [name, rest];
}

/** The arguments of the task. */
export function taskArgs(): string[] {
  return [...args];
}

/** A text in which tasks are named as the user types them: `qwen3 show` for `deno task show`. */
export function asTyped(text: string): string {
  return text.replaceAll("deno task ", `${program} `);
}
