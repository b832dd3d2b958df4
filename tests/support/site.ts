/** A site with mod.ts as one bundle, the story model, and a page that is empty. */
import { readFolder } from "./serve_folder.ts";

const ROOT = new URL("../../", import.meta.url);

/** mod.ts and the script of its threads, bundled for browsers, by their paths on a site. */
export async function bundled(): Promise<Map<string, Uint8Array>> {
  const folder = await Deno.makeTempDir();
  try {
    const { code, stderr } = await new Deno.Command(Deno.execPath(), {
      args: [
        ...["bundle", "--quiet", "--platform", "browser", "--outdir", folder],
        ...["mod.ts", "lib/cpu/worker.ts"],
      ],
      cwd: ROOT,
    }).output();
    if (code !== 0) throw new Error(new TextDecoder().decode(stderr));
    const files = new Map<string, Uint8Array>();
    for (const name of ["mod.js", "lib/cpu/worker.js"]) {
      files.set(`/${name}`, await Deno.readFile(`${folder}/${name}`));
    }
    return files;
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** A request, and the status and the bytes of its answer. */
export interface Asked {
  path: string;
  method: string;
  headers: Headers;
  status: number;
  bytes: number;
}

/** A site that is served; its files and headers may change. */
export interface Site extends AsyncDisposable {
  url: string;
  files: Map<string, Uint8Array>;
  /** Headers of every answer. */
  headers: Record<string, string>;
  /** Answers instead, if it returns something. */
  intercept?: (request: Request, path: string) => Response | undefined;
  asked: Asked[];
}

export const MODEL = "/models/stories-3m/";
export const WEIGHTS = `${MODEL}model.safetensors`;

const TYPES: Readonly<Record<string, string>> = {
  css: "text/css",
  html: "text/html; charset=utf-8",
  js: "text/javascript",
};

/** Serves files with ETags of their content. */
export async function serveSite(
  files: ReadonlyMap<string, Uint8Array>,
): Promise<Site> {
  const own = new Map(files);
  for (const [name, bytes] of await readFolder(new URL(`.${MODEL}`, ROOT))) {
    own.set(MODEL + name.slice(1), bytes);
  }
  own.set("/", new TextEncoder().encode("<!doctype html><title>Site</title>"));
  own.set("/favicon.ico", new Uint8Array());
  const stop = new AbortController();
  const server = Deno.serve({
    port: 0,
    hostname: "127.0.0.1",
    onListen: () => {},
    signal: stop.signal,
  }, async (request) => {
    const path = new URL(request.url).pathname;
    const answer = site.intercept?.(request, path) ??
      await respond(site, request, path);
    site.asked.push({
      path,
      method: request.method,
      headers: new Headers(request.headers),
      status: answer.status,
      bytes: Number(answer.headers.get("content-length")),
    });
    return answer;
  });
  const site: Site = {
    url: `http://127.0.0.1:${server.addr.port}`,
    files: own,
    headers: {},
    asked: [],
    [Symbol.asyncDispose]() {
      stop.abort(); // also the requests of a page that was closed
      return server.finished;
    },
  };
  return site;
}

/** The ETag of content. */
export async function etagOf(bytes: Uint8Array): Promise<string> {
  const hash = await crypto.subtle.digest("SHA-1", bytes.slice());
  return `"${new Uint8Array(hash).toHex()}"`;
}

async function respond(
  site: Site,
  request: Request,
  path: string,
): Promise<Response> {
  const bytes = site.files.get(path);
  if (bytes === undefined) {
    return new Response(null, { status: 404, headers: site.headers });
  }
  const headers: Record<string, string> = {
    ...site.headers,
    "etag": await etagOf(bytes),
    "content-type": TYPES[path === "/" ? "html" : path.split(".").pop()!] ??
      "application/octet-stream",
  };
  if (request.headers.get("if-none-match") === headers.etag) {
    return new Response(null, { status: 304, headers });
  }
  const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.get("range") ?? "");
  const condition = request.headers.get("if-range") ?? headers.etag;
  const isPart = range !== null && condition === headers.etag;
  const begin = isPart ? Number(range[1]) : 0;
  const end = isPart && range[2] !== "" ? Number(range[2]) + 1 : bytes.length;
  headers["content-length"] = `${end - begin}`;
  if (isPart) {
    headers["content-range"] = `bytes ${begin}-${end - 1}/${bytes.length}`;
  }
  return new Response(bytes.slice(begin, end), {
    status: isPart ? 206 : 200,
    headers,
  });
}
