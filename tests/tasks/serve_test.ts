/** `deno task serve`. */
import {
  assert,
  assertEquals,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import { copyCheckpoint, tempFolder } from "../support/temp_checkpoint.ts";
import { RUN, runTask } from "../support/run_task.ts";
import { LONG, STORY, TEXT } from "../support/story_request.ts";

/** Starts the task on a free port, as if installed; resolves when it can answer. */
async function start(args: string[], env: Record<string, string> = {}) {
  const child = new Deno.Command(Deno.execPath(), {
    args: [
      ...RUN,
      "--no-config",
      "tasks/serve.ts",
      "--port",
      "0",
      "--device",
      "cpu",
      ...args,
    ],
    cwd: new URL("../..", import.meta.url),
    env: { NO_COLOR: "1", ...env },
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  let stderr = "";
  const heard = Promise.withResolvers<string>();
  const ended = (async () => {
    for await (
      const text of child.stderr.pipeThrough(new TextDecoderStream())
    ) {
      stderr += text;
      const [, url] = /^Serving .* at (http:\S+)\/v1$/m.exec(stderr) ?? [];
      if (url) heard.resolve(url);
    }
    heard.reject(new Error(stderr));
  })();
  const url = await heard.promise;
  for (;;) {
    const health = await fetch(`${url}/health`);
    await health.body?.cancel();
    if (health.ok) break;
    await new Promise((done) => setTimeout(done, 20));
  }
  return {
    url,
    async post(path: string, body: unknown, headers?: HeadersInit) {
      const response = await fetch(url + path, {
        method: "POST",
        body: JSON.stringify(body),
        headers,
      });
      return { status: response.status, json: await response.json() };
    },
    /** Sends a signal; returns how the task ended. */
    async stop() {
      child.kill("SIGINT");
      const { code } = await child.status;
      await ended;
      const stdout = await new Response(child.stdout).text();
      return { code, stdout, stderr };
    },
  };
}

Deno.test("the story model is served, and Ctrl-C lets texts in progress end", async () => {
  const task = await start(["--alias", "gpt"]);
  const { json } = await task.post("/v1/completions", {
    ...STORY,
    model: "gpt",
  });
  assertEquals([json.model, json.choices[0].text], ["stories-3m", TEXT]);
  const response = await fetch(`${task.url}/v1/completions`, {
    method: "POST",
    body: JSON.stringify({ ...LONG, stream: true }),
  });
  const ending = task.stop();
  const events = await response.text();
  assert(events.endsWith("data: [DONE]\n\n"), events.slice(-300));
  const { code, stdout, stderr } = await ending;
  assertEquals([code, stdout], [0, ""]);
  assertMatch(
    stderr,
    /^Serving OpenAI's API at http:\/\/127\.0\.0\.1:\d+\/v1$/m,
  );
  assertMatch(stderr, /^Running on cpu: it was asked for\.$/m);
  assertMatch(stderr, /^Stopping: /m);
  assert(!stderr.includes("request.signal"), stderr);
});

Deno.test("a key and a chat template are taken from outside", async () => {
  await using folder = await tempFolder({
    "chat.jinja": "{% for m in messages %}{{ m.content }}{% endfor %}",
  });
  const task = await start(
    ["--chat-template", `${folder.path}/chat.jinja`],
    { QWEN3_API_KEY: "sesame" },
  );
  const body = { messages: [{ role: "user", content: "Once upon a time" }] };
  assertEquals((await task.post("/tokenize", body)).status, 401);
  const headers = { authorization: "Bearer sesame" };
  const { json } = await task.post("/tokenize", body, headers);
  assertEquals(json.count, 4); // without <|endoftext|>
  await task.stop();
});

Deno.test("an embedding model is served, and says that it writes no text", async () => {
  const folder = new URL("../fixtures/tiny-tied-bf16/", import.meta.url);
  const modules = ["Transformer", "Pooling"].map((kind, idx) => ({
    idx,
    path: idx ? "1_Pooling" : "",
    type: `sentence_transformers.models.${kind}`,
  }));
  await using copy = await copyCheckpoint(folder, {
    "modules.json": JSON.stringify(modules),
  });
  await Deno.mkdir(`${copy.path}/1_Pooling`);
  await Deno.writeTextFile(
    `${copy.path}/1_Pooling/config.json`,
    JSON.stringify({ pooling_mode: "lasttoken" }),
  );
  const task = await start(["--model", copy.path]);
  const input = [[1, 2, 3], [4]];
  const vectors = await task.post("/v1/embeddings", { input });
  assertEquals([vectors.status, vectors.json.data?.length], [200, 2]);
  const text = await task.post("/v1/completions", { prompt: [1, 2, 3] });
  assertEquals(text.status, 400);
  assertStringIncludes(text.json.error.message, "is an embedding model");
  await task.stop();
});

Deno.test("what cannot be served is refused in one line", async () => {
  await using folder = await tempFolder({ "chat.jinja": "{% if %}" });
  const listener = Deno.listen({ port: 0, hostname: "127.0.0.1" });
  const { port } = listener.addr;
  const cases: [args: string[], message: string][] = [
    [["--port", `${port}`], `port ${port}: the port is in use, --port 0 takes`],
    [
      ["--port", "70000"],
      "--port is 70000, must be an integer from 0 to 65535",
    ],
    [["--api-key="], "--api-key is empty, must be a text"],
    [["--host="], "--host is empty, must be a text"],
    [["--alias="], "--alias is empty, must be a text"],
    [["--context", "1"], "--context is 1, must be an integer of at least 2"],
    [
      ["--cors", "example.com"],
      'Cannot serve: --cors is "example.com", must be * or an origin, such as https://',
    ],
    [["--cors", "https://example.com/"], 'is "https://example.com/", must be'],
    [["--chat-template", "none.jinja"], "Cannot read the chat template none"],
    [
      ["--chat-template", `${folder.path}/chat.jinja`],
      "chat.jinja: Cannot parse",
    ],
    [["--model", "none"], "Cannot "],
    [["model"], 'Cannot serve: unexpected argument "model"'],
  ];
  for (const [args, message] of cases) {
    const { code, stdout, stderr } = await runTask("serve", [
      ...args.includes("--port") ? [] : ["--port", "0"],
      ...args,
    ]);
    assertEquals([code, stdout], [1, ""], stderr);
    const last = stderr.trimEnd().split("\n").at(-1)!;
    assertMatch(last, /^error: /);
    assertStringIncludes(last, message);
  }
  listener.close();
});
