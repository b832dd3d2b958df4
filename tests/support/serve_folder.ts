/** Serves files from memory on loopback, with or without byte ranges. */
export function serveFiles(
  files: ReadonlyMap<string, Uint8Array>,
  options: {
    ranges?: boolean;
    /** Answers in place of the server if it returns a response. */
    intercept?: (
      request: Request,
    ) => Response | undefined | Promise<Response | undefined>;
  } = {},
): AsyncDisposable & {
  url: string;
  requests: Pick<Request, "url" | "headers">[];
} {
  const requests: Pick<Request, "url" | "headers">[] = [];
  const server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    async (request) => {
      // Copied, because a request cannot be read after its response.
      requests.push({
        url: request.url,
        headers: new Headers(request.headers),
      });
      const answer = await options.intercept?.(request);
      if (answer !== undefined) return answer;
      const file = files.get(decodeURIComponent(new URL(request.url).pathname));
      if (file === undefined) {
        return new Response("no such file", { status: 404 });
      }
      return options.ranges === false
        ? new Response(file.slice())
        : rangeResponse(request, file);
    },
  );
  return {
    url: `http://127.0.0.1:${server.addr.port}`,
    requests,
    [Symbol.asyncDispose]: () => server.shutdown(),
  };
}

/** Responds with the whole file, or with the requested range. */
export function rangeResponse(
  request: Request,
  file: Uint8Array,
  headers: Record<string, string> = {},
): Response {
  const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.get("range") ?? "");
  if (range === null) return new Response(file.slice(), { headers });
  const begin = Number(range[1]);
  const end = range[2] === "" ? file.length : Number(range[2]) + 1;
  return new Response(file.slice(begin, end), {
    status: 206,
    headers: {
      ...headers,
      "content-range": `bytes ${begin}-${end - 1}/${file.length}`,
    },
  });
}

/** Reads a directory into a map for serveFiles. */
export async function readFolder(
  folder: URL | string,
): Promise<Map<string, Uint8Array>> {
  const files = new Map<string, Uint8Array>();
  for await (const { name, isFile } of Deno.readDir(folder)) {
    if (!isFile) continue;
    const path = folder instanceof URL
      ? new URL(name, folder)
      : `${folder}/${name}`;
    files.set(`/${name}`, await Deno.readFile(path));
  }
  return files;
}

/** Like rangeResponse, but the connection closes after `count` bytes. */
export async function brokenResponse(
  request: Request,
  file: Uint8Array,
  count: number,
): Promise<Response> {
  const { status, headers, body } = rangeResponse(request, file);
  const bytes = new Uint8Array(await new Response(body).arrayBuffer());
  headers.set("content-length", `${bytes.length}`);
  const parts = [bytes.slice(0, count)];
  const short = new ReadableStream<Uint8Array>({
    async pull(controller) {
      const part = parts.shift();
      if (part !== undefined) return controller.enqueue(part);
      await new Promise((resolve) => setTimeout(resolve, 20)); // lets the bytes arrive
      controller.close();
    },
  });
  return new Response(short, { status, headers });
}
