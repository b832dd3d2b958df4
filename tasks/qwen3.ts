/**
 * Every task as a command of one program:
 *
 *   deno install -g -A -n qwen3 tasks/qwen3.ts      # or the URL of this file
 *   qwen3 generate "Once upon a time"
 *   qwen3 generate --help
 *
 * @module
 */
import { tryInstead } from "../lib/text/messages.ts";
import { stderr } from "./colour.ts";
import { startAs } from "./command.ts";
import { versionText } from "./flags.ts";

/** What each command does, and its script, which runs when it is imported. */
const COMMANDS: Record<string, [what: string, run: () => Promise<unknown>]> = {
  generate: ["generate a reply to a prompt", () => import("./generate.ts")],
  chat: ["hold a conversation", () => import("./chat.ts")],
  embed: [
    "print vectors of texts, or sort texts by a query",
    () => import("./embed.ts"),
  ],
  serve: [
    "serve a model to clients of OpenAI's API",
    () => import("./serve.ts"),
  ],
  batch: [
    "answer the requests of a file, as OpenAI's batches do",
    () => import("./batch.ts"),
  ],
  doctor: ["find out what is wrong", () => import("./doctor.ts")],
  profile: ["show where the time goes", () => import("./profile.ts")],
  tune: ["find the best constants for a GPU", () => import("./tune.ts")],
  bench: ["measure this machine", () => import("./bench.ts")],
  show: ["print a kernel's finished WGSL", () => import("./show.ts")],
  cache: [
    "list and clear copies of models from http(s) URLs",
    () => import("./cache.ts"),
  ],
  quantize: [
    "write a model as a GGUF file, quantised or not",
    () => import("./quantize.ts"),
  ],
  radv: ["compile the kernels as for AMD", () => import("./radv.ts")],
};

const HELP = `qwen3 COMMAND …

${
  Object.entries(COMMANDS).map(([name, [what]]) =>
    `  ${name.padEnd(10)} ${what}`
  ).join("\n")
}

  --help, -h  print this text; qwen3 COMMAND --help prints a command's
  --version   print the version`;

const [name, ...rest] = Deno.args;
const command = name !== undefined && Object.hasOwn(COMMANDS, name)
  ? COMMANDS[name]
  : undefined;
if (command !== undefined) {
  startAs("qwen3", rest);
  await command[1]();
} else if (["--help", "-h", "help"].includes(name)) console.log(HELP);
else if (name === "--version") console.log(versionText());
else if (name === undefined) {
  console.error(HELP);
  Deno.exit(1);
} else {
  console.error(
    `${stderr.red("error:")} Cannot run ${
      JSON.stringify(name)
    }: there is no such command, ${
      tryInstead(name, Object.keys(COMMANDS), "qwen3 --help")
    }`,
  );
  Deno.exit(1);
}
