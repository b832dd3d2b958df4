/** The chat page in a browser, before a server whose replies a test can write itself. */
import type { Page } from "npm:playwright-core@1.56.1";
import { Server, type ServerOptions } from "../../mod.ts";
import { loadQwen3 } from "../../mod.ts";
import { isTooWide, type Look, openPage } from "./browser.ts";
import type { Json } from "./serving.ts";

const CHAT = "/v1/chat/completions";

export const DESK: Look = { viewport: { width: 1280, height: 860 } };
export const PHONE: Look = { viewport: { width: 360, height: 740 } };

/** Parts of a scripted reply: text, other fields of a delta, or something to wait for. */
export type Part = string | Record<string, unknown> | Promise<void>;

/** A page, and what it asked for. */
export interface ChatPage extends AsyncDisposable {
  page: Page;
  url: string;
  server: Server;
  /** The body of every request for a reply. */
  asked: Json[];
  /** The headers of every request for a reply. */
  headers: Headers[];
  /** Answers the next requests instead of the model. */
  answer?: (request: Request) => Response | Promise<Response>;
  /** What the browser complained about, and requests to other hosts. */
  complaints: string[];
  /** Sends a message, and waits for the end of the reply. */
  send(text: string): Promise<void>;
  /** Waits for the end of the reply. */
  finished(): Promise<void>;
  /** The texts of the messages shown. */
  texts(): Promise<string[]>;
  /** Ends the HTTP server without waiting, as a crash does. */
  crash(): Promise<void>;
}

/** Opens the page of a server of the story model, or of the model in a folder. */
export async function chatPage(
  { options, look = DESK, model, context }: {
    options?: ServerOptions;
    look?: Look;
    model?: string;
    context?: number;
  } = {},
): Promise<ChatPage> {
  const qwen = await loadQwen3(model, { device: "cpu", threads: 1, context });
  const server = new Server(options);
  server.serve({ qwen, names: ["test-model"] });
  const asked: Json[] = [], headers: Headers[] = [], complaints: string[] = [];
  const stop = new AbortController();
  const http = Deno.serve({
    port: 0,
    hostname: "127.0.0.1",
    onListen: () => {},
    signal: stop.signal,
  }, async (request) => {
    const isChat = new URL(request.url).pathname === CHAT;
    if (!isChat || request.method !== "POST") {
      return await server.fetch(request);
    }
    asked.push(await request.clone().json());
    headers.push(request.headers);
    return await (chat.answer ?? server.fetch)(request);
  });
  const url = `http://127.0.0.1:${http.addr.port}/`;
  const opened = await openPage(look), { page } = opened;
  page.on("console", (message) => {
    const { url: where } = message.location();
    // Chromium logs every response that is no success.
    if (/Failed to load resource/.test(message.text())) return;
    complaints.push(`${message.text()} ${where}`);
  });
  page.on("pageerror", (error) => complaints.push(error.message));
  page.on("request", (request) => {
    const is = request.url();
    if (!is.startsWith(url) && is !== "data:,") complaints.push(is);
  });
  await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  const chat: ChatPage = {
    page,
    url,
    server,
    asked,
    headers,
    complaints,
    async send(text) {
      const before = asked.length;
      await page.getByLabel("Message", { exact: true }).fill(text);
      await page.keyboard.press("Enter");
      while (asked.length === before) await page.waitForTimeout(10);
      await this.finished();
    },
    async finished() {
      await page.getByRole("button", { name: "Stop" })
        .waitFor({ state: "hidden" });
    },
    texts: () => page.locator(".message .body").allInnerTexts(),
    async crash() {
      stop.abort();
      await http.finished;
    },
    async [Symbol.asyncDispose]() {
      const wide = await isTooWide(page);
      await opened[Symbol.asyncDispose]();
      stop.abort();
      await http.finished;
      qwen[Symbol.dispose]();
      if (wide) throw new Error("the page is wider than its window");
      if (complaints.length > 0) throw new Error(complaints.join("\n"));
    },
  };
  await page.goto(url);
  await page.getByRole("heading", { name: "test-model" }).or(
    page.getByRole("dialog"),
  ).first().waitFor();
  return chat;
}

/** A reply of given parts, as the server streams it. */
export function scripted(
  parts: readonly Part[],
  { finish = "stop", usage = true, done = true } = {},
): () => Response {
  const utf8 = new TextEncoder();
  const event = (json: unknown) =>
    utf8.encode(
      `data: ${typeof json === "string" ? json : JSON.stringify(json)}\n\n`,
    );
  const chunk = (delta: unknown, finish_reason: string | null = null) =>
    event({ choices: [{ index: 0, delta, finish_reason }] });
  return () => {
    let gone = false;
    const body = new ReadableStream<Uint8Array>({
      async start(controller) {
        for (const part of parts) {
          if (part instanceof Promise) await part;
          if (gone) return;
          if (part instanceof Promise) continue;
          const delta = typeof part === "string" ? { content: part } : part;
          controller.enqueue(chunk(delta));
        }
        if (!done) return controller.close();
        controller.enqueue(chunk({}, finish));
        if (usage) {
          controller.enqueue(event({
            choices: [],
            usage: {
              prompt_tokens: 1234,
              completion_tokens: 56,
              prompt_tokens_details: { cached_tokens: 1200 },
            },
          }));
        }
        controller.enqueue(event("[DONE]"));
        controller.close();
      },
      cancel() {
        gone = true;
      },
    });
    return new Response(body, {
      headers: { "content-type": "text/event-stream" },
    });
  };
}
