/** Serves the files of this tree, as the web server or registry of a package does. */
import { rangeResponse } from "./serve_folder.ts";

const ROOT = new URL("../../", import.meta.url);

/** How {@linkcode serveTree} answers. */
export interface TreeOptions {
  /** Whether a file, by its path in the tree, may be read; others are forbidden. */
  isPublic: (path: string) => boolean;
  /** What comes before the path of a file, such as `/v0.1.0`. */
  prefix?: string;
  /** The content type that the server sends; none by default. */
  contentType?: (path: string) => string | undefined;
  /** Answers in place of the server if it returns a response. */
  intercept?: (
    path: string,
  ) => Response | undefined | Promise<Response | undefined>;
}

/** A server, its URL with the prefix, and the paths that were asked for, without it. */
export interface ServedTree extends AsyncDisposable {
  url: string;
  host: string;
  paths: string[];
}

/** Serves the tree on loopback. */
export function serveTree(options: TreeOptions): ServedTree {
  const { isPublic, prefix = "", contentType, intercept } = options;
  const paths: string[] = [];
  const answer = async (request: Request): Promise<Response> => {
    const { pathname } = new URL(request.url);
    const given = await intercept?.(pathname);
    if (given !== undefined) return given;
    if (!pathname.startsWith(`${prefix}/`)) {
      return new Response("no such file", { status: 404 });
    }
    const path = pathname.slice(prefix.length + 1);
    paths.push(path);
    let file: Uint8Array<ArrayBuffer>;
    try {
      file = await Deno.readFile(new URL(path, ROOT));
    } catch {
      return new Response("no such file", { status: 404 });
    }
    if (!isPublic(path)) return new Response("not public", { status: 403 });
    const type = contentType?.(path);
    const headers: Record<string, string> = type
      ? { "content-type": type }
      : {};
    return rangeResponse(request, file, headers);
  };
  const server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    answer,
  );
  const host = `127.0.0.1:${server.addr.port}`;
  return {
    url: `http://${host}${prefix}`,
    host,
    paths,
    [Symbol.asyncDispose]: () => server.shutdown(),
  };
}
