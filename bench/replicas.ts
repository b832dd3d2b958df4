/**
 * Two replicas of `deno task serve` behind nginx (Debian's, on this machine), one of them
 * killed under load: no reply may be wrong, and every request must succeed after retries.
 *
 *   deno run -A bench/replicas.ts [SECONDS]
 */
const [duration = "10"] = Deno.args;
const CLIENTS = 8, RETRIES = 5, TOKENS = 60;
const PORT = 18_080;

/** The balancer's configuration: a session's requests go to one replica, which has its prefix. */
const nginxConf = (folder: string, ports: readonly number[]) => `
daemon off;
pid ${folder}/pid;
error_log ${folder}/error.log;
events {}
http {
  access_log off;
  client_body_temp_path ${folder}/body;
  proxy_temp_path ${folder}/proxy;
  fastcgi_temp_path ${folder}/fastcgi;
  uwsgi_temp_path ${folder}/uwsgi;
  scgi_temp_path ${folder}/scgi;
  upstream qwen3 {
    hash $http_x_session consistent;
    ${
  ports.map((port) => `server 127.0.0.1:${port} max_fails=1 fail_timeout=5s;`)
    .join("\n    ")
}
  }
  server {
    listen 127.0.0.1:${PORT};
    location / {
      proxy_pass http://qwen3;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_buffering off;
      proxy_read_timeout 600s;
      # A replica that stops answers 503, one that was killed nothing.
      proxy_next_upstream error timeout http_503 non_idempotent;
    }
  }
}
`;

async function startReplica() {
  const child = new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "-A", "--no-lock", "tasks/serve.ts", "--port", "0"],
      ...["--device", "cpu", "--threads", "1", "--slots", "4"],
    ],
    cwd: new URL("..", import.meta.url),
    stderr: "piped",
  }).spawn();
  const found = Promise.withResolvers<number>();
  (async () => {
    let text = "";
    for await (
      const part of child.stderr.pipeThrough(new TextDecoderStream())
    ) {
      const [, port] = /:(\d+)\/v1/.exec(text += part) ?? [];
      if (port) found.resolve(Number(port));
    }
  })();
  const port = await found.promise;
  while (!await isUp(port)) await sleep(50);
  return { child, port };
}

async function isUp(port: number): Promise<boolean> {
  try {
    const response = await fetch(`http://127.0.0.1:${port}/health`);
    await response.body?.cancel();
    return response.ok;
  } catch {
    return false;
  }
}

const sleep = (ms: number) => new Promise((done) => setTimeout(done, ms));

/** What a session asks; each turn begins like the one before. */
const promptOf = (session: number, turn: number) =>
  `Story ${session}. ` + "Once upon a time there was a little dog. ".repeat(
    4 + turn,
  );

async function ask(port: number, session: number, turn: number) {
  const stream = (session + turn) % 2 === 0;
  const response = await fetch(`http://127.0.0.1:${port}/v1/completions`, {
    method: "POST",
    headers: { "x-session": `${session}` },
    body: JSON.stringify({
      prompt: promptOf(session, turn),
      temperature: 0,
      max_tokens: TOKENS,
      stream,
      ...(stream && { stream_options: { include_usage: true } }),
    }),
  });
  const body = await response.text();
  if (!response.ok) throw new Error(`${response.status} ${body}`);
  if (!stream) {
    const { choices: [{ text }], usage } = JSON.parse(body);
    return { text, cached: usage.prompt_tokens_details.cached_tokens };
  }
  const events = body.split("\n\n").filter(Boolean)
    .map((event) => event.replace("data: ", ""));
  if (events.pop() !== "[DONE]") throw new Error("the stream broke off");
  const chunks = events.map((data) => JSON.parse(data));
  const { usage } = chunks.pop();
  return {
    text: chunks.map(({ choices: [{ text }] }) => text).join(""),
    cached: usage.prompt_tokens_details.cached_tokens,
  };
}

const folder = await Deno.makeTempDir();
const replicas = [await startReplica(), await startReplica()];
await Deno.writeTextFile(
  `${folder}/nginx.conf`,
  nginxConf(folder, replicas.map(({ port }) => port)),
);
const nginx = new Deno.Command("nginx", {
  args: ["-c", `${folder}/nginx.conf`, "-p", folder],
}).spawn();
while (!await isUp(PORT)) await sleep(50);

const counts = { right: 0, wrong: 0, retried: 0, lost: 0, hits: 0 };
const expected = new Map<string, Promise<string>>();
/** The reply of a server that nobody kills. */
const alone = replicas[1].port;
const until = performance.now() + 1000 * Number(duration);
const kill = setTimeout(() => {
  console.log(`killing a replica after ${counts.right} replies`);
  replicas[0].child.kill("SIGKILL");
}, 500 * Number(duration));

await Promise.all(
  Array.from({ length: CLIENTS }, async (_, session) => {
    for (let turn = 0; performance.now() < until; turn = (turn + 1) % 8) {
      const key = promptOf(session, turn);
      if (!expected.has(key)) {
        expected.set(key, ask(alone, session, turn).then(({ text }) => text));
      }
      for (let attempt = 0;; attempt++) {
        try {
          const { text, cached } = await ask(PORT, session, turn);
          if (text === await expected.get(key)) counts.right++;
          else counts.wrong++;
          if (cached > 0) counts.hits++;
          break;
        } catch (error) {
          if (attempt === RETRIES) {
            console.log(`session ${session}: ${error}`);
            counts.lost++;
            break;
          }
          counts.retried++;
          await sleep(100 * 2 ** attempt);
        }
      }
    }
  }),
);
clearTimeout(kill);
console.log(
  `${counts.right} right, ${counts.wrong} wrong, ${counts.retried} retries, ${counts.lost} lost; ${counts.hits} with a cached prefix`,
);
nginx.kill("SIGTERM");
replicas[1].child.kill("SIGTERM");
await Promise.all([nginx.status, replicas[1].child.status]);
await Deno.remove(folder, { recursive: true });
Deno.exit(counts.wrong + counts.lost > 0 ? 1 : 0);
