/** Long work of one request does not keep others waiting. */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { inTurns } from "../../lib/server/rests.ts";
import { ApiError } from "../../lib/server/errors.ts";
import { serving } from "../support/serving.ts";

const NEVER = new AbortController().signal;

/** Work of `ms` milliseconds in parts of one. */
function* work(ms: number): Generator<undefined, number> {
  for (let part = 0; part < ms; part++) {
    const end = performance.now() + 1;
    while (performance.now() < end);
    yield;
  }
  return ms;
}

Deno.test("the event loop turns between parts, and a signal ends them", async () => {
  let turns = 0;
  const timer = setInterval(() => turns++, 0);
  assertEquals(await inTurns("prompt", work(100), NEVER), 100);
  clearInterval(timer);
  assert(turns >= 5, `${turns} turns`);
  const controller = new AbortController();
  setTimeout(() => controller.abort(new Error("gone")));
  await assertRejects(
    () => inTurns("prompt", work(1e6), controller.signal),
    Error,
    "gone",
  );
});

Deno.test("what fails is the fault of its parameter", async () => {
  const fails = function* (): Generator<undefined, void> {
    yield;
    throw new Error("Cannot encode text: it is odd");
  };
  const error = await assertRejects(
    () => inTurns("prompt", fails(), NEVER),
    ApiError,
    "it is odd",
  );
  assertEquals([error.status, error.details.param], [400, "prompt"]);
});

Deno.test("others are answered while a long text is encoded", async () => {
  await using server = await serving();
  const letters = "abcdefghijklmnop".repeat(40_000);
  const bodies: [path: string, body: object][] = [
    ["/tokenize", { prompt: letters }],
    ["/tokenize", { messages: [{ role: "user", content: letters }] }],
    ["/v1/completions", { prompt: letters }],
    ["/v1/embeddings", { input: letters }],
  ];
  for (const [path, body] of bodies) {
    let done = false, answers = 0;
    const long = server.post(path, body).then(({ json }) => {
      done = true;
      return json;
    });
    while (!done) {
      assertEquals((await server.get("/health")).status, 200);
      answers++;
    }
    const { count, error } = await long;
    if (path === "/tokenize" && "prompt" in body) assert(count > 100_000);
    else {assert(
        error.message.includes("more than 65536 tokens"),
        error.message,
      );}
    assert(answers >= 10, `${path}: ${answers} answers`);
  }
});
