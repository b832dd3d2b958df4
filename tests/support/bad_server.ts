/**
 * A server below HTTP: tests write every byte of its answers, or none, and close or reset
 * connections when they like.
 *
 * @module
 */
// Deno's own sockets cannot send a reset.
import net from "node:net";

/** The head of a request. */
export interface RawRequest {
  method: string;
  /** Path and query, as sent. */
  target: string;
  headers: Headers;
}

/** The server's end of a connection. It is closed when the answer ends. */
export interface RawConnection {
  /** Whether the client has closed the connection. */
  readonly gone: boolean;
  write(data: string | Uint8Array): Promise<void>;
  /** Sends nothing, and waits until the client closes or the server is disposed. */
  hang(): Promise<void>;
  /** Closes with a TCP reset, after what was written has arrived. */
  reset(): Promise<void>;
}

/** Answers one request; a connection has no second one. */
export type RawAnswer = (
  request: RawRequest,
  connection: RawConnection,
) => Promise<void> | void;

/** A server made by {@linkcode serveRaw}. */
export interface RawServer extends AsyncDisposable {
  url: string;
  /** Requests in the order of their arrival. */
  requests: RawRequest[];
  /** Connections that are open now. */
  readonly open: number;
}

/** Serves `answer` on loopback until disposed. */
export async function serveRaw(answer: RawAnswer): Promise<RawServer> {
  const requests: RawRequest[] = [];
  const sockets = new Set<net.Socket>();
  const answers = new Set<Promise<void>>();
  const server = net.createServer((socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
    socket.on("error", () => {}); // the client has left
    let head = "";
    const take = (data: Uint8Array) => {
      head += new TextDecoder("latin1").decode(data);
      if (!head.includes("\r\n\r\n")) return;
      socket.off("data", take);
      socket.resume();
      const request = parseHead(head);
      requests.push(request);
      const done = (async () => {
        await answer(request, connectionOf(socket));
        socket.end();
      })();
      answers.add(done);
      done.finally(() => answers.delete(done));
    };
    socket.on("data", take);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as net.AddressInfo).port}`,
    requests,
    get open() {
      return sockets.size;
    },
    async [Symbol.asyncDispose]() {
      const closed = new Promise((resolve) => server.close(resolve));
      for (const socket of sockets) socket.destroy();
      await Promise.all([closed, ...answers]);
    },
  };
}

function connectionOf(socket: net.Socket): RawConnection {
  return {
    get gone() {
      return socket.destroyed;
    },
    write: (data) =>
      new Promise((resolve) =>
        socket.destroyed ? resolve() : socket.write(data, () => resolve())
      ),
    hang: () =>
      new Promise((resolve) => {
        if (socket.destroyed) return resolve();
        socket.once("close", () => resolve());
        socket.once("end", () => socket.destroy());
      }),
    async reset() {
      await arrived();
      socket.resetAndDestroy();
    },
  };
}

/** Waits until bytes that were written have reached the client. */
function arrived(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 10));
}

function parseHead(head: string): RawRequest {
  const [first, ...lines] = head.slice(0, head.indexOf("\r\n\r\n")).split(
    "\r\n",
  );
  const [method, target] = first.split(" ");
  const headers = new Headers(
    lines.map((line) => {
      const colon = line.indexOf(":");
      return [line.slice(0, colon), line.slice(colon + 1).trim()];
    }),
  );
  return { method, target, headers };
}

/** An answer's head, with `Connection: close` and the given header lines. */
export function head(status: string, ...lines: string[]): string {
  return [`HTTP/1.1 ${status}`, "Connection: close", ...lines, "", ""]
    .join("\r\n");
}

/** Answers with a status, header lines and a body of known length. */
export function reply(
  status: string,
  lines: readonly string[] = [],
  body: string | Uint8Array = "",
): RawAnswer {
  const bytes = bytesOf(body);
  return async (_, connection) => {
    const length = /^(1|204|304)/.test(status)
      ? []
      : [`Content-Length: ${bytes.length}`];
    await connection.write(head(status, ...length, ...lines));
    await connection.write(bytes);
  };
}

/** Writes an answer's bytes as they are, then closes, hangs or resets. */
export function raw(
  parts: (string | Uint8Array)[],
  end: "close" | "hang" | "reset" = "close",
): RawAnswer {
  return async (_, connection) => {
    for (const part of parts) await connection.write(part);
    if (end !== "close") await connection[end]();
  };
}

/** A body in chunks of `Transfer-Encoding: chunked`, with its end unless it is `broken`. */
export function chunked(
  body: string | Uint8Array,
  { size = 1000, broken = false } = {},
): (string | Uint8Array)[] {
  const bytes = bytesOf(body), parts: (string | Uint8Array)[] = [];
  for (let at = 0; at < bytes.length; at += size) {
    const chunk = bytes.subarray(at, at + size);
    parts.push(`${chunk.length.toString(16)}\r\n`, chunk, "\r\n");
  }
  return broken ? parts : [...parts, "0\r\n\r\n"];
}

/** The range that a request asks for; undefined if it asks for a whole file. */
export function rangeOf(
  { headers }: RawRequest,
): { begin: number; end: number } | undefined {
  const [, begin, end] =
    /^bytes=(\d+)-(\d*)$/.exec(headers.get("range") ?? "") ?? [];
  return begin
    ? { begin: Number(begin), end: end ? Number(end) : Infinity }
    : undefined;
}

/**
 * Answers as a good server does: whole or by range, with `tags` as the header lines
 * that name the file's version, with the whole file if `If-Range` names another, and
 * with 304 if the version is known.
 */
export function serveWell(
  file: Uint8Array | undefined,
  tags: readonly string[] = [],
): RawAnswer {
  return async (request, connection) => {
    if (file === undefined) {
      return await reply("404 Not Found")(request, connection);
    }
    const { headers } = request;
    const names = (value: string | null) =>
      tags.some((line) => line.endsWith(`: ${value}`));
    if (
      names(headers.get("if-none-match")) ||
      names(headers.get("if-modified-since"))
    ) return await reply("304 Not Modified", tags)(request, connection);
    const range = rangeOf(request), condition = headers.get("if-range");
    const meets = condition === null || names(condition);
    if (range === undefined || !meets) {
      return await reply("200 OK", tags, file)(request, connection);
    }
    const end = Math.min(range.end, file.length - 1);
    await reply("206 Partial Content", [
      ...tags,
      `Content-Range: bytes ${range.begin}-${end}/${file.length}`,
    ], file.subarray(range.begin, end + 1))(request, connection);
  };
}

/** Bytes of text; bytes stay as they are. */
export function bytesOf(body: string | Uint8Array): Uint8Array {
  return typeof body === "string" ? new TextEncoder().encode(body) : body;
}
