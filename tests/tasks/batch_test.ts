/** `deno task batch`. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { type Outcome, RUN, runTask } from "../support/run_task.ts";
import { type TempCheckpoint, tempFolder } from "../support/temp_checkpoint.ts";
import { type Json, until } from "../support/serving.ts";

const TEXT = ", there was a little girl named Lily";
const BODY = { prompt: "Once upon a time", temperature: 0, max_tokens: 8 };

const request = (
  custom_id: string,
  more: object = {},
  url = "/v1/completions",
) =>
  JSON.stringify({
    custom_id,
    method: "POST",
    url,
    body: { ...BODY, ...more },
  });

const folderOf = (lines: readonly string[]) =>
  tempFolder({ "in.jsonl": lines.join("\n") + "\n" });

const batch = (folder: TempCheckpoint, ...args: string[]): Promise<Outcome> =>
  runTask("batch", [
    `${folder.path}/in.jsonl`,
    `${folder.path}/out.jsonl`,
    ...["--device", "cpu", ...args],
  ]);

async function replies(folder: TempCheckpoint): Promise<Json[]> {
  const text = await Deno.readTextFile(`${folder.path}/out.jsonl`);
  assert(text.endsWith("\n"));
  return text.trimEnd().split("\n").map((line) => JSON.parse(line));
}

Deno.test("each request has a reply, in its order, and errors are per line", async () => {
  await using folder = await folderOf([
    request("a"),
    request("b", { model: "other" }),
    "",
    "{",
    request("c", { top_p: 9 }),
    request("a"),
    request("d", { stream: true }),
    request("e", {}, "/v1/models"),
    JSON.stringify({
      custom_id: "f",
      url: "/v1/chat/completions",
      body: {
        messages: [{ role: "user", content: BODY.prompt }],
        max_completion_tokens: 8,
        temperature: 0,
      },
    }),
    JSON.stringify({
      custom_id: "g",
      url: "/v1/embeddings",
      body: { input: "A dog." },
    }),
    "[]",
    JSON.stringify({ custom_id: 7 }),
  ]);
  const { code, stdout, stderr } = await batch(folder);
  assertEquals([code, stdout], [0, ""], stderr);
  assertMatch(stderr, /^11 requests in .* s, \d+ tokens\/s; 8 failed\.$/m);
  const all = await replies(folder);
  assertEquals(
    all.map(({ custom_id, response, error }) => [
      custom_id,
      response?.status_code ?? error.code,
    ]),
    [
      ["a", 200],
      ["b", 404],
      [null, "invalid_request"],
      ["c", 400],
      ["a", "invalid_request"],
      ["d", "invalid_request"],
      ["e", "invalid_request"],
      ["f", 200],
      ["g", 200],
      [null, "invalid_request"],
      [7, "invalid_request"],
    ],
  );
  assertEquals(all[0].response.body.choices[0].text, TEXT);
  assertEquals(all[0].error, null);
  assertMatch(all[0].response.request_id, /^req_/);
  assertEquals(all[7].response.body.choices[0].message.content, TEXT);
  assertEquals(all[3].response.body.error.param, "top_p");
  // As an editor counts them, with the blank one.
  assertMatch(all[4].error.message, /^Cannot read line 6: .* as in line 1/);
});

Deno.test("a request that fails after its first token ends no batch", async () => {
  const items = { $ref: "#/$defs/list" };
  const list = {
    anyOf: [1, 2, 3].map((maxItems) => ({ type: "array", items, maxItems })),
  };
  // The headers of a reply to a large request go out early.
  const schema = { ...items, $defs: { list }, description: "x".repeat(5000) };
  const bad = {
    messages: [{ role: "user", content: BODY.prompt }],
    max_tokens: 60,
    logit_bias: { 59: 100 }, // [
    response_format: { type: "json_schema", json_schema: { schema } },
  };
  await using folder = await folderOf([
    JSON.stringify({ custom_id: "a", url: "/v1/chat/completions", body: bad }),
    request("b"),
  ]);
  const { code, stderr } = await batch(folder);
  assertEquals(code, 0, stderr);
  const [a, b] = await replies(folder);
  assertEquals([a.response.status_code, b.response.status_code], [400, 200]);
  assertMatch(a.response.body.error.message, /more than 10000 ways to read/);
});

Deno.test("requests for many texts wait for each other", async () => {
  const ids = ["a", "b", "c", "d"];
  await using folder = await folderOf(
    ids.map((id) => request(id, { n: 32, max_tokens: 2 })),
  );
  const { code, stderr } = await batch(folder);
  assertEquals(code, 0, stderr);
  for (const { response } of await replies(folder)) {
    assertEquals(response.status_code, 200);
    assertEquals(response.body.choices.length, 32);
  }
});

Deno.test("a batch that was interrupted goes on after the last whole reply", async () => {
  const count = 40;
  const lines = Array.from(
    { length: count },
    (_, i) => request(`${i}`, { seed: i, temperature: 1, max_tokens: 200 }),
  );
  await using folder = await folderOf(lines);
  // Some replies from before and after the interruption, as one run gives them.
  const compared = lines.filter((_, i) => i % 8 === 0 || i === count - 1);
  await using whole = await folderOf(compared);
  const child = new Deno.Command(Deno.execPath(), {
    args: [
      ...[...RUN, "tasks/batch.ts"],
      ...[`${folder.path}/in.jsonl`, `${folder.path}/out.jsonl`],
      ...["--device", "cpu"],
    ],
    cwd: new URL("../..", import.meta.url),
    env: { NO_COLOR: "1" },
    stderr: "piped",
  }).spawn();
  const lineCount = async () => {
    try {
      const text = await Deno.readTextFile(`${folder.path}/out.jsonl`);
      return text.split("\n").length - 1;
    } catch {
      return 0;
    }
  };
  await until(async () => await lineCount() >= 3);
  child.kill("SIGINT");
  const { code, stderr } = await child.output();
  assertEquals(code, 130);
  assertMatch(
    new TextDecoder().decode(stderr),
    /^Interrupted\. The same command goes on/m,
  );
  const done = await lineCount();
  assert(done >= 3 && done < count, `${done} of ${count}`);
  // As if the power had failed while a line was written.
  await Deno.writeTextFile(`${folder.path}/out.jsonl`, '{"id":"batch', {
    append: true,
  });
  const rest = await batch(folder);
  assertMatch(rest.stderr, new RegExp(`^${count - done} requests in `, "m"));
  const again = await batch(folder);
  assertEquals(again.code, 0);
  assertMatch(again.stderr, /has all 40 replies already/);
  await batch(whole);
  const texts = async (folder: TempCheckpoint) =>
    (await replies(folder)).map(({ custom_id, response }) => [
      custom_id,
      response.body.choices[0].text,
    ]);
  const expected = await texts(whole), ids = expected.map(([id]) => id);
  assertEquals(ids.length, compared.length);
  const all = await texts(folder);
  assertEquals(all.map(([id]) => id), lines.map((_, i) => `${i}`));
  assertEquals(all.filter(([id]) => ids.includes(id)), expected);
});

Deno.test("a batch that cannot run is refused in one line", async () => {
  await using folder = await folderOf([request("a"), request("b")]);
  const out = `${folder.path}/out.jsonl`;
  await Deno.writeTextFile(out, '{"custom_id": "b"}\n');
  const other = await batch(folder);
  assertEquals(other.code, 1);
  assertMatch(
    other.stderr,
    /^error: Cannot run the batch: line 1 of .* is for "b", must be for "a"/,
  );
  await Deno.writeTextFile(`${folder.path}/in.jsonl`, "\n");
  assertMatch((await batch(folder)).stderr, /has no requests/);
  for (
    const [args, message] of [
      [["x"], /1 files are named, must be two/],
      [["x", "x"], /IN and OUT are both x, must differ/],
      [["none", "y"], /none cannot be opened/],
    ] as const
  ) {
    const { code, stdout, stderr } = await runTask("batch", args);
    assertEquals([code, stdout], [1, ""]);
    assertMatch(stderr, message);
    assertEquals(stderr.trimEnd().split("\n").length, 1);
  }
});

Deno.test("replies that cannot be written are noticed before a model is loaded", async () => {
  await using folder = await folderOf([request("a")]);
  const { code, stderr } = await runTask("batch", [
    `${folder.path}/in.jsonl`,
    `${folder.path}/none/out.jsonl`,
    ...["--device", "cpu", "--model", `${folder.path}/no-model`],
  ]);
  assertEquals(code, 1);
  assertMatch(stderr, /^error: Cannot run the batch: .*out\.jsonl cannot be/);
});

Deno.test("many lines that are wrong end as soon as a few", async () => {
  const lines = Array.from({ length: 1100 }, (_, i) => `broken ${i}`);
  await using folder = await folderOf(lines);
  const { code, stderr } = await batch(folder);
  assertEquals(code, 0, stderr);
  assertEquals((await replies(folder)).length, lines.length);
});

Deno.test("a file that holds something else stays as it is", async () => {
  const text = [request("a"), request("b")].join("\n"); // without a last line break
  await using folder = await tempFolder({
    "in.jsonl": text,
    "out.jsonl": "notes",
  });
  const { code, stderr } = await batch(folder);
  assertEquals(code, 1);
  assertMatch(
    stderr,
    /^error: Cannot .*: line 1 of .*out\.jsonl is no reply, must be one/m,
  );
  assertEquals(await Deno.readTextFile(`${folder.path}/out.jsonl`), "notes");
});

Deno.test("the same file by two paths is refused, and stays as it is", async () => {
  const text = [request("a"), request("b")].join("\n");
  await using folder = await tempFolder({ "in.jsonl": text });
  await Deno.symlink("in.jsonl", `${folder.path}/out.jsonl`);
  const { code, stderr } = await batch(folder);
  assertEquals(code, 1);
  assertMatch(
    stderr,
    /^error: Cannot .*: IN and OUT are both .*in\.jsonl, must differ$/m,
  );
  assertEquals(await Deno.readTextFile(`${folder.path}/in.jsonl`), text);
});

Deno.test("a folder in place of a file is named", async () => {
  await using folder = await folderOf([request("a")]);
  await Deno.mkdir(`${folder.path}/out.jsonl`);
  const { code, stderr } = await batch(folder);
  assertEquals(code, 1);
  assertMatch(
    stderr,
    /^error: Cannot .*: .*out\.jsonl cannot be opened \(it is a folder\)$/m,
  );
});
