/**
 * Serves a model to clients of OpenAI's API.
 *
 *   deno task serve
 *   deno task serve --model Qwen/Qwen3-0.6B --port 8000
 */
import { errorText } from "../lib/errors.ts";
import { Server } from "../lib/server/server.ts";
import { type Flags, type FlagTable, runTask } from "./flags.ts";
import { onInterrupt } from "./interrupts.ts";
import { nameModel, say } from "./model.ts";
import { LOADING_FLAGS, Progress, THREADS_FLAG } from "./progress.ts";
import { readServed, SERVED_FLAGS, startServing } from "./served.ts";

const FLAGS: FlagTable = {
  ...SERVED_FLAGS,
  "host": ["text", "address to listen on; 0.0.0.0 is every one", "127.0.0.1"],
  "port": ["number", "port to listen on; 0 takes a free one", 8000],
  "api-key": [
    "text",
    "key that clients must send; better in QWEN3_API_KEY, where ps does not show it",
    "none",
  ],
  "queue": [
    "number",
    "texts that may wait; further requests get status 429",
    64,
  ],
  "timeout": ["number", "seconds that a request may take", 600],
  "max-body": ["number", "MiB that a request may have", 8],
  "cors": [
    "texts",
    "origin whose pages may use the server, * for all; may be repeated",
  ],
  "verbose": ["switch", "say every choice about the device, with its reason"],
  ...LOADING_FLAGS,
  ...THREADS_FLAG,
};

const NOTES =
  `Endpoints: / (a page to chat), /v1/models, /v1/chat/completions, /v1/completions, /v1/responses, /v1/embeddings, /tokenize, /health, /metrics.
A function's "strict": true makes the arguments of its calls valid under its schema, also under tool_choice "auto".
/health answers 503 until the model can answer, and while the server stops. Ctrl-C lets texts in progress end; a second one does not.`;

/** How errors begin. */
const CANNOT = "Cannot serve";

/** Environment variable of the API key. */
const KEY = "QWEN3_API_KEY";
/** Host names of a server on the loopback interface. */
const LOOPBACK = ["localhost", "127.0.0.1", "[::1]"];

await runTask({
  usage: "deno task serve [flags]",
  flags: FLAGS,
  notes: NOTES,
  examples: [
    "deno task serve",
    "deno task serve --model Qwen/Qwen3-0.6B --port 0 --alias gpt-4o-mini",
    "QWEN3_API_KEY=secret deno task serve --host 0.0.0.0",
    `curl localhost:8000/v1/completions -d '{"prompt": "Once upon a time"}'`,
  ],
  flagsOnly: "serve",
}, async (flags) => {
  const served = await readServed(flags);
  const [hostname = "127.0.0.1"] = flags.filled("host");
  const port = flags.whole("port", 0, 65_535) ?? 8000;
  const server = serverOf(flags, hostname);
  const interrupt = onInterrupt(), { signal } = interrupt;
  using progress = await Progress.start();
  silenceWarning();
  const http = listen(server, hostname, port);
  try {
    using _ = await startServing(server, served, signal, progress);
    await aborted(signal);
    server.stop();
    say("Stopping: texts in progress end; Ctrl-C again does not wait.");
    await http.shutdown();
  } catch (error) {
    if (interrupt.code === undefined) throw nameModel(error);
    progress.clear();
    return interrupt.code; // while the model was loading
  }
  return 0;
});

/** Reads the options of the server. */
function serverOf(flags: Flags, hostname: string): Server {
  const [apiKey = Deno.env.get(KEY) || undefined] = flags.filled("api-key");
  const isLocal = LOOPBACK.includes(hostname) || hostname === "::1";
  if (!isLocal && apiKey === undefined) {
    say(
      `Anybody who reaches ${hostname} can use the server: ${KEY} would ask for a key.`,
    );
  }
  return new Server({
    apiKey,
    cors: flags.texts("cors"),
    hosts: isLocal && apiKey === undefined ? LOOPBACK : undefined,
    queue: flags.whole("queue", 0),
    seconds: flags.whole("timeout", 1, 86_400),
    bodyBytes: (flags.whole("max-body", 1, 1024) ?? 8) << 20,
    onError: (line) => say(`Error: ${line}`),
  });
}

/**
 * Silences Deno's warning that it aborts a request's signal after a reply too, which does no
 * harm here. deno.json has the flag against it, which an installed command lacks.
 */
function silenceWarning(): void {
  const { warn } = console;
  console.warn = (...parts) => {
    if (!`${parts[0]}`.startsWith("Deno.serve: request.signal")) warn(...parts);
  };
}

function listen(
  server: Server,
  hostname: string,
  port: number,
): Deno.HttpServer<Deno.NetAddr> {
  try {
    return Deno.serve({
      hostname,
      port,
      onListen: ({ hostname, port }) => {
        const host = hostname.includes(":") ? `[${hostname}]` : hostname;
        say(`Serving OpenAI's API at http://${host}:${port}/v1`);
      },
    }, (request) => server.fetch(request));
  } catch (error) {
    const why = error instanceof Deno.errors.AddrInUse
      ? "the port is in use, --port 0 takes a free one"
      : errorText(error);
    throw new Error(`${CANNOT} on ${hostname}, port ${port}: ${why}`);
  }
}

async function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise((done) => signal.addEventListener("abort", done));
}
