/**
 * Requests to the Hugging Face Hub: where it is, the user's token, and what its refusals
 * mean. Environment variables work as in Python's huggingface_hub
 * (https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables).
 *
 * @module
 */
import { errorText } from "../errors.ts";
import { homeFolder, host } from "../host.ts";
import { patientFetch } from "./fetch.ts";
import type { OpenOptions } from "./sources.ts";

/** The Hub, or a server like it. */
export interface HubAccess {
  /** Its URL, without a slash at the end. */
  endpoint: string;
  /**
   * `fetch` that sends the token to the Hub and to no other host (a redirect to another
   * origin loses it, https://fetch.spec.whatwg.org/#http-redirect-fetch). Throws a
   * {@linkcode HubRefusal} for a status other than 2xx and 416.
   */
  fetch: typeof fetch;
}

/** The Hub refuses a request; retrying would not help. */
export class HubRefusal extends Error {}

/** The most of an error's body that is read, in bytes. */
const MOST_ERROR_BYTES = 1 << 16;

/** Whether a variable has a value that huggingface_hub takes as true. */
function isTrue(value: string | undefined): boolean {
  return /^(1|on|yes|true)$/i.test(value ?? "");
}

/** The variable that forbids downloads; undefined if none does. */
export function offlineBy(): string | undefined {
  const name = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
    .find((name) => host.env(name) !== undefined);
  return name !== undefined && isTrue(host.env(name)) ? name : undefined;
}

/** The folder of huggingface_hub's cache. */
export function cacheFolder(): string {
  const { env } = host;
  const given = env("HF_HUB_CACHE") ?? env("HUGGINGFACE_HUB_CACHE");
  const path = given === undefined ? `${hfHome()}/hub` : expand(given);
  return path.replace(
    host.runtime.os === "windows" ? /(?<=[^:])[/\\]+$/ : /(?<=.)\/+$/,
    "",
  );
}

/** The folder of huggingface_hub's files: below `~/.cache`, on macOS and Windows too. */
function hfHome(): string {
  const { env } = host;
  const given = env("HF_HOME");
  if (given !== undefined) return expand(given);
  const cache = env("XDG_CACHE_HOME") ?? `${home()}/.cache`;
  return expand(`${cache}/huggingface`);
}

function home(): string {
  const path = homeFolder();
  if (path !== undefined) return path;
  throw new Error(
    `Cannot find the Hugging Face cache: ${
      host.runtime.os === "windows" ? "USERPROFILE" : "HOME"
    } is not set, set it or HF_HOME`,
  );
}

/** Replaces `~` and environment variables, as Python does. */
function expand(path: string): string {
  const windows = host.runtime.os === "windows";
  const value = (all: string, a?: string, b?: string) =>
    host.env(a ?? b ?? "") ?? all;
  const full = path
    .replace(windows ? /^~(?=[/\\]|$)/ : /^~(?=\/|$)/, home)
    .replaceAll(/\$(\w+)|\$\{(\w+)\}/g, value);
  return windows ? full.replaceAll(/%(\w+)%/g, value) : full;
}

/** A secret, and where it came from. */
interface Token {
  value: string;
  from: string;
}

/**
 * The user's token: from the environment, or from the file that `hf auth login` writes.
 *
 * @throws {Error} if it cannot be read, or no header could hold it; the message does not
 * quote it
 */
async function readToken(): Promise<Token | undefined> {
  const { env } = host;
  if (isTrue(env("HF_HUB_DISABLE_IMPLICIT_TOKEN"))) return undefined;
  const named = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]
    .find((name) => env(name)?.trim());
  if (named !== undefined) return checkToken(env(named)!, named);

  const given = env("HF_TOKEN_PATH");
  const path = given === undefined ? `${hfHome()}/token` : expand(given);
  let text: string | undefined;
  try {
    text = await host.files.readText(path);
  } catch (cause) {
    throw new Error(
      `Cannot read the token for the Hugging Face Hub in ${path}: ${
        errorText(cause)
      }`,
      { cause },
    );
  }
  return text?.trim() ? checkToken(text, path) : undefined;
}

function checkToken(text: string, from: string): Token {
  const value = text.trim();
  if (/^[\x21-\x7e]+$/.test(value)) return { value, from };
  throw new Error(
    `Cannot use the token from ${from}: it has ${
      /[\r\n]/.test(value)
        ? "a line break"
        : "whitespace or a character that is not ASCII"
    }, must be one word`,
  );
}

function hubEndpoint(): string {
  const given = host.env("HF_ENDPOINT") ?? "https://huggingface.co";
  const url = URL.parse(given);
  if (
    url === null || !/^https?:$/.test(url.protocol) || url.search || url.hash ||
    url.username || url.password
  ) {
    throw new Error(
      "Cannot use HF_ENDPOINT: it must be an http(s) URL without user, query and fragment",
    );
  }
  return url.href.replace(/\/+$/, "");
}

/**
 * Prepares requests about a repository.
 *
 * @throws {Error} if the endpoint or the token cannot be used
 */
export async function hubAccess(
  name: string,
  options: OpenOptions,
): Promise<HubAccess> {
  const endpoint = hubEndpoint();
  const { origin } = new URL(endpoint);
  const token = await readToken();
  const once = patientFetch(options);
  const access: HubAccess = {
    endpoint,
    async fetch(input, init) {
      const url = new URL(input instanceof Request ? input.url : input);
      const headers = new Headers(init?.headers);
      // Compression would change sizes and ranges.
      headers.set("Accept-Encoding", "identity");
      if (token !== undefined && url.origin === origin) {
        headers.set("Authorization", `Bearer ${token.value}`);
      }
      const response = await once(url, { ...init, headers });
      if (response.ok || response.status === 416) return response;
      throw await refusal(response, { name, endpoint, token });
    },
  };
  return access;
}

/** What a response that is not 2xx means for the user. */
async function refusal(
  response: Response,
  { name, endpoint, token }: {
    name: string;
    endpoint: string;
    token: Token | undefined;
  },
): Promise<HubRefusal> {
  const { status, headers } = response;
  const url = URL.parse(response.url) ?? new URL(endpoint);
  const text = headers.get("x-error-message") ?? await bodyError(response);
  // A server may quote the request, as some do to help with debugging.
  const said = errorText(token ? text.replaceAll(token.value, "…") : text)
    .slice(0, 200);
  const code = headers.get("x-error-code");
  const needs = token === undefined
    ? "a token is needed: set HF_TOKEN or run hf auth login"
    : `the token from ${token.from} does not give access`;
  if (code === "GatedRepo" || /\bgated\b/i.test(said)) {
    return new HubRefusal(
      `the repository is gated: its conditions must be accepted at ${endpoint}/${name}, and ${needs}`,
    );
  }
  const who = url.href.startsWith(endpoint) ? "it" : url.origin;
  const answer = `${who} answered ${status}${
    said && ` (${said})`
  } for ${url.pathname}`;
  if (status === 401 && /invalid.*(credential|token)/i.test(said) && token) {
    return new HubRefusal(`${answer}: the token from ${token.from} is refused`);
  }
  if (code === "RevisionNotFound") {
    return new HubRefusal(`the repository has no such revision: ${answer}`);
  }
  if (code === "EntryNotFound") {
    return new HubRefusal(`no such file: ${answer}`);
  }
  if (code === "RepoNotFound" || status === 401 || status === 403) {
    return new HubRefusal(
      `there is no such repository (${status}; check the spelling), or ${needs}`,
    );
  }
  return new HubRefusal(answer);
}

/** The `error` of a JSON body; empty if there is none. */
async function bodyError(response: Response): Promise<string> {
  try {
    let text = "";
    const decoder = new TextDecoder();
    for await (const chunk of response.body ?? []) {
      text += decoder.decode(chunk, { stream: true });
      if (text.length > MOST_ERROR_BYTES) break;
    }
    const { error } = JSON.parse(text);
    return typeof error === "string" ? error : "";
  } catch {
    return ""; // an HTML page, or no body
  }
}
