/**
 * Shared by the tasks: flags, help, errors, and where relative paths begin. Parsing is
 * strict, so a typo is an error.
 *
 * @module
 */
import { prepareEnvironment } from "../lib/webgpu/environment.ts";
import { asTyped, taskArgs } from "./command.ts";
import { stderr } from "./colour.ts";
import { described, errorText, explained, OptionError } from "../lib/errors.ts";
import type { Format } from "../lib/formats/format.ts";
import { formatNames, FORMATS } from "../lib/formats/mod.ts";
import {
  nearest,
  shortened,
  tryInstead,
  WIDTH,
  wrap,
} from "../lib/text/messages.ts";
import project from "../deno.json" with { type: "json" };

/** The kind of value that a flag takes. */
export type FlagType = "text" | "texts" | "number" | "switch";

/** Flags by name: the value they take, their help, and what they are if not given. */
export type FlagTable = Record<
  string,
  [type: FlagType, help: string, standard?: string | number]
>;

/** The flags given, by kebab-case name, and the other arguments. */
export interface Flags {
  text(name: string): string | undefined;
  texts(name: string): string[] | undefined;
  /** All values of a flag, none of them empty. */
  filled(name: string): string[];
  number(name: string): number | undefined;
  /** A whole number from `least` to `most`. */
  whole(name: string, least: number, most?: number): number | undefined;
  /** One of `values`. */
  oneOf<T extends string>(name: string, values: readonly T[]): T | undefined;
  /** true, or false for `--no-name`, or undefined. */
  on(name: string): boolean | undefined;
  words: string[];
}

/** `, did you mean NAME?` if a known name is close, else nothing. */
export function didYouMean(name: string, known: readonly string[]): string {
  const close = nearest(name, known);
  return close === undefined ? "" : `, did you mean ${close}?`;
}

/** `a, b or c`. */
function alternatives(names: readonly string[]): string {
  return names.join(", ").replace(/, (?=[^,]*$)/, " or ");
}

function refuse(problem: string): never {
  throw new Error(`Cannot read the flags: ${problem}`);
}

/** Refuses an argument that looks like a flag but is none. */
function refuseUnknown(arg: string, table: FlagTable): never {
  const [, dashes, name] = /^(--?)([^=]*)/s.exec(arg)!;
  const known = Object.entries(table).flatMap(([flag, [type]]) =>
    type === "switch" ? [flag, `no-${flag}`] : [flag]
  );
  const close = name.length === 1
    ? Object.keys(table).filter((flag) => flag.startsWith(name)).slice(0, 4)
    : [nearest(name, known) ?? nearest(name.replace(/^no-/, ""), known) ?? []]
      .flat();
  if (close.length > 0) {
    const flags = alternatives(close.map((flag) => `--${flag}`));
    refuse(
      `${dashes}${shortened(name, 24)} is unknown, did you mean ${flags}?`,
    );
  }
  const whole = dashes === "--" && name !== "" ? dashes + name : arg;
  const shown = shortened(whole, 16);
  refuse(`${shown} is unknown, try --help (text like this goes after --)`);
}

/** Parses `args`. A switch may be given as `--name` or `--no-name`. */
export function readFlags(args: string[], table: FlagTable): Flags {
  const given = new Map<string, string[]>(), words: string[] = [];
  const switched = new Map<string, boolean>();
  for (let i = 0; i < args.length; i++) {
    const arg = args[i] === "-h" && "help" in table ? "--help" : args[i];
    if (arg === "--") {
      words.push(...args.slice(i + 1));
      break;
    }
    if (!/^-[^\s]/.test(arg)) {
      words.push(arg);
      continue;
    }
    const [, name = "", joined] = /^--([^=]+)(=.*)?$/s.exec(arg) ?? [];
    const flag = Object.hasOwn(table, name) ? name : name.replace(/^no-/, "");
    const type = Object.hasOwn(table, flag) ? table[flag][0] : undefined;
    const isSwitch = type === "switch";
    if (type === undefined || !isSwitch && flag !== name) {
      refuseUnknown(arg, table);
    }
    if (type !== "texts" && (given.has(flag) || switched.has(flag))) {
      refuse(`--${flag} is given twice, must be given once`);
    }
    if (isSwitch) {
      if (joined !== undefined) {
        refuse(
          `--${name} takes no value, but ${
            shortened(joined.slice(1), 40)
          } was given`,
        );
      }
      switched.set(flag, flag === name);
      continue;
    }
    const value = joined?.slice(1) ?? args[++i];
    if (value === undefined || joined === undefined && /^--[a-z]/.test(value)) {
      refuse(
        `--${name} has no value, must be followed by a ${
          type === "number" ? "number" : "text"
        }`,
      );
    }
    given.set(flag, [...given.get(flag) ?? [], value]);
  }
  return flagsOf(given, switched, words);
}

/** Reads values that were given as what each should be. */
function flagsOf(
  given: ReadonlyMap<string, string[]>,
  switched: ReadonlyMap<string, boolean>,
  words: string[],
): Flags {
  const text = (name: string) => given.get(name)?.[0];
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
    texts: (name) => given.get(name),
    filled(name) {
      const values = given.get(name) ?? [];
      if (!values.includes("")) return values;
      return refuse(`--${name} is empty, must be a text`);
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
      if (value === undefined) return undefined;
      const close = didYouMean(value, values);
      return values.find((one) => one === value) ??
        wrong(name, value, `${alternatives(values)}${close}`);
    },
    on: (name) => switched.get(name),
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
  `stored type of the weights, one of ${formatNames()}`,
  "bf16",
];

/** Reads `--dtype`, the stored type of a model's weights; bf16 by default. */
export function readFormat(flags: Flags, cannot: string): Format {
  const dtype = flags.text("dtype") ?? "bf16";
  const format = FORMATS.find(({ name }) => name === dtype);
  if (!format) {
    throw new Error(
      `${cannot}: --dtype is ${described(dtype)}, must be a stored type: ${
        tryInstead(dtype, FORMATS.map(({ name }) => name), "--help")
      }`,
    );
  }
  return format;
}

/** Environment variables that tasks read, for `--help`. */
const VARIABLES = {
  HF_TOKEN: "token for private and gated repositories of the Hugging Face Hub",
  HF_TOKEN_PATH: "file of that token (default: $HF_HOME/token)",
  HF_HOME: "folder of downloads and token (default: ~/.cache/huggingface)",
  HF_HUB_CACHE: "folder of downloaded models (default: $HF_HOME/hub)",
  HF_HUB_OFFLINE: "1 forbids requests to the Hub: only downloaded models open",
  HF_ENDPOINT: "URL of a mirror of the Hub (default: https://huggingface.co)",
  DENO_WEBGPU_BACKEND:
    "graphics APIs to try, comma-separated (default: vulkan,metal,dx12)",
  QWEN3_CACHE_DIR:
    "folder of copies of web folders and of the history of chat (default: ~/.cache/qwen3-webgpu)",
  QWEN3_TUNING_DIR: "folder of tuned constants (default: $QWEN3_CACHE_DIR)",
  QWEN3_API_KEY: "key that clients of the server must send (--api-key)",
  NO_COLOR: "any value turns colours off",
};

/** Whether a variable matters to a task: only one that runs a model chooses a device. */
function matters(name: string, flags: FlagTable): boolean {
  if (name === "QWEN3_API_KEY") return "api-key" in flags;
  if (name === "NO_COLOR" || "model" in flags) return true;
  return "read-timeout" in flags && /^HF_|^QWEN3_CACHE_DIR$/.test(name);
}

/** The part of {@linkcode Task} that `--help` prints. */
export type Described = Pick<Task, "usage" | "flags" | "notes" | "examples">;

/** The text of `--help`. */
export function helpText({ usage, flags, notes, examples }: Described): string {
  const label = (name: string, type: FlagType) =>
    `  --${name}${name === "help" ? ", -h" : type === "switch" ? "" : " …"}`;
  const table = Object.entries(flags).map((
    [name, [type, help, standard]],
  ): [string, string] => [
    label(name, type),
    standard === undefined ? help : `${help} (default: ${standard})`,
  ]);
  const variables = Object.entries(VARIABLES)
    .filter(([name]) => matters(name, flags))
    .map(([name, help]): [string, string] => [`  ${name}`, help]);
  const notesLines = (notes?.split("\n") ?? []).flatMap((line) =>
    line.length > WIDTH ? wrap(line, WIDTH, "", "  ") : line
  );
  const parts = [
    wrap(usage, WIDTH, "", "  "),
    columns(table),
    notesLines,
    examples && ["Examples:", ...examples.map((line) => `  ${line}`)],
    ["Environment variables:", ...columns(variables)],
  ];
  return parts.filter((part) => part?.length).map((part) => part!.join("\n"))
    .join("\n\n");
}

/** Lines of two columns, the second wrapped. */
function columns(rows: [left: string, right: string][]): string[] {
  const width = Math.max(...rows.map(([left]) => left.length)) + 2;
  return rows.flatMap(([left, right]) =>
    wrap(right, WIDTH, left.padEnd(width), " ".repeat(width))
  );
}

/** What `--version` prints. */
export function versionText(): string {
  const { deno, v8 } = Deno.version;
  return `${project.name} ${project.version}, Deno ${deno}, V8 ${v8}`;
}

/** A task as `--help` describes it. */
export interface Task {
  usage: string;
  flags: FlagTable;
  /** Help text below the flags. */
  notes?: string;
  /** Commands, one a line. */
  examples?: readonly string[];
  /** Those of the command line by default. */
  args?: string[];
  /** For a task that takes flags only: the verb of the error for any other argument. */
  flagsOnly?: string;
}

/**
 * Runs a task with its flags, or prints its `--help` or `--version`. An error prints one
 * line on stderr and exits with code 1.
 */
export async function runTask(
  task: Task,
  main: (flags: Flags) => Promise<number>,
): Promise<never> {
  try {
    prepareEnvironment();
    goToUser();
    Deno.exit(await runWithFlags(task, main));
  } catch (error) {
    if (error instanceof Deno.errors.BrokenPipe) Deno.exit(0); // the reader left
    const named = nameFlags(explained("run this task", error), task.flags);
    console.error(`${stderr.red("error:")} ${asTyped(errorText(named))}`);
    Deno.exit(1);
  }
}

/** Options of the library whose flags have another name. */
const FLAG_OF: Record<string, string> = { thinking: "think" };

/** Lets an error of the library name the flags that set the options it names. */
export function nameFlags(error: unknown, table: FlagTable): unknown {
  if (!(error instanceof Error)) return error;
  if (error instanceof OptionError) {
    const { option, message } = error, flag = FLAG_OF[option] ?? option;
    if (Object.hasOwn(table, flag)) {
      error.message = message.replace(`: ${option} `, `: --${flag} `);
    }
  }
  // A word such as maxTokens is an option wherever it stands.
  for (const flag of Object.keys(table).filter((name) => /-/.test(name))) {
    const option = flag.replaceAll(
      /-(.)/g,
      (_, letter) => letter.toUpperCase(),
    );
    error.message = error.message
      .replaceAll(
        new RegExp(`(?<![\\w/"])${option}(?![\\w/"])`, "g"),
        `--${flag}`,
      );
  }
  return error;
}

/** The project's folder, which has deno.json. */
const PROJECT = new URL("..", import.meta.url);

/**
 * Makes relative paths begin where the user stands. `deno task` runs a task in the
 * project's folder and leaves that place in INIT_CWD.
 */
function goToUser(): void {
  const place = Deno.env.get("INIT_CWD");
  if (!place) return;
  Deno.env.delete("INIT_CWD"); // processes that the task starts stand here
  // npm sets the variable too, and then the current folder is the right one.
  if (PROJECT.protocol !== "file:") return;
  try {
    if (Deno.realPathSync(".") === Deno.realPathSync(PROJECT)) {
      Deno.chdir(place);
    }
  } catch { /* the place is gone */ }
}

async function runWithFlags(
  task: Task,
  main: (flags: Flags) => Promise<number>,
): Promise<number> {
  const { args = taskArgs(), flagsOnly } = task;
  const all: FlagTable = {
    ...task.flags,
    help: ["switch", "print this text"],
    version: ["switch", "print the version"],
  };
  const flags = readFlags(args, all);
  if (flags.on("help")) {
    console.log(asTyped(helpText({ ...task, flags: all })));
    return 0;
  }
  if (flags.on("version")) {
    console.log(versionText());
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
