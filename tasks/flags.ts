/**
 * Shared by the tasks: flags, help and errors. Parsing is strict, so a typo is an error.
 *
 * @module
 */
import { parseArgs } from "node:util";
import { prepareEnvironment } from "../lib/webgpu/environment.ts";
import { asTyped, taskArgs } from "./command.ts";
import { described, errorText, explained } from "../lib/errors.ts";
import type { Format } from "../lib/formats/format.ts";
import { formatNames, FORMATS } from "../lib/formats/mod.ts";
import { nearest, shortened, WIDTH, wrap } from "../lib/text/messages.ts";

/** The kind of value that a flag takes. */
export type FlagType = "text" | "texts" | "number" | "switch";

/** Flags by name: the value they take and their help. */
export type FlagTable = Record<string, [type: FlagType, help: string]>;

/** The flags given, by kebab-case name, and the other arguments. */
export interface Flags {
  text(name: string): string | undefined;
  texts(name: string): string[] | undefined;
  number(name: string): number | undefined;
  /** A whole number from `least` to `most`. */
  whole(name: string, least: number, most?: number): number | undefined;
  /** One of `values`. */
  oneOf<T extends string>(name: string, values: readonly T[]): T | undefined;
  /** true, or false for `--no-name`, or undefined. */
  on(name: string): boolean | undefined;
  words: string[];
}

/** Parses `args`. A switch may be given as `--name` or `--no-name`. */
export function readFlags(args: string[], table: FlagTable): Flags {
  const of = (...types: FlagType[]) =>
    Object.keys(table).filter((name) => types.includes(table[name][0]));
  const values = of("text", "texts", "number"), switches = of("switch");
  const given: string[] = [], words: string[] = [], seen = new Set<string>();
  const refuse = (problem: string): never => {
    throw new Error(`Cannot read the flags: ${problem}`);
  };
  for (let i = 0; i < args.length; i++) {
    const arg = args[i];
    if (arg === "--") {
      words.push(...args.slice(i + 1));
      break;
    }
    if (!/^-[^\s]/.test(arg)) {
      words.push(arg);
      continue;
    }
    const [, name = "", joined] = /^--([^=]+)(=.*)?$/s.exec(arg) ?? [];
    const isSwitch = switches.includes(name.replace(/^no-/, ""));
    if (!values.includes(name) && !isSwitch) {
      const close = name && nearest(name, Object.keys(table));
      refuse(
        close
          ? `--${name} is unknown, try --${close} or --help`
          : `${
            shortened(name ? `--${name}` : arg, 16)
          } is unknown, try --help (text like this goes after --)`,
      );
    }
    const flag = name.replace(/^no-/, "");
    if (table[flag]?.[0] !== "texts" && seen.has(flag)) {
      refuse(`--${flag} is given twice, must be given once`);
    }
    seen.add(flag);
    if (isSwitch && joined !== undefined) {
      refuse(`--${name} takes no value, but ${joined.slice(1)} was given`);
    }
    if (isSwitch || joined !== undefined) {
      given.push(arg);
      continue;
    }
    const next = args[++i];
    if (next === undefined || /^--[a-z]/.test(next)) {
      refuse(
        `--${name} has no value, must be followed by a ${
          table[name][0] === "number" ? "number" : "text"
        }`,
      );
    }
    given.push(`--${name}=${next}`); // joined, since the value may begin with -
  }
  const { values: parsed } = parseArgs({
    args: given,
    allowNegative: true,
    options: Object.fromEntries(
      Object.entries(table).map(([name, [type]]) => [name, {
        type: type === "switch" ? "boolean" as const : "string" as const,
        multiple: type === "texts",
      }]),
    ),
  });
  const text = (name: string) => parsed[name] as string | undefined;
  const wrong = (name: string, value: unknown, must: string): never =>
    refuse(`--${name} is ${described(value)}, must be ${must}`);
  const number = (name: string) => {
    const value = text(name);
    if (value === undefined) return undefined;
    const number = Number(value);
    return value.trim() === "" || !Number.isFinite(number)
      ? wrong(name, value, "a finite number")
      : number;
  };
  return {
    text,
    texts: (name) => {
      const all = parsed[name] as string[] | undefined;
      return all?.length ? all : undefined;
    },
    number,
    whole(name, least, most) {
      const value = number(name);
      if (value === undefined) return undefined;
      const fits = Number.isSafeInteger(value) && value >= least &&
        value <= (most ?? value);
      return fits ? value : wrong(
        name,
        value,
        most === undefined
          ? `an integer of at least ${least}`
          : `an integer from ${least} to ${most}`,
      );
    },
    oneOf(name, values) {
      const value = text(name);
      return values.find((one) => one === value) ??
        (value === undefined ? undefined : wrong(
          name,
          value,
          values.join(", ").replace(/, (?=[^,]*$)/, " or "),
        ));
    },
    on: (name) => parsed[name] as boolean | undefined,
    words,
  };
}

/** Reads repeated `--set NAME=NUMBER` as a kernel's constants. */
export function readConstants(
  flags: Flags,
  cannot: string,
): Record<string, number> {
  const constants: Record<string, number> = {};
  for (const pair of flags.texts("set") ?? []) {
    const [, constant, value] = /^(\w+)=(\d+)$/.exec(pair) ?? [];
    if (!constant) {
      throw new Error(
        `${cannot}: --set is ${described(pair)}, must be like WORKGROUP=64`,
      );
    }
    if (Object.hasOwn(constants, constant)) {
      throw new Error(
        `${cannot}: --set gives ${constant} twice, must be given once`,
      );
    }
    constants[constant] = Number(value);
  }
  return constants;
}

/** The entry of `--dtype` in a table of flags. */
export const DTYPE_FLAG: FlagTable[string] = [
  "text",
  `stored type of the weights, one of ${formatNames()}; bf16 by default`,
];

/** Reads `--dtype`, the stored type of a model's weights; bf16 by default. */
export function readFormat(flags: Flags, cannot: string): Format {
  const dtype = flags.text("dtype") ?? "bf16";
  const format = FORMATS.find(({ name }) => name === dtype);
  if (!format) {
    throw new Error(
      `${cannot}: --dtype is "${dtype}", must be one of ${formatNames()}`,
    );
  }
  return format;
}

/** The text of `--help`, with `notes` below the flags. */
export function helpText(
  usage: string,
  table: FlagTable,
  notes?: string,
): string {
  const width = Math.max(...Object.keys(table).map((name) => name.length));
  const lines = Object.entries(table).flatMap(([name, [type, help]]) => {
    const flag = `--${name}${type === "switch" ? "" : " …"}`;
    const first = `  ${flag.padEnd(width + 5)} `;
    return wrap(help, WIDTH, first, " ".repeat(first.length));
  });
  const notesLines = (notes?.split("\n") ?? []).flatMap((line) =>
    line.length > WIDTH ? wrap(line, WIDTH, "", "  ") : line
  );
  return [usage, "", ...lines, ...(notes ? ["", ...notesLines] : [])]
    .join("\n");
}

/** A task as `--help` describes it. */
export interface Task {
  usage: string;
  flags: FlagTable;
  /** Help text below the flags. */
  notes?: string;
  /** Those of the command line by default. */
  args?: string[];
  /** For a task that takes flags only: the verb of the error for any other argument. */
  flagsOnly?: string;
}

/**
 * Runs a task with its flags, or prints its `--help`. An error prints one line on stderr
 * and exits with code 1.
 */
export async function runTask(
  task: Task,
  main: (flags: Flags) => Promise<number>,
): Promise<never> {
  try {
    prepareEnvironment();
    Deno.exit(await runWithFlags(task, main));
  } catch (error) {
    if (error instanceof Deno.errors.BrokenPipe) Deno.exit(0); // the reader left
    const text = errorText(explained("run this task", error));
    console.error(`error: ${asTyped(text)}`);
    Deno.exit(1);
  }
}

async function runWithFlags(
  { usage, flags: table, notes, args = taskArgs(), flagsOnly }: Task,
  main: (flags: Flags) => Promise<number>,
): Promise<number> {
  const all: FlagTable = { ...table, help: ["switch", "print this text"] };
  const flags = readFlags(args, all);
  if (flags.on("help")) {
    console.log(asTyped(helpText(usage, all, notes)));
    return 0;
  }
  const [word] = flags.words;
  if (flagsOnly !== undefined && word !== undefined) {
    throw new Error(
      `Cannot ${flagsOnly}: unexpected argument "${word}", this task takes flags only`,
    );
  }
  return await main(flags);
}
