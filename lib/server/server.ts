/**
 * OpenAI's HTTP API for a model: a handler of requests, for any runtime
 * that speaks the Fetch standard.
 *
 * @module
 */
import { errorText, OptionError, wrongOption } from "../errors.ts";
import type { Qwen3 } from "../load.ts";
import type { Prompt } from "../text/prompt.ts";
import { chat } from "./chat_completions.ts";
import { complete } from "./completions.ts";
import { readJsonBody } from "./body.ts";
import { embed } from "./embeddings.ts";
import { ApiError, errorResponse, refused } from "./errors.ts";
import { Metrics } from "./metrics.ts";
import { findModel, listModels } from "./models.ts";
import { respond } from "./responses.ts";
import { Queue } from "./queue.ts";
import { type Call, newId, seconds, type Service } from "./service.ts";
import type { Submitting } from "./service.ts";
import { GONE } from "./streamed.ts";
import { tokenize } from "./tokenize.ts";

/** Options of {@linkcode Server}. */
export interface ServerOptions {
  /** Clients must send it as `Authorization: Bearer KEY`; by default anybody may ask. */
  apiKey?: string;
  /**
   * Origins whose pages may use the server, `*` for all; by default only pages of the server
   * itself.
   */
  cors?: readonly string[];
  /**
   * Host names that a request may be for, without port; any by default. A server without a
   * key that listens on the loopback interface should name them: otherwise a page on the web
   * can give its own host name this address and then read the replies.
   */
  hosts?: readonly string[];
  /** Texts that may wait for a slot before further ones are refused. Default: 64. */
  queue?: number;
  /** Bytes of a request's body. Default: 8 MiB. */
  bodyBytes?: number;
  /** Seconds that a request may take, with its time in the queue. Default: 600. */
  seconds?: number;
  /** Seconds in which a body must arrive, and a client must take what was sent. Default: 30. */
  idleSeconds?: number;
  /** Takes a line about each error that is the server's fault. */
  onError?: (line: string) => void;
}

/** What a {@linkcode Server} serves. */
export interface Served {
  /** The model. */
  qwen: Qwen3;
  /** What generates; by default the model, one text at a time. */
  engine?: Submitting & { readonly stats: { readonly slots: number } };
  /** What the model is called, its own name first. */
  names: readonly string[];
  /** The chat template, if not the model's own. */
  chatTemplate?: string;
}

/** An endpoint: its method, and what answers. */
type Endpoint =
  | ["GET", (service: Service) => Response]
  | ["POST", (call: Call) => Response | Promise<Response>];

const ENDPOINTS: Readonly<Record<string, Endpoint>> = {
  "/v1/models": ["GET", listModels],
  "/v1/chat/completions": ["POST", chat],
  "/v1/completions": ["POST", complete],
  "/v1/responses": ["POST", respond],
  "/v1/embeddings": ["POST", embed],
  "/tokenize": ["POST", tokenize],
  "/metrics": ["GET", metricsText],
};
const MODELS = "/v1/models/";
const HEALTH = "/health";
/** Bytes of a body up to which Deno notices at once that its sender has gone: 8 kB or so. */
const SMALL_BODY = 4096;
/** The page to chat, in the browser. */
const PAGE = "/";

/**
 * Answers requests as OpenAI's API does. It keeps nothing between requests that another
 * server of the same model would lack.
 *
 * ```ts
 * import { loadQwen3, Server } from "../../mod.ts";
 *
 * const server = new Server();
 * using qwen = await loadQwen3();
 * server.serve({ qwen, names: ["stories-3m"] });
 * const response = await server.fetch(
 *   new Request("http://localhost/v1/completions", {
 *     method: "POST",
 *     body: JSON.stringify({ prompt: "Once upon a time", max_tokens: 8 }),
 *   }),
 * );
 * const { choices: [{ text }] } = await response.json();
 * console.log(text);
 * ```
 */
export class Server {
  readonly #options: ServerOptions;
  readonly #metrics = new Metrics();
  readonly #key: Promise<Uint8Array> | undefined;
  #service?: Service;
  #stopping = false;

  /**
   * Until it serves a model, requests are answered with status 503.
   *
   * @throws {OptionError} if `cors` has what no page's origin can be.
   */
  constructor(options: ServerOptions = {}) {
    for (const origin of options.cors ?? []) requireOriginText(origin);
    this.#options = options;
    const { apiKey } = options;
    this.#key = apiKey === undefined ? undefined : digest(apiKey);
  }

  /** Begins to serve a model, which stays the caller's to dispose. */
  serve({ qwen, engine, names, chatTemplate }: Served): void {
    const { queue = 64, seconds: most = 600, idleSeconds = 30 } = this.#options;
    const slots = engine?.stats.slots ?? 1;
    this.#service = {
      qwen,
      engine: engine ??
        // Prompts that are ready are taken too, but not for everybody to use.
        { submit: (prompt, how) => qwen.generate(prompt as Prompt, how) },
      names,
      chatTemplate: chatTemplate ?? qwen.chatTemplate,
      queue: new Queue(slots, queue),
      embedding: new Queue(1, slots + queue),
      metrics: this.#metrics,
      created: seconds(),
      seconds: most,
      writeMs: 1000 * idleSeconds,
    };
  }

  /** Lets texts in progress end, and refuses everything else with status 503. */
  stop(): void {
    this.#stopping = true;
    this.#service?.queue.end();
  }

  /** Answers a request; never throws. */
  readonly fetch = async (request: Request): Promise<Response> => {
    const path = pathOf(request);
    const id = newId("req_");
    let response: Response;
    try {
      response = await this.#answer(request, path);
    } catch (error) {
      response = this.#failed(request, error, id);
    }
    const known = path !== undefined &&
      (Object.hasOwn(ENDPOINTS, path) || path === HEALTH || path === PAGE);
    this.#metrics.request(known ? path : "other", response.status);
    response.headers.set("x-request-id", id);
    if (path !== undefined) this.#allowOrigin(request, response.headers);
    return response;
  };

  async #answer(request: Request, path?: string): Promise<Response> {
    if (path === undefined) {
      throw new ApiError(
        400,
        "Cannot answer: the Host header is wrong, must be a host with or without a port",
      );
    }
    this.#requireHost(request);
    if (path === HEALTH) return this.#health();
    if (path === PAGE && isRead(request)) return await page();
    this.#requireOrigin(request);
    if (request.method === "OPTIONS") return preflight();
    await this.#requireKey(request);
    const [method, run] = endpointOf(path);
    if (request.method !== method && !isHead(request, method)) {
      throw new ApiError(
        405,
        `Cannot ${request.method} ${path}: the method must be ${method}`,
        { code: "method_not_allowed", allow: method },
      );
    }
    const service = this.#service;
    const refuses = this.#stopping && method === "POST";
    if (service === undefined || refuses) throw this.#unavailable();
    if (method === "GET") return run(service);
    const { bodyBytes = 8 << 20, idleSeconds = 30 } = this.#options;
    const { json: body, bytes } = await readJsonBody(request, {
      most: bodyBytes,
      milliseconds: 1000 * idleSeconds,
    });
    const large = bytes > SMALL_BODY;
    return await run({ service, body, signal: request.signal, large });
  }

  #failed(request: Request, error: unknown, id: string): Response {
    const { signal } = request;
    if (signal.aborted && error === signal.reason) return errorResponse(GONE);
    const known = error instanceof OptionError ? refused(error, "") : error;
    if (!(known instanceof ApiError)) {
      this.#options.onError?.(`${id}: ${errorText(error)}`);
    }
    return errorResponse(known);
  }

  #health(): Response {
    const status = this.#stopping
      ? "stopping"
      : this.#service
      ? "ok"
      : "loading";
    return Response.json({ status }, { status: status === "ok" ? 200 : 503 });
  }

  #unavailable(): ApiError {
    return this.#stopping
      ? new ApiError(503, "Cannot answer: the server is stopping", {
        code: "stopping",
        retryAfter: 1,
      })
      : new ApiError(503, "Cannot answer: the model is still loading", {
        code: "loading",
        retryAfter: 2,
      });
  }

  /** @throws {ApiError} 403 if the request is for a host that is not served. */
  #requireHost(request: Request): void {
    const { hosts } = this.#options, { hostname } = new URL(request.url);
    if (hosts === undefined || hosts.includes(hostname)) return;
    throw new ApiError(
      403,
      `Cannot answer: the host is ${hostname}, must be ${hosts.join(" or ")}`,
      { code: "host_not_allowed" },
    );
  }

  /** @throws {ApiError} 403 if the request is from a page of an origin that may not ask. */
  #requireOrigin(request: Request): void {
    const origin = request.headers.get("origin");
    if (origin === null || this.#isAllowed(origin, request)) return;
    throw new ApiError(
      403,
      `Cannot answer: the page is from ${origin}, which --cors must allow`,
      { code: "origin_not_allowed" },
    );
  }

  #isAllowed(origin: string, request: Request): boolean {
    const { cors = [] } = this.#options;
    if (cors.includes("*") || cors.includes(origin)) return true;
    return URL.canParse(origin) &&
      new URL(origin).host === new URL(request.url).host;
  }

  #allowOrigin(request: Request, headers: Headers): void {
    const origin = request.headers.get("origin");
    const { cors = [] } = this.#options;
    if (cors.length === 0) return;
    headers.append("vary", "origin");
    if (origin === null || !this.#isAllowed(origin, request)) return;
    headers.set("access-control-allow-origin", origin);
    headers.set("access-control-expose-headers", "x-request-id, retry-after");
  }

  /** @throws {ApiError} 401 without the key. */
  async #requireKey(request: Request): Promise<void> {
    if (this.#key === undefined) return;
    const header = request.headers.get("authorization") ?? "";
    const given = /^bearer +(.*)$/i.exec(header)?.[1] ?? "";
    const [right, asked] = await Promise.all([this.#key, digest(given)]);
    // In constant time: the first byte that differs must not show.
    let difference = 0;
    for (const [i, byte] of right.entries()) difference |= byte ^ asked[i];
    if (difference === 0) return;
    throw new ApiError(
      401,
      header === ""
        ? "Cannot answer: there is no API key, must be sent as Authorization: Bearer KEY"
        : "Cannot answer: the API key is wrong",
      { code: "invalid_api_key" },
    );
  }
}

/** @throws {OptionError} if a browser would never send the text as a page's origin. */
function requireOriginText(text: string): void {
  if (text === "*" || /^[a-z][a-z\d+.-]*:\/\/[^/?#\s@]+$/.test(text)) return;
  throw wrongOption(
    "Cannot serve",
    "cors",
    text,
    "* or an origin, such as https://example.com",
  );
}

/** The path of a request; undefined if its Host header is none. */
function pathOf({ url }: Request): string | undefined {
  return URL.parse(url)?.pathname;
}

/** @throws {ApiError} 404 if there is none. */
function endpointOf(path: string): Endpoint {
  if (Object.hasOwn(ENDPOINTS, path)) return ENDPOINTS[path];
  if (path.startsWith(MODELS)) {
    const id = decode(path.slice(MODELS.length));
    return ["GET", (service: Service) => findModel(id, service)];
  }
  throw new ApiError(
    404,
    `Cannot find ${path}: must be one of ${
      [...Object.keys(ENDPOINTS), HEALTH].join(", ")
    }`,
    { code: "unknown_url" },
  );
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch { // a lone %
    return text;
  }
}

function isHead(request: Request, method: string): boolean {
  return method === "GET" && request.method === "HEAD";
}

function isRead({ method }: Request): boolean {
  return method === "GET" || method === "HEAD";
}

/** Only a server whose page is asked for loads it. */
async function page(): Promise<Response> {
  const { chatPage } = await import("./page/page.ts");
  return await chatPage();
}

function metricsText({ metrics, queue }: Service): Response {
  return new Response(metrics.text(queue), {
    headers: { "content-type": "text/plain; version=0.0.4; charset=utf-8" },
  });
}

function preflight(): Response {
  return new Response(null, {
    status: 204,
    headers: {
      "access-control-allow-methods": "GET, POST",
      "access-control-allow-headers": "*, authorization",
      "access-control-max-age": "3600",
    },
  });
}

async function digest(text: string): Promise<Uint8Array> {
  const bytes = new TextEncoder().encode(text);
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
}
