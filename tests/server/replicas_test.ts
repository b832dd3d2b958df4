/**
 * Two servers behind nginx with the configuration of examples/nginx.conf, on the loopback
 * interface. One is killed under load: no request is answered wrongly, and what failed
 * succeeds when its client tries again.
 */
import { assert, assertEquals } from "@std/assert";
import { RUN } from "../support/run_task.ts";
import { eventsOf } from "../support/serving.ts";

const ROOT = new URL("../../", import.meta.url);
/** Debian's nginx, from the package nginx-light. */
const NGINX = "/usr/sbin/nginx";
/** Without it the test is ignored, unless every test must run; the suite says so. */
const ignore = Deno.env.get("QWEN3_REQUIRE_GPU") !== "1" &&
  !await Deno.stat(NGINX).catch(() => undefined);

const PATH = "/v1/completions";
const PROMPTS = [
  "Once upon a time",
  "The dog",
  "It rained",
  "A girl named Lily",
];
const CLIENTS = 8, ROUNDS = 12, TRIES = 40;

const wait = (milliseconds: number) =>
  new Promise((done) => setTimeout(done, milliseconds));

async function isOk(url: string): Promise<boolean> {
  try {
    const response = await fetch(url);
    await response.body?.cancel();
    return response.ok;
  } catch {
    return false;
  }
}

function freePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}

/** Runs a program until disposed. */
function program(command: string, args: readonly string[]) {
  const child = new Deno.Command(command, {
    args: [...args],
    cwd: ROOT,
    stdout: "null",
    stderr: "null",
  }).spawn();
  const kill = async () => {
    try {
      child.kill("SIGKILL");
    } catch { // it has ended
    }
    await child.status;
  };
  return { kill, [Symbol.asyncDispose]: kill };
}

/** A server of the story model as a process of its own. */
function replica() {
  const port = freePort();
  const args = ["--device", "cpu", "--threads", "1", "--port", `${port}`];
  const running = program(Deno.execPath(), [...RUN, "tasks/serve.ts", ...args]);
  const url = `http://127.0.0.1:${port}`;
  return {
    ...running,
    port,
    url,
    /** Requests for texts that it has answered. */
    async answered(): Promise<number> {
      const text = await (await fetch(`${url}/metrics`)).text();
      const line = `qwen3_requests_total{path="${PATH}",status="200"} `;
      return Number(text.split(line)[1]?.split("\n")[0] ?? 0);
    },
  };
}

/** nginx with our configuration before servers on some ports. */
async function balancer(ports: readonly number[]) {
  const folder = await Deno.makeTempDir(), port = freePort();
  let ours = await Deno.readTextFile(new URL("examples/nginx.conf", ROOT));
  for (const [i, own] of [port, ...ports].entries()) {
    ours = ours.replaceAll(`127.0.0.1:${8000 + i}`, `127.0.0.1:${own}`);
  }
  await Deno.writeTextFile(`${folder}/qwen3.conf`, ours);
  const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
    .map((name) => `${name}_temp_path ${folder}/${name};`).join("\n");
  await Deno.writeTextFile(
    `${folder}/nginx.conf`,
    `daemon off; pid ${folder}/pid; error_log ${folder}/errors;
events {}
http { access_log off; ${temporary}
include ${folder}/qwen3.conf; }
`,
  );
  // One process, so that killing it leaves nothing.
  const args = ["-p", folder, "-c", `${folder}/nginx.conf`, "-e", "stderr"];
  const running = program(NGINX, [...args, "-g", "master_process off;"]);
  return {
    url: `http://127.0.0.1:${port}`,
    async [Symbol.asyncDispose]() {
      await running.kill();
      await Deno.remove(folder, { recursive: true });
    },
  };
}

/** What a client asks. */
interface Asked {
  prompt: string;
  stream: boolean;
  session: string;
}

/** The text of a complete answer; undefined if the request failed. */
async function ask(
  url: string,
  { prompt, stream, session }: Asked,
): Promise<string | undefined> {
  try {
    const response = await fetch(url + PATH, {
      method: "POST",
      headers: { "x-session-id": session, origin: url }, // as a page does
      body: JSON.stringify({
        prompt,
        stream,
        temperature: 0,
        max_tokens: 24,
      }),
    });
    const text = await response.text();
    if (response.status !== 200) return undefined;
    if (!stream) return JSON.parse(text).choices[0].text;
    const events = eventsOf(text);
    if (events.at(-1) !== "[DONE]") return undefined;
    return events.slice(0, -1).map((data) => JSON.parse(data).choices[0].text)
      .join("");
  } catch {
    return undefined;
  }
}

/** Begins a text of thousands of tokens; returns what waits for the rest of it. */
async function begin(url: string, session: string) {
  const response = await fetch(url + PATH, {
    method: "POST",
    headers: { "x-session-id": session },
    body: JSON.stringify({
      prompt: PROMPTS[0],
      stream: true,
      max_tokens: 900,
      ignore_eos: true,
      n: 4,
    }),
  });
  const reader = response.body!.pipeThrough(new TextDecoderStream())
    .getReader();
  const { value: first } = await reader.read();
  return async () => {
    let text = first!;
    try {
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return text;
        text += value;
      }
    } catch { // the connection broke
      return text;
    }
  };
}

Deno.test({
  name: "a session stays at one of two servers; one is killed under load",
  ignore,
  async fn() {
    await using first = replica();
    await using second = replica();
    const both = [first, second];
    await using nginx = await balancer(both.map(({ port }) => port));
    for (const { url } of [...both, nginx]) {
      while (!await isOk(`${url}/health`)) await wait(50);
    }
    assert(await isOk(`${nginx.url}/`), "the chat page is not there");
    const right = new Map<string, string>();
    for (const prompt of PROMPTS) {
      const asked = { prompt, stream: false, session: "" };
      right.set(prompt, (await ask(first.url, asked))!);
    }
    assertEquals(new Set(right.values()).size, PROMPTS.length);

    // Every request of a session goes to one server; the sessions share both.
    const homes: number[] = [];
    for (let session = 0; session < 32; session++) {
      const before = await second.answered();
      for (let i = 0; i < 2; i++) {
        const asked = {
          prompt: PROMPTS[0],
          stream: i === 1,
          session: `s${session}`,
        };
        assertEquals(await ask(nginx.url, asked), right.get(PROMPTS[0]));
      }
      homes.push(await second.answered() - before);
    }
    assertEquals([...new Set(homes)].sort(), [0, 2], homes.join());

    // A long text of the first server, which its end will cut.
    const cut = await begin(nginx.url, `s${homes.indexOf(0)}`);
    let done = 0, failures = 0;
    const clients = Array.from({ length: CLIENTS }, async (_, client) => {
      for (let round = 0; round < ROUNDS; round++) {
        const prompt = PROMPTS[(client + round) % PROMPTS.length];
        const asked = {
          prompt,
          stream: round % 2 === 0,
          session: `s${client * ROUNDS + round}`,
        };
        let text: string | undefined;
        for (let tries = 0; text === undefined; tries++) {
          assert(tries < TRIES, `no answer after ${tries} tries`);
          if (tries > 0) await wait(50);
          text = await ask(nginx.url, asked);
          if (text === undefined) failures++;
        }
        assertEquals(text, right.get(prompt));
        done++;
      }
    });
    while (done < CLIENTS) await wait(10);
    await first.kill();
    const doneBefore = done;
    assert(!(await cut()).includes("[DONE]"), "a cut text looks complete");
    await Promise.all(clients);
    assertEquals(done, CLIENTS * ROUNDS);
    assert(doneBefore < done, "nothing was asked after the end of the server");
    // Nothing fails but what was on its way.
    assert(failures <= CLIENTS, `${failures} failures`);
  },
});
