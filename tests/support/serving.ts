/** A server of a model on the loopback interface. */
import {
  loadQwen3,
  type Qwen3,
  type Served,
  Server,
  type ServerOptions,
} from "../../mod.ts";

/** JSON of a response, whose shape the test knows. */
// deno-lint-ignore no-explicit-any
export type Json = any;

/** A response that has been read. */
export interface Answer {
  status: number;
  headers: Headers;
  json: Json;
}

/** What is served, and how. */
export interface Serving extends Partial<Omit<Served, "qwen">> {
  /** The story model by default. */
  model?: string;
  /** Those of an engine; 0 serves the model without one. Default: 4. */
  slots?: number;
  options?: ServerOptions;
}

/** Loads a model on the CPU and serves it until disposed. */
export async function serving(
  { model, options, slots = 4, names = ["test-model"], ...served }: Serving =
    {},
) {
  const qwen = await loadQwen3(model, { device: "cpu", threads: 1 });
  const server = new Server(options);
  const engine = slots > 0 ? await qwen.engine({ slots }) : undefined;
  server.serve({ qwen, engine, names, ...served });
  return { ...listening(server), qwen };
}

/** A server behind HTTP, and how to ask it. */
export interface Listening extends AsyncDisposable {
  readonly server: Server;
  readonly url: string;
  readonly qwen?: Qwen3;
  /** Sends JSON, or a body as it is. */
  post(path: string, body: unknown, headers?: HeadersInit): Promise<Answer>;
  get(path: string, headers?: HeadersInit): Promise<Answer>;
  /** The data of each event of a stream. */
  stream(path: string, body: unknown): Promise<string[]>;
  /** The value of a metric. */
  metric(name: string): Promise<number>;
}

/** Puts a server behind HTTP. */
export function listening(server: Server): Listening {
  const http = Deno.serve(
    { port: 0, hostname: "127.0.0.1", onListen: () => {} },
    (request) => server.fetch(request),
  );
  const url = `http://127.0.0.1:${http.addr.port}`;
  const ask = async (path: string, init: RequestInit): Promise<Answer> => {
    const response = await fetch(url + path, init);
    const { status, headers } = response, text = await response.text();
    const isJson = headers.get("content-type")?.includes("json");
    return { status, headers, json: isJson ? JSON.parse(text) : text };
  };
  const post = (path: string, body: unknown, headers?: HeadersInit) =>
    ask(path, { method: "POST", body: bodyOf(body), headers });
  const get = (path: string, headers?: HeadersInit) => ask(path, { headers });
  return {
    server,
    url,
    post,
    get,
    async stream(path, body) {
      const { json } = await post(path, body);
      return eventsOf(json);
    },
    async metric(name) {
      const { json } = await get("/metrics");
      const [, value] = new RegExp(`^qwen3_${name} (.*)$`, "m").exec(json)!;
      return Number(value);
    },
    async [Symbol.asyncDispose]() {
      await http.shutdown();
      (this as Listening).qwen?.[Symbol.dispose]();
    },
  };
}

function bodyOf(body: unknown): BodyInit {
  return typeof body === "string" || body instanceof Uint8Array ||
      body instanceof ReadableStream
    ? body as BodyInit
    : JSON.stringify(body);
}

/** The data of the events in a text. */
export function eventsOf(text: string): string[] {
  return text.split("\n\n").filter((event) => event.startsWith("data: "))
    .map((event) => event.slice("data: ".length));
}

/** Waits until something is so. */
export async function until(test: () => boolean | Promise<boolean>) {
  while (!await test()) await new Promise((done) => setTimeout(done, 5));
}
