/** Clients that share an engine. */
import { assert, assertEquals } from "@std/assert";
import { decided } from "../../bench/soak.ts";
import { randomTest } from "../support/random.ts";
import { eventsOf, type Json, serving, until } from "../support/serving.ts";

const WORDS = "Once upon a time there was a little dog who saw the sun".split(
  " ",
);
const CLIENTS = 16, REQUESTS = 64;

randomTest(
  "clients that come and go get what each gets alone",
  async (random) => {
    await using server = await serving({ slots: 4 });
    const prompts = Array.from(
      { length: 12 },
      () =>
        Array.from({ length: random.int(1, 40) }, () => random.pick(WORDS))
          .join(" "),
    );
    const ask = (prompt: string, max_tokens: number, stream: boolean) => ({
      prompt,
      max_tokens,
      stream,
      temperature: 0,
      ignore_eos: true,
    });
    // What each gets alone, up to where two tokens are nearly as likely.
    const alone = new Map<string, string>(), cut = new Set<string>();
    for (const prompt of prompts) {
      const run = server.qwen.generate(prompt, {
        ...{ temperature: 0, maxTokens: 60, ignoreEos: true, raw: true },
        ...{ reuse: false, logprobs: 2 },
      });
      let sure = "";
      for await (const { text, logprobs } of run) {
        if (logprobs && decided([logprobs]) === 0) cut.add(prompt);
        if (!cut.has(prompt)) sure += text;
      }
      alone.set(prompt, sure);
    }
    let left = REQUESTS;
    const client = async () => {
      while (left-- > 0) {
        const prompt = random.pick(prompts), stream = random.int(0, 1) === 0;
        const leaves = random.int(0, 3) === 0, gone = new AbortController();
        const tokens = random.int(1, 60), wait = random.int(0, 60);
        if (leaves) {
          setTimeout(() => gone.abort(), wait);
        }
        let text: string;
        try {
          const response = await fetch(`${server.url}/v1/completions`, {
            method: "POST",
            body: JSON.stringify(ask(prompt, tokens, stream)),
            signal: gone.signal,
          });
          assertEquals(response.status, 200);
          text = await response.text();
        } catch (error) {
          assert(leaves, `${error}`);
          continue;
        }
        const written: string = stream
          ? eventsOf(text).slice(0, -1)
            .map((data) => JSON.parse(data).choices[0].text).join("")
          : JSON.parse(text).choices[0].text;
        const sure = alone.get(prompt)!;
        const known = cut.has(prompt) ? written.slice(0, sure.length) : written;
        assert(sure.startsWith(known), `${prompt}: ${written}`);
        assert(written !== "" || tokens < 3, prompt);
      }
    };
    await Promise.all(Array.from({ length: CLIENTS }, client));
    await until(async () => await server.metric("running") === 0);
    assertEquals(await server.metric("waiting"), 0);
  },
);

Deno.test("what prompts share is read once, and usage says so", async () => {
  await using server = await serving();
  const prompt = "Once upon a time there was a dog. ".repeat(30);
  const ask = async (prompt: string) => {
    const body = { prompt, max_tokens: 2, temperature: 0 };
    const { json } = await server.post("/v1/completions", body);
    return json.usage.prompt_tokens_details.cached_tokens;
  };
  assertEquals(await ask(prompt), 0);
  const cached = await ask(`${prompt}The cat`);
  assert(cached > 100, `${cached} tokens`);
  assertEquals(await server.metric("cached_tokens_total"), cached);
});

Deno.test("vectors are computed between the steps of texts", async () => {
  await using server = await serving();
  const text = server.post("/v1/completions", {
    prompt: "Once upon a time",
    max_tokens: 300,
    ignore_eos: true,
  });
  const asked = Array.from(
    { length: 6 },
    () => server.post("/v1/embeddings", { input: "A dog." }),
  );
  const vectors = (await Promise.all(asked)).map(({ status, json }): Json => [
    status,
    json.data?.[0].embedding.length,
  ]);
  assertEquals(vectors, Array.from({ length: 6 }, () => [200, 192]));
  assertEquals((await text).json.usage.completion_tokens, 300);
});

Deno.test("a model is served without an engine too, one text at a time", async () => {
  await using server = await serving({ slots: 0 });
  assertEquals(await server.metric("slots"), 1);
  const asked = ["A dog", "Once", "The sun"].map((prompt) =>
    server.post("/v1/completions", { prompt, max_tokens: 20, temperature: 0 })
  );
  for (const { status } of await Promise.all(asked)) assertEquals(status, 200);
});
