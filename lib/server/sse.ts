/**
 * Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).
 *
 * @module
 */

/** Milliseconds without an event after which a comment keeps the connection open. */
const SILENCE_MS = 15_000;

const utf8 = new TextEncoder();

/**
 * A response of events. What is sent while the client is not reading is kept, and goes out
 * together as soon as it reads again.
 */
export class EventStream {
  /** The response to return. */
  readonly response: Response;
  #pending = "";
  #ended = false;
  /** Resolved when there is something to send. */
  #news = Promise.withResolvers<void>();
  #controller!: ReadableStreamDefaultController<Uint8Array>;
  readonly #alive: ReturnType<typeof setInterval>;
  #patience?: ReturnType<typeof setTimeout>;

  /**
   * @param gone is called once if the client goes away, or takes nothing for `writeMs`
   */
  constructor(gone: () => void, readonly writeMs: number) {
    const leave = () => {
      if (this.#ended) return;
      this.#end();
      gone();
    };
    this.leave = leave;
    const body = new ReadableStream<Uint8Array>({
      start: (controller) => {
        this.#controller = controller;
      },
      pull: (controller) => this.#pull(controller),
      cancel: leave,
    }, { highWaterMark: 0 });
    this.response = new Response(body, {
      headers: {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache, no-transform",
        "x-accel-buffering": "no", // nginx would wait for a full buffer
      },
    });
    this.#alive = setInterval(() => {
      if (this.#pending === "") this.#add(": still working\n\n");
    }, SILENCE_MS);
  }

  /** Ends the stream without another event, as if the client had gone. */
  readonly leave: () => void;

  /** Sends an event, with a name or without. */
  send(data: string, name?: string): void {
    if (this.#ended) return;
    this.#add(
      `${name === undefined ? "" : `event: ${name}\n`}data: ${data}\n\n`,
    );
  }

  /** Ends the stream after what was sent. */
  close(): void {
    if (this.#ended) return;
    this.#ended = true;
    clearInterval(this.#alive);
    this.#news.resolve();
  }

  #add(text: string): void {
    this.#pending += text;
    this.#news.resolve();
    this.#patience ??= setTimeout(() => {
      this.#controller.error(new Error("the client takes nothing"));
      this.leave();
    }, this.writeMs);
  }

  async #pull(
    controller: ReadableStreamDefaultController<Uint8Array>,
  ): Promise<void> {
    if (this.#pending === "" && !this.#ended) await this.#news.promise;
    this.#news = Promise.withResolvers();
    clearTimeout(this.#patience);
    this.#patience = undefined;
    const text = this.#pending;
    this.#pending = "";
    if (text !== "") controller.enqueue(utf8.encode(text));
    else if (this.#ended) controller.close();
  }

  #end(): void {
    this.#ended = true;
    this.#pending = "";
    clearInterval(this.#alive);
    clearTimeout(this.#patience);
  }
}
