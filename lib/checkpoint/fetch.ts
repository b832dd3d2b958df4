/**
 * HTTP requests that survive a bad network: temporary failures are retried, a
 * silent server counts as a failure, and no message shows a password or a signature.
 *
 * @module
 */
import { errorText, OptionError } from "../errors.ts";

/** Options for requests. */
export interface FetchOptions {
  /** Aborts requests, reads and pauses at once. */
  signal?: AbortSignal;
  /** Used instead of the global `fetch`. */
  fetch?: typeof fetch;
  /**
   * Seconds without data from the server after which a request is given up and made
   * again; 30 by default.
   */
  readTimeout?: number;
  /** Called with a line of text for the user when a request takes long, with the reason. */
  onNotice?: (notice: string) => void;
  /** Used instead of a timer to wait between attempts, for tests. */
  sleep?: (ms: number, signal?: AbortSignal) => Promise<void>;
}

const READ_TIMEOUT = 30;
/** `setTimeout` takes 31 bits of milliseconds; a day is enough for any server. */
const MAX_READ_TIMEOUT = 86_400;

/** Maximum attempts in a row that bring no data, and the pause after the first. */
const TRIES = 4;
const FIRST_PAUSE_MS = 200;

/** The longest pause that a server may ask for, and the longest that is not announced. */
const MAX_PAUSE_MS = 300_000;
const QUIET_PAUSE_MS = 5_000;

/**
 * Bytes that make an attempt count as a success even though its connection broke. A
 * large file may take any number of such attempts.
 */
const PROGRESS_BYTES = 1 << 16;

/** A temporary failure: the request is worth repeating. */
export class TemporaryFailure extends Error {
  /** Always `TemporaryFailure`. */
  override name = "TemporaryFailure";

  /**
   * @param pauseMs how long the server asked to wait
   * @param silent whether the failure took the whole read timeout
   * @param noConnection whether there was no connection to the server at all
   */
  constructor(
    message: string,
    readonly pauseMs = 0,
    readonly silent = false,
    readonly noConnection = false,
  ) {
    super(message);
  }
}

/** All attempts failed, each in a way that may be temporary. */
export class Unreachable extends Error {
  /** @param noConnection whether there was no connection to the server at all */
  constructor(message: string, readonly noConnection: boolean) {
    super(message);
  }
}

/**
 * @param cannot the beginning of the error, such as `Cannot open URL`
 * @throws {OptionError} if a read timeout is not a usable number of seconds
 */
export function checkReadTimeout(
  cannot: string,
  seconds: number | undefined,
  what = "readTimeout",
): void {
  if (seconds === undefined) return;
  if (
    typeof seconds === "number" && seconds > 0 && seconds <= MAX_READ_TIMEOUT
  ) return;
  throw new OptionError(
    "readTimeout",
    `${cannot}: ${what} is ${
      String(seconds)
    }, must be a number of seconds above 0 and at most ${MAX_READ_TIMEOUT}`,
  );
}

/**
 * Wraps `fetch`: it stops with `signal`, gives up on a silent server, and retries
 * temporary failures. The bodies of its responses fail with a
 * {@linkcode TemporaryFailure} when they break off or stall; resuming is up to the
 * caller, see {@linkcode retry}.
 */
export function patientFetch(options: FetchOptions): typeof fetch {
  return async (input, init) => {
    const signals = [options.signal, init?.signal].filter((signal) => !!signal);
    const both = { ...options, signal: AbortSignal.any(signals) };
    const where = shownUrl(input instanceof Request ? input.url : `${input}`);
    return await retry(where, () => fetchOnce(input, init, both), both);
  };
}

/**
 * Repeats `attempt` as long as it fails with a {@linkcode TemporaryFailure}, with pauses
 * that grow or that the server asked for.
 *
 * @param what the file or URL, for notices
 * @param progress how many bytes all attempts have brought so far; attempts that bring
 * some do not count as failed
 */
export async function retry<T>(
  what: string,
  attempt: () => Promise<T>,
  options: FetchOptions,
  progress: () => number = () => 0,
): Promise<T> {
  const { signal, onNotice } = options;
  for (let tries = 1, before = progress();; tries++) {
    signal?.throwIfAborted();
    try {
      return await attempt();
    } catch (error) {
      signal?.throwIfAborted();
      if (!(error instanceof TemporaryFailure)) throw error;
      if (progress() - before >= PROGRESS_BYTES) tries = 1;
      before = progress();
      if (error.pauseMs > MAX_PAUSE_MS) {
        throw new Error(
          `${error.message}, asking to wait ${
            seconds(error.pauseMs)
          }, which must be at most ${seconds(MAX_PAUSE_MS)}`,
        );
      }
      if (tries >= TRIES) {
        throw new Unreachable(
          `${error.message}, tried ${TRIES} times`,
          error.noConnection,
        );
      }
      const ms = Math.max(FIRST_PAUSE_MS * 3 ** (tries - 1), error.pauseMs);
      if (error.silent || ms > QUIET_PAUSE_MS) {
        onNotice?.(
          `${what}: ${error.message}; trying again in ${seconds(ms)}.`,
        );
      }
      await pause(ms, options);
    }
  }
}

/** Waits; ends at once, with the signal's reason, when that is aborted. */
export async function pause(
  ms: number,
  { signal, sleep = sleepFor }: FetchOptions,
): Promise<void> {
  signal?.throwIfAborted();
  await sleep(ms, signal);
  signal?.throwIfAborted();
}

function sleepFor(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const abort = () => {
      clearTimeout(timer);
      reject(signal!.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", abort);
      resolve();
    }, ms);
    signal?.addEventListener("abort", abort, { once: true });
  });
}

/**
 * Makes one request. A user and password in the URL are sent as basic authentication,
 * which `fetch` drops when it is redirected to another origin.
 *
 * @throws {TemporaryFailure} for no connection, silence and the statuses 408, 425, 429
 * and 5xx
 */
export async function fetchOnce(
  input: RequestInfo | URL,
  init: RequestInit | undefined,
  options: FetchOptions,
): Promise<Response> {
  const { fetch: once = fetch, readTimeout = READ_TIMEOUT, signal } = options;
  const given = input instanceof Request ? input.url : `${input}`;
  const { url, authorization } = withoutUser(given);
  const headers = new Headers(
    init?.headers ?? (input instanceof Request ? input.headers : undefined),
  );
  if (authorization !== undefined && !headers.has("authorization")) {
    headers.set("authorization", authorization);
  }
  // Closes the connection of a request that was given up.
  const drop = new AbortController();
  const watch: Watch = {
    ms: readTimeout * 1000,
    signal,
    drop: () => drop.abort(),
    where: shownUrl(given),
  };
  const request = {
    ...init,
    headers,
    signal: signal ? AbortSignal.any([signal, drop.signal]) : drop.signal,
  };
  // The caller's own fetch may throw synchronously.
  const answer =
    (async () => await once(input instanceof Request ? input : url, request))();
  const response = await within(answer, "response", watch);
  const { status, statusText } = response;
  if ([408, 425, 429].includes(status) || status >= 500) {
    await response.body?.cancel().catch(() => {});
    throw new TemporaryFailure(
      `the server returned ${`${status} ${statusText}`.trim()}`,
      retryAfterMs(response.headers),
    );
  }
  // Browsers give a 304 an empty body, which a copy of it may not have.
  const hasBody = response.body !== null && status !== 304;
  return hasBody ? watched(response, watch) : response;
}

/** How long to wait for a server, and what to do afterwards. */
interface Watch {
  ms: number;
  signal?: AbortSignal;
  drop: () => void;
  /** The URL, for notices. */
  where: string;
}

/** Waits for `work`, at most as long as the server may be silent. */
async function within<T>(
  work: Promise<T>,
  what: "response" | "data",
  { ms, signal, drop, where }: Watch,
): Promise<T> {
  const { promise, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => {
    const silence = `no ${what} for ${seconds(ms)}`;
    reject(new TemporaryFailure(silence, 0, true));
    drop();
  }, ms);
  const abort = () => reject(signal!.reason);
  signal?.addEventListener("abort", abort, { once: true });
  try {
    signal?.throwIfAborted();
    return await Promise.race([work, promise]);
  } catch (error) {
    signal?.throwIfAborted();
    throw failure(error, where);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", abort);
    work.catch(() => {}); // it fails later if the connection was dropped
  }
}

/** The response with a body that fails when the server is silent for too long. */
function watched(response: Response, watch: Watch): Response {
  const reader = response.body!.getReader();
  const body = new ReadableStream<Uint8Array>({
    async pull(controller) {
      try {
        const { done, value } = await within(reader.read(), "data", watch);
        if (done) controller.close();
        else controller.enqueue(value);
      } catch (error) {
        // Deno may have forgotten the signal: findings/deno-fetch-forgets-signal.sh.
        reader.cancel().catch(() => {});
        throw error;
      }
    },
    cancel: (reason) => reader.cancel(reason),
  }, { highWaterMark: 0 }); // the clock runs only while somebody reads
  const { status, statusText, headers, url, redirected } = response;
  return Object.defineProperties(
    new Response(body, { status, statusText, headers }),
    { url: { value: url }, redirected: { value: redirected } },
  );
}

/** The failure of a request or a body, without secrets. */
function failure(error: unknown, where: string): unknown {
  if (error instanceof TemporaryFailure) return error;
  const { name, cause } = error instanceof Error ? error : new Error();
  const text = withoutSecrets(
    errorText(cause instanceof Error ? cause : error)
      // The caller names the URL already.
      .replace(/^error sending request .*?: client error \(\w+\): /, ""),
    where,
  );
  // A request that is itself invalid stays invalid.
  const lasting = /^(NotCapable|PermissionDenied)$/.test(name) ||
    /number of redirects|are blocked|not supported|invalid url/i.test(text);
  if (lasting) return new Error(text);
  const [, plain = text, noConnection] =
    IN_WORDS.find(([pattern]) => pattern.test(text)) ?? [];
  return new TemporaryFailure(plain, 0, false, noConnection);
}

/** Failures of connections in plain words, and whether there was no connection. */
const IN_WORDS: readonly [RegExp, string, noConnection?: boolean][] = [
  [/^error reading a body from connection$/, "the connection broke"],
  [
    /^(Failed to fetch|Load failed|NetworkError\b.*)$/,
    "the server cannot be reached, or does not let this page read it (CORS)",
    true,
  ],
  [/^dns error/, "the name cannot be resolved (no network?)", true],
  [
    /connection refused|\(os error (111|61|10061)\)/i,
    "the connection was refused",
    true,
  ],
  [
    /connection timed out|\(os error (110|60|10060)\)/i,
    "the connection timed out",
    true,
  ],
  [
    /unreachable|\(os error (101|113|51|65|10051|10065)\)/i,
    "the network is unreachable",
    true,
  ],
  [/^invalid peer certificate/, "the certificate is not trusted"],
  [/InvalidContentType/, "the server does not speak TLS, use http://"],
];

/** Reads `Retry-After`, seconds or a date (RFC 9110, 10.2.3), as milliseconds from now. */
function retryAfterMs(headers: Headers): number {
  const text = headers.get("retry-after")?.trim() ?? "";
  if (/^\d+$/.test(text)) return Number(text) * 1000;
  // Date.parse also takes forms that are not HTTP's, and local time.
  if (!/^[a-z]{3,9},? .*\d\d:\d\d:\d\d/i.test(text)) return 0;
  const date = Date.parse(/GMT$/i.test(text) ? text : `${text} GMT`);
  const now = Date.parse(headers.get("date") ?? "") || Date.now();
  return Math.max(0, date - now) || 0;
}

/** Splits a URL's user and password off, as an Authorization header. */
function withoutUser(text: string): { url: string; authorization?: string } {
  const url = URL.parse(text);
  if (url === null || (url.username === "" && url.password === "")) {
    return { url: text };
  }
  const plain = (part: string) => {
    try {
      return decodeURIComponent(part);
    } catch { // a lone %
      return part;
    }
  };
  const user = `${plain(url.username)}:${plain(url.password)}`;
  const bytes = new TextEncoder().encode(user);
  url.username = url.password = "";
  return {
    url: url.href,
    authorization: `Basic ${
      btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""))
    }`,
  };
}

/** The user of a URL of another scheme, also a broken one; group 1 precedes it. */
const USER =
  /^(\s*(?!file:)[a-z][\w+.-]+:[/\\]{2})(?:[^\s/\\@]*|[^\s/\\@]*:.*)@/is;
/** `user:password` without a scheme. */
const BARE_USER = /^(\s*[/\\]{0,2})[^\s/\\@:]{2,}:[^\s/\\@]*@/;

/**
 * A URL as messages show it: without user and password, and without the content of its
 * query, which may be a signature. Other text stays as it is.
 */
export function shownUrl(text: string): string {
  const url = URL.parse(text);
  if (url !== null && /^https?:$/.test(url.protocol)) {
    const { username, password, search, hash } = url;
    if (username + password + search + hash === "") return text;
    return url.origin + url.pathname + (url.search === "" ? "" : "?…");
  }
  if (/^\s*https?:/i.test(text)) {
    return text.replace(/^(\s*https?:[/\\]*).*@/is, "$1")
      .replace(/[?#].*$/s, "?…");
  }
  return /^\s*(?!file:)[a-z][\w+.-]+:[/\\]{2}/i.test(text)
    ? text.replace(USER, "$1").replace(/[?#].*$/s, "?…")
    : text.replace(BARE_USER, "$1");
}

/** `text` with every URL in it reduced to what may be shown. */
function withoutSecrets(text: string, where: string): string {
  return text.replaceAll(
    /https?:\/\/[^\s"'<>]+?(?=[)\]:;,.]*(?:\s|["'<>]|$))/gi,
    (url) => {
      const shown = shownUrl(url);
      return shown === where ? "it" : shown;
    },
  );
}

function seconds(ms: number): string {
  const number = (ms / 1000).toLocaleString("en", { maximumFractionDigits: 3 });
  return `${number} s`;
}
