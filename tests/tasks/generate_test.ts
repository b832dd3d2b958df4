/** `deno task generate` as a process, with stdin, stdout, stderr and an exit code. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { gpuTest } from "../support/gpu.ts";
import { RUN } from "../support/run_task.ts";
import { scriptedCheckpoint } from "../support/scripted_checkpoint.ts";
import {
  copyCheckpoint,
  editHeader,
  type Header,
  type TempCheckpoint,
} from "../support/temp_checkpoint.ts";

const ROOT = new URL("../../", import.meta.url);
const TINY = new URL("tests/fixtures/tiny-tied-bf16/", ROOT);
const STORY = ", there was a little girl named Lily.";

interface Outcome {
  code: number;
  stdout: string;
  stderr: string;
}

function spawn(
  args: string[],
  command = [...RUN, "tasks/generate.ts"],
  env: Record<string, string> = {},
) {
  return new Deno.Command(Deno.execPath(), {
    args: [...command, ...args],
    cwd: ROOT,
    env: { NO_COLOR: "1", HF_HUB_OFFLINE: "1", HF_HUB_CACHE: "/none", ...env },
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
}

/** Runs the task to its end. */
async function generate(args: string[], stdin = ""): Promise<Outcome> {
  const child = spawn(args);
  const writer = child.stdin.getWriter();
  // A process that needs no stdin may end before it is written.
  await writer.write(new TextEncoder().encode(stdin)).catch(() => {});
  await writer.close().catch(() => {});
  return outcome(await child.output());
}

function outcome({ code, stdout, stderr }: Deno.CommandOutput): Outcome {
  const text = new TextDecoder();
  return { code, stdout: text.decode(stdout), stderr: text.decode(stderr) };
}

/** The notices on stderr, one per line, after a check that they fit 100 columns. */
function notices(stderr: string): string {
  for (const line of stderr.split("\n")) {
    if (line.startsWith("Task generate")) continue; // deno's own
    assert(line.length <= 100, `${line.length} columns: ${line}`);
  }
  return stderr.replaceAll("\n  ", " ");
}

const GREEDY = ["--temperature", "0", "--max-tokens", "9"];

Deno.test("deno task generate writes text to stdout and everything else to stderr", async () => {
  const child = spawn(
    ["Once upon a time", "--device", "cpu", ...GREEDY],
    ["task", "generate"],
  );
  await child.stdin.close();
  const { code, stdout, stderr } = outcome(await child.output());
  assertEquals([code, stdout], [0, `${STORY}\n`]);
  const lines = notices(stderr).trimEnd().split("\n")
    .filter((line) => !line.startsWith("Task generate")); // deno's own
  assertEquals(lines.length, 3, stderr);
  assertEquals(
    lines[0],
    "Using the embedded story model. For a real one: deno task generate PROMPT --model Qwen/Qwen3-0.6B",
  );
  assertEquals(lines[1], "Running on cpu: it was asked for.");
  assertMatch(
    lines[2],
    /^CPU \(\d+ threads?\): 5 prompt tokens at [\d.]+\/s, 9 tokens at [\d.]+\/s, the first after \d+ ms \(length, greedy\); loaded in [\d.,]+ m?s, [\d.]+ MB of memory$/,
  );
});

Deno.test("the README's command runs, with or without a GPU", async () => {
  const child = spawn(["Once upon a time"], ["task", "generate"]);
  await child.stdin.close();
  const { code, stdout, stderr } = outcome(await child.output());
  assertEquals(code, 0, stderr);
  assert(stdout.length > 20, stdout);
  const said = notices(stderr);
  assertMatch(said, /\nRunning on (gpu|cpu).*: .{10,}\.\n/);
  assertMatch(said, /\((stop|length), seed \d+\); loaded in .+ of memory\n$/);
});

/** The length of the prompt, and the reply, with words and a text on stdin. */
async function prompted(words: string[], stdin = "") {
  const args = [...words, "--device", "cpu", "--json", ...GREEDY];
  const { code, stdout, stderr } = await generate(args, stdin);
  assertEquals(code, 0, stderr);
  const { promptTokens, text } = JSON.parse(stdout);
  return { promptTokens, text };
}

Deno.test("the prompt is read from stdin if there are no words, or for -", async () => {
  const once = { promptTokens: 5, text: STORY };
  assertEquals(await prompted(["Once upon a time"]), once);
  assertEquals(await prompted([], "Once upon a time\n"), once);
  assertEquals(await prompted(["-"], "Once upon a time\n"), once);
});

Deno.test("text on stdin follows the words after a blank line, or stands where - is", async () => {
  const after = await prompted(["One day\n\nLily ran."]);
  assertEquals(await prompted(["One", "day"], "Lily ran.\n"), after);
  assertEquals(await prompted(["One", "day", "-"], "Lily ran.\n"), after);
  assertEquals(await prompted(["-", "Lily", "ran."], "One day"), after);
  const between = await prompted(["One day\n\nLily ran.\n\nTom"]);
  assertEquals(await prompted(["One day", "-", "Tom"], "Lily ran."), between);
  assert(after.promptTokens !== between.promptTokens);
  // Nothing, or only blanks, adds nothing.
  const alone = await prompted(["One day"]);
  assertEquals(await prompted(["One day"], " \n"), alone);
  assertEquals(await prompted(["One day", "-"]), alone);
});

Deno.test("a pipe that stays open is waited for, and that is said", async () => {
  const args = ["One day", "--device", "cpu", "--json", ...GREEDY];
  const child = spawn(args);
  const stdout = new Response(child.stdout).text();
  const writer = child.stdin.getWriter(), text = new TextDecoder();
  let stderr = "", closed = false;
  for await (const piece of child.stderr) {
    stderr += text.decode(piece, { stream: true });
    if (closed || !stderr.includes("\n")) continue;
    await writer.write(new TextEncoder().encode("Lily ran."));
    await writer.close();
    closed = true;
  }
  assertEquals((await child.status).code, 0, stderr);
  assertMatch(
    notices(stderr),
    /^Waiting for the end of stdin, which follows t/,
  );
  assertEquals(
    JSON.parse(await stdout).promptTokens,
    (await prompted(["One day\n\nLily ran."])).promptTokens,
  );
});

Deno.test("--threads sets the threads of the CPU path", async () => {
  const args = ["Once upon a time", "--device", "cpu", ...GREEDY];
  for (const threads of [1, 3]) {
    const { code, stdout, stderr } = await generate([
      ...args,
      ...["--threads", `${threads}`, "--verbose"],
    ]);
    assertEquals([code, stdout], [0, `${STORY}\n`]);
    const what = threads === 1 ? "1 thread" : "3 threads";
    const said = notices(stderr);
    assert(said.includes(`\nthreads: ${what} (it was asked for)\n`), said);
    assert(said.includes(`\nCPU (${what}): `), said);
    assertMatch(said, /\ncontext: 1024 tokens \(/);
  }
});

gpuTest("--threads on a GPU is not ignored silently", async () => {
  const { code, stderr } = await generate([
    ...["Once upon a time", "--threads", "2", ...GREEDY],
  ]);
  assertEquals(code, 0, stderr);
  // A software adapter may lose against the CPU path.
  assertMatch(
    notices(stderr),
    /^threads is 2, but is not used: the model runs on the GPU\.|CPU \(2 threads\): /m,
  );
});

Deno.test("without an adapter one line says where the model runs, once", async () => {
  const child = spawn(["Once upon a time", ...GREEDY], undefined, {
    VK_DRIVER_FILES: "/none",
    DENO_WEBGPU_BACKEND: "vulkan",
  });
  await child.stdin.close();
  const { code, stdout, stderr } = outcome(await child.output());
  assertEquals([code, stdout], [0, `${STORY}\n`], stderr);
  const said = notices(stderr).split("\n").slice(1, -2);
  assertEquals(said, ["Running on cpu: no WebGPU adapter here."]);
});

/** Runs the task on a terminal; types each answer when the text before it is shown. */
async function onTerminal(
  args: string,
  answers: readonly [shown: string, typed: string][],
  env: Record<string, string> = {},
) {
  const task = `"${Deno.execPath()}" ${RUN.join(" ")} tasks/generate.ts`;
  const child = new Deno.Command("script", {
    args: ["-qec", `stty cols 100; exec ${task} ${args}`, "/dev/null"],
    cwd: ROOT,
    env: { TERM: "xterm", NO_COLOR: "", ...env },
    stdin: "piped",
    stdout: "piped",
    stderr: "null",
  }).spawn();
  const writer = child.stdin.getWriter(), text = new TextDecoder();
  const left = [...answers];
  let shown = "";
  for await (const piece of child.stdout) {
    shown += text.decode(piece, { stream: true });
    while (left.length > 0 && shown.includes(left[0][0])) {
      const [, typed] = left.shift()!;
      await writer.write(new TextEncoder().encode(typed));
    }
  }
  await writer.close().catch(() => {});
  const { code } = await child.status;
  return { code, shown: shown.replaceAll("\r\n", "\n") };
}

// util-linux's script makes the terminal.
const terminalTest = (name: string, fn: () => Promise<void>) =>
  Deno.test({ name, ignore: Deno.build.os !== "linux", fn });

terminalTest(
  "Ctrl-C on a terminal ends with 130, in a reply and where stdin is read",
  async () => {
    const endless =
      '"Once upon a time" --device cpu --temperature 0 --ignore-eos --no-json';
    const reply = await onTerminal(endless, [[", there was", "\x03"]]);
    assertEquals(reply.code, 130, reply.shown);
    assertMatch(
      reply.shown,
      /, there was[^]*\(aborted, greedy\);/,
    );
    const typing = await onTerminal("-", [["Type the prompt", "\x03"]]);
    assertEquals(typing.code, 130, typing.shown);
  },
);

terminalTest("a prompt is typed on a terminal for -", async () => {
  const { code, shown } = await onTerminal(
    "- --device cpu --temperature 0 --max-tokens 9",
    [["Type the prompt", "Once upon a time\n\x04"]],
  );
  assertEquals(code, 0, shown);
  assert(shown.includes(`${STORY}\n`), shown);
});

terminalTest("a terminal shows colours unless NO_COLOR is set", async () => {
  const wrong = await onTerminal("hi --modle x", []);
  assertEquals([wrong.code, wrong.shown], [
    1,
    "\x1b[31merror:\x1b[39m Cannot read the flags: --modle is unknown, did you mean --model?\n",
  ]);
  const plain = await onTerminal("hi --modle x", [], { NO_COLOR: "1" });
  assert(!plain.shown.includes("\x1b"), plain.shown);
});

for (const device of ["cpu", "gpu"]) {
  const test = device === "gpu" ? gpuTest : Deno.test;
  test(`--json prints one line with all fields (${device})`, async () => {
    const { code, stdout, stderr } = await generate([
      ...["Once upon a time", "--json", "--device", device],
      ...GREEDY,
    ]);
    assertEquals(code, 0, stderr);
    assertMatch(stdout, /^\{.*\}\n$/);
    const report = JSON.parse(stdout);
    const { adapter, loadMs, memoryBytes, timeToFirstTokenMs, ...rest } =
      report;
    const { prefillTokensPerSecond, decodeTokensPerSecond, ...sure } = rest;
    // The weights in bf16 take 6.5 MB, the cache of 1,024 tokens in f16 4 MB.
    assert(memoryBytes > 10e6 && memoryBytes < 100e6, `${memoryBytes} bytes`);
    assertEquals(sure, {
      text: STORY,
      reasoning: "",
      toolCalls: [],
      tokenIds: [12, 420, 284, 259, 403, 448, 557, 380, 14],
      promptTokens: 5,
      finishReason: "length",
      device,
      fallbacks: [],
    });
    assertEquals(typeof adapter, "string");
    for (
      const number of [
        loadMs,
        timeToFirstTokenMs,
        prefillTokensPerSecond,
        decodeTokensPerSecond,
      ]
    ) assert(number > 0);
    assertEquals(Object.keys(report), [
      "text",
      "reasoning",
      "toolCalls",
      "tokenIds",
      "promptTokens",
      "finishReason",
      "device",
      "adapter",
      "loadMs",
      "memoryBytes",
      "timeToFirstTokenMs",
      "prefillTokensPerSecond",
      "decodeTokensPerSecond",
      "fallbacks",
    ]);
  });
}

Deno.test("flags reach sampling: a seed repeats the text, stop ends it", async () => {
  const sampled = [
    ...["Once upon a time", "--device", "cpu", "--max-tokens", "12"],
    ...["--temperature", "1", "--top-k", "0", "--top-p", "0.95"],
    ...["--min-p", "0.01", "--repetition-penalty", "1.1"],
    ...["--presence-penalty", "-0.5", "--frequency-penalty", "0.5", "--seed"],
  ];
  const [one, again, other] = await Promise.all([
    generate([...sampled, "7"]),
    generate([...sampled, "7"]),
    generate([...sampled, "8"]),
  ]);
  assertEquals([one.code, one.stdout], [0, again.stdout]);
  assert(one.stdout !== other.stdout);
  assertMatch(notices(one.stderr), /seed 7\)/);
  const greedy = (...flags: string[]) =>
    generate([
      ...["Once upon a time", "--device", "cpu", "--temperature", "0"],
      ...["--max-tokens", "60", ...flags],
    ]);
  const texts = await Promise.all([
    greedy(),
    greedy("--presence-penalty", "2"),
    greedy("--presence-penalty", "2", "--frequency-penalty", "2"),
  ]);
  assertEquals(new Set(texts.map(({ stdout }) => stdout)).size, 3);
  const stopped = await generate([
    ...["Once upon a time", "--device", "cpu", "--temperature", "0"],
    ...["--stop", "Lily", "--stop", "\n"],
  ]);
  assertEquals(stopped.stdout, ", there was a little girl named \n");
  assertMatch(notices(stopped.stderr), /\(stop, greedy\);/);
});

Deno.test("generation_config.json sets limits; unsupported settings are named on stderr", async () => {
  await using checkpoint = await copyCheckpoint(TINY, {
    "generation_config.json": JSON.stringify({
      max_new_tokens: 5,
      no_repeat_ngram_size: 3,
    }),
  });
  const args = ["328", "--model", checkpoint.path, "--device", "cpu"];
  const { code, stdout, stderr } = await generate(args);
  assertEquals([code, stdout], [0, "63 224 290 290 290 \n"]);
  assertMatch(
    notices(stderr),
    /^Ignoring unsupported generation settings of \S+: no_repeat_ngram_size \(3\)\n/m,
  );
  // A refusal stays the only line.
  await assertRefused(["999", "--model", checkpoint.path], "ids must be");
});

Deno.test("a checkpoint without a tokenizer takes and prints ids", async () => {
  const { code, stdout, stderr } = await generate([
    ...["328", "--model", TINY.href, "--device", "cpu"],
    ...["--temperature", "0", "--max-tokens", "5"],
  ]);
  assertEquals([code, stdout], [0, "63 224 290 290 290 \n"]);
  assertMatch(stderr, /The checkpoint has no tokenizer: token ids are printed/);
});

Deno.test("deno task generate --help lists every flag", async () => {
  const { code, stdout, stderr } = await generate(["--help"]);
  assertEquals([code, stderr], [0, ""]);
  assertMatch(stdout, /^deno task generate \[PROMPT\] \[flags\]/);
  for (
    const flag of [
      ...["model", "device", "precision", "kv", "context", "max-tokens"],
      ...["temperature", "top-k", "top-p", "min-p", "repetition-penalty"],
      ...["presence-penalty", "frequency-penalty"],
      ...["seed", "stop", "ignore-eos", "system", "tools", "raw", "json"],
      "schema",
      ...["threads", "verbose", "read-timeout", "help,", "version"],
    ]
  ) assertMatch(stdout, new RegExp(`\n  --${flag} .*\\w`));
  assertMatch(stdout, /--no-think/);
});

for (const [signal, expected] of [["SIGINT", 130], ["SIGTERM", 143]] as const) {
  Deno.test(`${signal} ends cleanly with the text so far and ${expected}`, async () => {
    // Generates past the ends of stories until interrupted.
    const child = spawn([
      ...["Once upon a time", "--device", "cpu", "--temperature", "0"],
      "--ignore-eos",
    ]);
    await child.stdin.close();
    const stderr = new Response(child.stderr).text();
    let stdout = "";
    const decoder = new TextDecoder();
    for await (const piece of child.stdout) {
      if (stdout === "") child.kill(signal);
      stdout += decoder.decode(piece, { stream: true });
    }
    const { code } = await child.status;
    assertEquals(code, expected);
    assert(stdout.startsWith(",") && stdout.endsWith("\n"), stdout);
    assertMatch(
      notices(await stderr),
      /, \d+ tokens? .*\(aborted, greedy\); loaded in .*\n$/,
    );
  });
}

const INTERRUPTED = "Interrupted before the first token.\n";

for (const device of ["cpu", "gpu"]) {
  const test = device === "gpu" ? gpuTest : Deno.test;
  test(`Ctrl-C in a prompt prints one line (${device})`, async () => {
    for (const json of [[], ["--json"]]) {
      const ids = Array.from({ length: 3000 }, (_, i) => `${i}`);
      const model = "synthetic:qwen3-0.6b?layers=4&vocab=4096";
      const child = spawn([
        ...ids,
        "--model",
        model,
        "--device",
        device,
        ...json,
      ]);
      await child.stdin.close();
      const stdout = new Response(child.stdout).text();
      let stderr = "";
      const decoder = new TextDecoder();
      for await (const piece of child.stderr) {
        stderr += decoder.decode(piece, { stream: true });
        if (/Running on/.test(stderr)) child.kill("SIGINT");
      }
      assertEquals(
        [(await child.status).code, await stdout],
        [130, ""],
        stderr,
      );
      assert(stderr.endsWith(INTERRUPTED), stderr);
      assert(!/tokens at/.test(stderr), stderr);
    }
  });
}

Deno.test("a signal while a model loads prints one line", async () => {
  for (const [signal, code] of [["SIGINT", 130], ["SIGTERM", 143]] as const) {
    const asked = Promise.withResolvers<void>(), end = new AbortController();
    const server = Deno.serve(
      { port: 0, onListen() {}, signal: end.signal },
      () => {
        asked.resolve();
        return new Promise<Response>(() => {}); // the file never comes
      },
    );
    const model = `http://127.0.0.1:${server.addr.port}/model`;
    const child = spawn(["hi", "--model", model, "--device", "cpu"]);
    await child.stdin.close();
    await asked.promise;
    child.kill(signal);
    const ended = outcome(await child.output());
    end.abort();
    assertEquals(ended, { code, stdout: "", stderr: INTERRUPTED });
  }
});

Deno.test("a closed stdout is no error", async () => {
  const child = spawn([
    ...["Once upon a time", "--device", "cpu", "--ignore-eos"],
  ]);
  await child.stdin.close();
  const stderr = new Response(child.stderr).text();
  for await (const _ of child.stdout) break; // closes the pipe
  assertEquals([(await child.status).code], [0]);
  assert(!/error|Broken/.test(await stderr), await stderr);
});

/** Runs the task and asserts exit code 1, empty stdout and one line with all `parts`. */
async function assertRefused(args: string[], ...parts: string[]) {
  const device = args.includes("--device") ? [] : ["--device", "cpu"];
  const { code, stdout, stderr } = await generate([...device, ...args]);
  const what = `${args.join(" ").slice(0, 80)} gave: ${stderr}`;
  assertEquals([code, stdout], [1, ""], what);
  assertMatch(stderr, /^error: Cannot [^\n]*\n$/, what);
  for (const part of parts) assert(stderr.includes(part), `${part}: ${what}`);
}

/** Runs a few at a time, as each starts a process. */
async function inTurns(work: (() => Promise<void>)[]): Promise<void> {
  const turns = work.values();
  const worker = async () => {
    for (const one of turns) await one();
  };
  await Promise.all([worker(), worker()]);
}

Deno.test("wrong prompts, options and flags are one-line errors with exit code 1", async () => {
  const hi = (...args: string[]) => ["hi", ...args];
  const refused: [args: string[], ...parts: string[]][] = [
    [[], "the prompt is empty, pass it as arguments or on stdin"],
    [[""], "the prompt is empty"],
    [hi("--modle", "x"), "--modle is unknown, did you mean --model?"],
    [hi("-x"), "-x is unknown, try --help (text like this goes after --)"],
    [hi("--max-tokens"), "--max-tokens has no value"],
    [
      hi("--max-tokens", "many"),
      '--max-tokens is "many", must be a finite number',
    ],
    [hi("--max-tokens", "0"), "--max-tokens is 0, must be an integer of at le"],
    [hi("--max-tokens", "1.5"), "--max-tokens is 1.5"],
    [hi("--temperature", "-1"), "--temperature is -1, must be a number of at"],
    [hi("--temperature", "NaN"), '--temperature is "NaN"'],
    [hi("--top-k", "2.5"), "--top-k is 2.5"],
    [hi("--top-p", "0"), "--top-p is 0, must be above 0 and at most 1"],
    [hi("--min-p", "2"), "--min-p is 2, must be from 0 to 1"],
    [hi("--repetition-penalty", "0"), "--repetition-penalty is 0"],
    [hi("--presence-penalty", "3"), "--presence-penalty is 3, must be from -2"],
    [
      hi("--frequency-penalty", "-3"),
      "--frequency-penalty is -3, must be from",
    ],
    [hi("--seed", "-1"), "--seed is -1, must be an integer from 0"],
    [
      hi("--stop", ""),
      'Cannot generate: --stop is "", a stop string must be one or more',
    ],
    [hi("--json=yes"), "--json takes no value"],
    [hi("--seed", "1", "--seed", "2"), "--seed is given twice, must be given"],
    [hi("--device", "tpu"), '--device is "tpu", must be auto, gpu or cpu'],
    [hi("--precision", "f64"), '--precision is "f64", must be auto or f32'],
    [
      hi("--quantize", "q4_km"),
      '--quantize is "q4_km", must be such as q4_k_m, q4_k, q4_1, q4_0, try --help',
    ],
    [hi("--context", "0"), "--context is 0, must be an integer of at least 1"],
    [hi("--threads", "0"), "--threads is 0, must be an integer from 1 to 256"],
    [hi("--threads", "257"), "--threads is 257, must be an integer from 1"],
    [
      hi("--device", "gpu", "--threads", "2"),
      "--threads is 2, must be left out with --device gpu",
    ],
    [["-", "hi", "-"], "- is given twice, must be given once"],
    [
      hi("--context", "4096"),
      "Cannot load the story model: --context is 4096, must be from 1 to",
    ],
    [
      ["word ".repeat(40), "--context", "16"],
      "the prompt has ",
      " tokens, the context has room for 16",
    ],
    [hi("--system", "Be kind"), "a system message needs a chat template"],
  ];
  await inTurns(
    refused.map(([args, ...parts]) => () => assertRefused(args, ...parts)),
  );
});

Deno.test("flags are refused before a model is opened", async () => {
  const bad = [
    ["--max-tokens", "0"],
    ["--context", "0.5"],
    ["--device", "tpu"],
    ["--precision", "f64"],
    ["--kv", "q4_0"],
    ["--stop", ""],
    ["--top-p", "2"],
    ["--raw", "--system", "Be kind"],
  ];
  await inTurns(bad.map((flags) => async () => {
    const { code, stderr } = await generate(
      ["hi", "--model", "http://127.0.0.1:1/", ...flags],
    );
    assertEquals(code, 1);
    assert(!stderr.includes("127.0.0.1"), stderr);
  }));
});

Deno.test("a prompt on stdin without end is refused", async () => {
  const child = spawn(["--device", "cpu"]);
  const writer = child.stdin.getWriter();
  const megabyte = new Uint8Array(1 << 20).fill(0x61);
  const writing = (async () => {
    try {
      for (;;) await writer.write(megabyte);
    } catch { /* the task closed the pipe */ }
  })();
  const { code, stdout, stderr } = outcome(await child.output());
  await writing;
  assertEquals([code, stdout, stderr], [
    1,
    "",
    "error: Cannot generate: the prompt on stdin has more than 16777216 bytes, must be at most 16777216\n",
  ]);
});

Deno.test("a stdin that cannot be read and a full disk say what failed", async () => {
  const run = async (redirected: string) => {
    const task = `"${Deno.execPath()}" ${RUN.join(" ")} tasks/generate.ts`;
    const { code, stderr } = await new Deno.Command("sh", {
      args: ["-c", `${task} --device cpu --max-tokens 1 ${redirected}`],
      cwd: new URL("../..", import.meta.url),
      env: { NO_COLOR: "1" },
    }).output();
    return `${code} ${new TextDecoder().decode(stderr).split("\n").at(-2)}`;
  };
  assertEquals(
    await run("< tests"),
    "1 error: Cannot read the prompt on stdin: Is a directory (os error 21)",
  );
  if (Deno.build.os !== "linux") return; // only Linux has a full device
  assertEquals(
    await run("hi > /dev/full"),
    "1 error: Cannot write the reply: No space left on device (os error 28)",
  );
});

Deno.test("a missing model is a one-line error that lists where it was looked for", async () => {
  const model = (spec: string) => ["hi", "--model", spec];
  await using empty = await emptyFolder();
  await inTurns([
    () =>
      assertRefused(
        model("nowhere"),
        'Cannot open "nowhere": there is no such directory (looked in ',
        "owner/name",
      ),
    () => assertRefused(model(empty.path), `there is no ${empty.path}/config`),
    () =>
      assertRefused(
        model("Qwen/Qwen3-0.6B"),
        "Cannot open Qwen/Qwen3-0.6B: it is not in the cache (there is no /none/models--Qwen--Qwen3-0.6B/refs/main)",
        "HF_HUB_OFFLINE",
      ),
    () =>
      assertRefused(
        model("http://127.0.0.1:1/x"),
        "http://127.0.0.1:1/x/config.json",
      ),
    () =>
      assertRefused(
        model("synthetic:qwen3-9b"),
        '"synthetic:qwen3-9b": try synthetic:qwen3-0.6b (1.7b, ',
      ),
    () =>
      assertRefused(
        model(TINY.href),
        "tiny-tied-bf16/ has no tokenizer, pass token ids such as 1 2 3",
      ),
    () =>
      assertRefused(
        model("synthetic:qwen3-0.6b"),
        "Cannot generate: synthetic:qwen3-0.6b has no tokenizer, pass token ids such as 1 2 3\n",
      ),
  ]);
});

async function emptyFolder(): Promise<TempCheckpoint> {
  const path = await Deno.realPath(await Deno.makeTempDir());
  return {
    path,
    [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }),
  };
}

Deno.test("a broken checkpoint is a one-line error with the file and the fault", async () => {
  const whole = await Deno.readFile(new URL("model.safetensors", TINY));
  const config = JSON.parse(
    await Deno.readTextFile(new URL("config.json", TINY)),
  );
  const norm = "model.norm.weight";
  const weights = (file: Uint8Array) => ({ "model.safetensors": file });
  const header = (edit: (header: Header) => void) =>
    weights(editHeader(whole, edit));
  const configured = (changes: object) => ({
    "config.json": JSON.stringify({ ...config, ...changes }),
  });
  const long = whole.slice();
  new DataView(long.buffer).setBigUint64(0, BigInt(whole.length), true);
  const broken: [
    changes: Record<string, string | Uint8Array | undefined>,
    ...parts: string[],
  ][] = [
    [
      { "model.safetensors": undefined },
      "there are no weights",
      "model.safetensors.index.json",
    ],
    [weights(whole.slice(0, -100)), "it is truncated"],
    [
      weights(long),
      `its header should have ${whole.length} bytes, but only ${
        whole.length - 8
      } follow`,
    ],
    [weights(new Uint8Array(3)), "it has 3 bytes"],
    [
      header((h) => h[norm].data_offsets = [0, 128]),
      "model.safetensors",
      norm,
    ],
    [
      header((h) => h[norm].data_offsets = [1e9, 1e9 + 128]),
      "model.safetensors",
      norm,
    ],
    [header((h) => h[norm].dtype = "F8_E4M3"), norm, "F8_E4M3"],
    [header((h) => h[norm].shape = [63]), norm],
    [
      header((h) => {
        h["model.extra.weight"] = h[norm];
        delete h[norm];
      }),
      `it lacks ${norm} and it has unknown tensors model.extra.weight`,
    ],
    [
      header((h) => {
        h["model.layers.0.mlp.up_proj.weight"].shape = [64, 96];
      }),
      "model.layers.0.mlp.up_proj.weight has shape [64, 96], config.json requires [96, 64]",
    ],
    [
      { "config.json": '{ "model_type": ' },
      "config.json: it is not valid JSON",
    ],
    [
      configured({ model_type: "llama" }),
      'model_type is "llama", must be "qwen3"',
    ],
    [configured({ hidden_size: -1 }), "hidden_size is -1"],
    [configured({ head_dim: 33 }), "head_dim is 33, must be even"],
    [{ "generation_config.json": "[]" }, "generation_config.json"],
    [{ "tokenizer.json": "{" }, "tokenizer.json", "not valid JSON"],
  ];
  await inTurns(broken.map(([changes, ...parts]) => async () => {
    await using checkpoint = await copyCheckpoint(TINY, changes);
    const args = ["hi", "--model", checkpoint.path];
    await assertRefused(args, ...parts);
  }));
});

const TEMPLATE =
  "{{ tools | tojson if tools else '' }}{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>{{ '\n' }}";
const CALL = '{"name": "f", "arguments": {"a": 1}}';
const REPLY =
  `<think>\nHm, 1.\n</think>\n\nLet me look.\n<tool_call>\n${CALL}\n</tool_call>`;
const TOOLS = [{ type: "function", function: { name: "f" } }];

/** A file with this text, in a folder of its own. */
async function textFile(text: string) {
  const { path, ...rest } = await emptyFolder();
  await Deno.writeTextFile(`${path}/tools.json`, text);
  return { path: `${path}/tools.json`, ...rest };
}

Deno.test("a reply goes to stdout with its calls, its reasoning to stderr", async () => {
  await using checkpoint = await scriptedCheckpoint({
    reply: REPLY,
    template: TEMPLATE,
  });
  const hi = ["Hi", "--model", checkpoint.path, "--device", "cpu"];
  const files = [
    JSON.stringify(TOOLS),
    JSON.stringify({ model: "gpt", tools: TOOLS }),
    `\uFEFF${JSON.stringify(TOOLS)}`,
  ];
  for (const tools of files) {
    await using file = await textFile(tools);
    const { code, stdout, stderr } = await generate([
      ...hi,
      ...["--tools", file.path],
    ]);
    assertEquals(
      [code, stdout],
      [0, 'Let me look.\n{"name":"f","arguments":{"a":1}}\n'],
      stderr,
    );
    const said = notices(stderr);
    assertMatch(said, /\nThinking:\nHm, 1\.\n\n/);
    assertMatch(said, /\(tool_calls, greedy\); loaded in .*\n$/);
  }
  const { stdout, stderr } = await generate([...hi, "--json"]);
  const { text, reasoning, toolCalls, finishReason } = JSON.parse(stdout);
  assertEquals({ text, reasoning, toolCalls, finishReason }, {
    text: "Let me look.",
    reasoning: "Hm, 1.",
    toolCalls: [{
      type: "function",
      function: { name: "f", arguments: { a: 1 } },
    }],
    finishReason: "tool_calls",
  });
  assert(!stderr.includes("Hm"), stderr);
  // Reasoning alone, which the token limit cuts off.
  const cut = await generate([...hi, "--max-tokens", "5"]);
  assertEquals(cut.stdout, "\n");
  assertMatch(cut.stderr, /\nThinking:\nHm[^\n]*\n\n/);
});

Deno.test("a file of tools is refused before the model is opened", async () => {
  const texts: [text: string, problem: string][] = [
    ["{", "not valid JSON"],
    ["[]", "it lists 0 tools, must list at least one"],
    ["{}", "tools is undefined, must be a list"],
    ['{"tools": {}}', "tools is an object, must be a list"],
    ["5", "tools is 5, must be a list"],
    ['[{"name": "f"}]', "tools[0] must be like"],
  ];
  await inTurns(texts.map(([text, problem]) => async () => {
    await using file = await textFile(text);
    const args = ["hi", "--model", "nowhere", "--tools", file.path];
    await assertRefused(args, file.path, problem);
  }));
  const missing = ["hi", "--tools", "/nowhere/tools.json"];
  await assertRefused(
    missing,
    "Cannot read the tools in /nowhere/tools.json: ",
    "No such file",
  );
  await using file = await textFile(JSON.stringify(TOOLS));
  await assertRefused(
    ["hi", "--raw", "--tools", file.path],
    "--raw and --tools are both given",
  );
  await assertRefused(
    ["hi", "--tools", file.path],
    "Cannot generate: tools need a chat template",
  );
});

Deno.test("--schema makes the reply JSON under the schema of a file", async () => {
  const schema = {
    type: "object",
    properties: { n: { type: "integer", minimum: 10, maximum: 20 } },
    required: ["n"],
  };
  await using file = await textFile(`\uFEFF${JSON.stringify(schema)}`);
  const args = ["Once", "--device", "cpu", "--schema", file.path];
  const { code, stdout, stderr } = await generate(args);
  assertEquals(code, 0, stderr);
  assertMatch(stdout, /^\{"n":(1[0-9]|20)\}\n$/);
});

Deno.test("a schema that cannot be used is refused before the model is opened", async () => {
  const refused = [
    [
      "[]",
      "Cannot read the schema in ",
      "it is a list of 0, must be an object",
    ],
    ["{", "it is not valid JSON"],
    [
      '{"items": {"not": {"type": "null"}}}',
      "Cannot use the schema: not at #/items is not",
    ],
  ];
  for (const [text, ...parts] of refused) {
    await using file = await textFile(text);
    const args = ["hi", "--model", "nowhere", "--schema", file.path];
    await assertRefused(args, ...parts);
  }
  await using file = await textFile("{}");
  const schema = ["hi", "--schema", file.path];
  await assertRefused(
    [...schema, "--ignore-eos"],
    "--ignore-eos is true, must",
  );
  await assertRefused(
    [...schema, "--stop", "x"],
    "must be left out with a schema",
  );
});
