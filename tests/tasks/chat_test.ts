/** `deno task chat` with lines from stdin, and on a terminal. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import type { Outcome } from "../support/run_task.ts";
import { RUN } from "../support/run_task.ts";
import { Screen, startOnTerminal } from "../support/terminal.ts";
import { scriptedCheckpoint } from "../support/scripted_checkpoint.ts";

const ROOT = new URL("../..", import.meta.url);
const STORY = "--device cpu --temperature 0 --max-tokens 8".split(" ");

/** Runs the task with lines on stdin. */
async function chat(
  input: string,
  args: readonly string[] = STORY,
  env: Record<string, string> = {},
): Promise<Outcome> {
  const child = new Deno.Command(Deno.execPath(), {
    args: [...RUN, "tasks/chat.ts", ...args],
    cwd: ROOT,
    env: { NO_COLOR: "1", ...env },
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(input)).catch(() => {});
  await writer.close().catch(() => {});
  const { code, stdout, stderr } = await child.output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, stdout: text(stdout), stderr: text(stderr) };
}

interface Event {
  event: string;
  [field: string]: unknown;
}

const eventsOf = ({ stdout }: Outcome): Event[] =>
  stdout.trimEnd().split("\n").map((line) => JSON.parse(line));

async function tempFolder() {
  const path = await Deno.makeTempDir();
  return {
    path,
    [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }),
  };
}

Deno.test("each line of stdin is a turn", async () => {
  const { code, stdout, stderr } = await chat(
    "Once upon a time\n\nShe had a cat\r\n/stats\n/undo\n/edit A dog",
  );
  assertEquals(code, 0, stderr);
  const lines = stdout.split("\n");
  assertEquals(lines.length, 4, stdout);
  assertEquals(lines[0], ", there was a little girl named Lily");
  assertMatch(stderr, /^2 turns, \d+ of 1024 tokens; /m);
  assertMatch(stderr, /\(12 cached\)/);
  assertMatch(stderr, /^Took back: She had a cat \(1 turn left\)$/m);
  assertMatch(stderr, /^\(cut off after 8 tokens\)$/m);
  const words = await chat("", [...STORY, "Once", "upon", "a time"]);
  assertEquals(words.stdout, `${lines[0]}\n`);
});

Deno.test("events are lines of JSON, and nothing else is on stdout", async () => {
  const outcome = await chat(
    "Once upon a time\n/system A tale.\n/stats\n/reset\n/help\n/thoughts hidden\n",
    [...STORY, "--json"],
  );
  assertEquals(outcome.code, 0, outcome.stderr);
  const events = eventsOf(outcome);
  const texts = events.filter(({ event }) => event === "text");
  const end = events.find(({ event }) => event === "end")!;
  assertEquals(texts.map(({ text }) => text).join(""), end.text);
  assertEquals(end.finishReason, "length");
  assertEquals([end.promptTokens, end.cachedTokens, end.tokens], [5, 0, 8]);
  assertEquals(
    events.filter(({ event }) => event !== "text").map(({ event }) => event),
    ["end", "system", "stats", "reset", "help", "thoughts"],
  );
  const [stats] = events.filter(({ event }) => event === "stats");
  assertEquals([stats.turns, stats.tokens, stats.context], [1, 13, 1024]);
});

Deno.test("a conversation goes on in another process, which runs only what is new", async () => {
  await using folder = await tempFolder();
  const file = `${folder.path}/chat`;
  const begun = await chat(
    `Once upon a time\n/save ${file}\nShe had a cat\n`,
    [...STORY, "--json"],
  );
  const [saved] = eventsOf(begun).filter(({ event }) => event === "saved");
  assertEquals([saved.cachedTokens, saved.file], [12, file]);
  const expected = eventsOf(begun).at(-1)!;
  const resumed = await chat("She had a cat\n", [
    ...STORY,
    ...["--json", "--load", file],
  ]);
  assertEquals(resumed.code, 0, resumed.stderr);
  const [loaded, ...events] = eventsOf(resumed);
  assertEquals(loaded, {
    event: "loaded",
    turns: 1,
    tokens: 13,
    cachedTokens: 12,
  });
  const end = events.at(-1)!;
  assertEquals(end.text, expected.text);
  assertEquals(end.cachedTokens, 12);
  // With a cache of another type it runs again.
  const other = await chat(`/load ${file}\nShe had a cat\n`, [
    ...STORY,
    ...["--json", "--kv", "q8_0"],
  ]);
  assertEquals(other.code, 0, other.stderr);
  assertMatch(
    other.stderr,
    /^Its keys and values are f32, this model's are q8_0: the conversation runs again\.$/m,
  );
  assertEquals(eventsOf(other).at(-1)!.cachedTokens, 0);
});

Deno.test("what is wrong ends a script with one line", async () => {
  const cases: [input: string, args: string[], message: string][] = [
    [
      "/sav x\n",
      [],
      "Cannot run /sav: there is no such command, try /save or /help (// begins a message with /)",
    ],
    ["/edit\n", [], "Cannot edit: there is no message yet"],
    [
      "/undo\n",
      [],
      "Cannot undo: the number of turns is 1, the conversation has 0",
    ],
    [
      "/undo x\n",
      [],
      "Cannot undo: the number of turns is NaN, must be at least 1",
    ],
    ["/save\n", [], "Cannot save: the file is missing, as in /save FILE"],
    [
      "/load /none/x\n",
      [],
      "Cannot load the chat in /none/x: there is no such file",
    ],
    ["/load /\n", [], "Cannot load the chat in /: it is not a regular file"],
    [
      "/thoughts x\n",
      [],
      "Cannot run /thoughts: x is given, must be dimmed or hidden",
    ],
    [
      "Hi\n",
      ["--on-full", "forget"],
      'Cannot read the flags: --on-full is "forget", must be drop or refuse',
    ],
    [
      "Hi\n",
      ["--chat-template", "/none/x"],
      "Cannot read the chat template in /none/x: No such file or directory",
    ],
    [
      "a little dog ran\n".repeat(9),
      ["--context", "32", "--on-full", "refuse"],
      "the context of 32 has room for no reply",
    ],
  ];
  for (const [input, args, message] of cases) {
    const { code, stderr } = await chat(input, [...STORY, ...args]);
    assertEquals(code, 1, stderr);
    const last = stderr.trimEnd().split("\n").at(-1)!;
    assert(last.startsWith("error: Cannot ") && last.includes(message), last);
  }
  const slash = await chat("//sav is a word\n", STORY);
  assertEquals(slash.code, 0, slash.stderr);
  await using plain = await scriptedCheckpoint({ reply: "Hi" });
  const base = await chat("Hi\n", ["--device", "cpu", "--model", plain.path]);
  assertMatch(
    base.stderr,
    /^error: Cannot chat: \S+ has no chat template, the option --chat-template can give one$/m,
  );
});

const TEMPLATE = `{% for m in messages %}[{{ m.role }}]{{ m.content }}
{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}
{%- if m.reasoning_content %}{{ m.reasoning_content }}{% endif %}{% endfor %}
{{- tools | tojson }}[assistant]{{ "\\n" }}`;
const CALL = '{"name": "f", "arguments": {"a": 1}}';
const scripted = (reply: string) =>
  scriptedCheckpoint({
    reply,
    template: TEMPLATE,
    special: ["<think>", "</think>", "<tool_call>", "</tool_call>"],
  });

Deno.test("the line after a call is its result", async () => {
  const block = `<tool_call>\n${CALL}\n</tool_call>`;
  await using model = await scripted(`<think>\nHm.\n</think>\n\n${block}`);
  await using folder = await tempFolder();
  const tools = `${folder.path}/tools.json`;
  await Deno.writeTextFile(
    tools,
    JSON.stringify([{ type: "function", function: { name: "f" } }]),
  );
  const args = ["--device", "cpu", "--model", model.path];
  const json = await chat(`/tools ${tools}\nHi\n4\n/undo\n`, [
    ...args,
    "--json",
  ]);
  assertEquals(json.code, 0, json.stderr);
  const events = eventsOf(json);
  assertEquals(events[0], { event: "tools", tools: ["f"] });
  const reasoning = events.filter(({ event }) => event === "reasoning");
  assertEquals(reasoning.map(({ text }) => text).join(""), "Hm.Hm.");
  assertEquals(events.filter(({ event }) => event === "call").length, 2);
  const undone = events.at(-1)!.messages as { role: string; content: string }[];
  assertEquals(undone.map(({ role, content }) => [role, content]), [
    ["user", "Hi"],
    ["assistant", ""],
    ["tool", "4"],
    ["assistant", ""],
  ]);
  const text = await chat("Hi\n", [...args, "--tools", tools]);
  assertEquals(text.stdout, '{"name":"f","arguments":{"a":1}}\n');
  assertMatch(text.stderr, /^Thinking:\nHm\.$/m);
  const hidden = await chat("Hi\n", [...args, "--thoughts", "hidden"]);
  assert(!hidden.stderr.includes("Thinking"), hidden.stderr);
});

// util-linux's script makes the terminal.
const terminalTest = (name: string, fn: () => Promise<void>) =>
  Deno.test({ name, ignore: Deno.build.os !== "linux", fn });

Deno.test("the screen of these tests shows what a terminal does", () => {
  const screen = new Screen(6);
  for (
    const part of ["abcdefgh\r\nx\x1b", "[2A\rZ\x1b[2CY", "\x1b[31mQ\x1b[0m"]
  ) {
    screen.write(part);
  }
  assertEquals(screen.text(true), "ZbcYQ|f\ngh\nx");
  screen.write("\x1b[J");
  assertEquals(screen.text(), "ZbcYQ");
  screen.write("\r\x1b[K1\n\x1b[1G2\x1b[2K");
  assertEquals(screen.text(true), "1\n |");
});

const STORY_TASK = `tasks/chat.ts ${STORY.join(" ")}`;

terminalTest(
  "a message is edited, sent, changed and searched for",
  async () => {
    await using folder = await tempFolder();
    const env = { QWEN3_CACHE_DIR: folder.path };
    {
      await using task = startOnTerminal(STORY_TASK, { env, columns: 60 });
      await task.until("> |");
      await task.type("Once upin a tume\x1b[D\x1b[D\x7fi");
      await task.until("> Once upin a ti|me");
      await task.type("\x1bb\x1bb\x02\x02\x7fo\x05\r");
      await task.until(
        "> Once upon a time\n, there was a little girl named Lily\n",
      );
      await task.until("(cut off after 8 tokens)\n> |");
      await task.type("\x1b[200~She had\ra cat\x1b[201~");
      await task.until("> She had\n  a cat|");
      await task.type("\r");
      await task.until("a cat\n");
      await task.until(")\n> |");
      await task.type("/edit\r");
      await task.until("edit> She had\n      a cat|");
      await task.type("\x17\x7f\x17dog\r");
      await task.until(")\n> |");
      await task.type("/undo\r");
      await task.until(
        "Took back: She had dog (1 turn left)\n> |",
      );
      await task.type("/sta\t\r");
      await task.until("> /stats\n1 turn, ");
      await task.until("\n> |");
      await task.type("/foo\r");
      await task.until("error: Cannot run /foo: there is no such command");
      await task.until("/)\n> |");
      await task.type("\x04");
      assertEquals(await task.ended(), 0);
      // The terminal is as it was before.
      assert(task.written().includes("\x1b[?2004l"));
    }
    const { mode } = await Deno.stat(`${folder.path}/chat_history.jsonl`);
    assertEquals(mode! & 0o777, 0o600);
    await using task = startOnTerminal(STORY_TASK, { env, columns: 60 });
    await task.until("> |");
    await task.type("\x1b[A");
    await task.until("> /foo|");
    await task.type("\x1b[B\x12upon");
    await task.until('search "upon": Once |upon a time');
    await task.type("\x1b");
    await task.until("> |");
    await task.type("\x03");
    assertEquals(await task.ended(), 0);
  },
);

terminalTest("Ctrl-C stops the reply and keeps the session", async () => {
  const endless =
    "tasks/chat.ts --device cpu --temperature 0 --ignore-eos --no-history";
  await using task = startOnTerminal(endless);
  await task.until("> |");
  await task.type("Once upon a time\r");
  await task.until(", there was");
  await task.type("\x03");
  await task.until("(stopped)\n> |");
  await task.type("/stats\r");
  await task.until("\n1 turn, ");
  await task.until("\n> |");
  // What is typed before it is asked for waits.
  await task.type("/system\rgive up");
  await task.until("There is no system message.\n> give up|");
  await task.type("\x03");
  await task.until("> give up^C\n> |");
  await task.type("/quit\r");
  assertEquals(await task.ended(), 0);
});

terminalTest(
  "thoughts are dimmed or hidden, and calls ask for their results",
  async () => {
    const block = `<tool_call>\n${CALL}\n</tool_call>`;
    await using model = await scripted(
      `<think>\nHm, 1.\n</think>\n\nLet me look.\n${block}`,
    );
    const command =
      `tasks/chat.ts --device cpu --no-history --model ${model.path}`;
    await using task = startOnTerminal(command);
    await task.until("> |");
    await task.type("Hi\r");
    await task.until(
      '> Hi\nThinking:\nHm, 1.\n\nLet me look.\n{"name":"f","arguments":{"a":1}}\nresult of f> |',
    );
    assert(task.written().includes("\x1b[2mHm\x1b[22m"), task.written());
    await task.type("/thoughts\r");
    await task.until("Thoughts are hidden.\nresult of f> |");
    await task.type("4\r");
    await task.until('result of f> 4\nLet me look.\n{"name":"f"');
    assertEquals(task.screen.text().split("Thinking").length, 2);
    await task.type("\x04");
    assertEquals(await task.ended(), 0);
  },
);
