/** A server like the Hugging Face Hub, and a cache of its own for each test. */
import { createHash } from "node:crypto";
import { rangeResponse, readFolder, serveFiles } from "./serve_folder.ts";

export const COMMIT = "0123456789abcdef0123456789abcdef01234567";

/** Every variable that decides where the Hub, its cache and the token are. */
const VARIABLES = [
  "HF_HUB_CACHE",
  "HUGGINGFACE_HUB_CACHE",
  "HF_HOME",
  "XDG_CACHE_HOME",
  "HOME",
  "HF_ENDPOINT",
  "HF_TOKEN",
  "HUGGING_FACE_HUB_TOKEN",
  "HF_TOKEN_PATH",
  "HF_HUB_DISABLE_IMPLICIT_TOKEN",
  "HF_HUB_OFFLINE",
  "TRANSFORMERS_OFFLINE",
];

/** An empty cache and a clean environment until disposed. */
export async function emptyCache() {
  const before = VARIABLES.map((name) => [name, Deno.env.get(name)] as const);
  for (const name of VARIABLES) Deno.env.delete(name);
  const path = await Deno.realPath(await Deno.makeTempDir());
  Deno.env.set("HF_HUB_CACHE", path);
  Deno.env.set("HF_HOME", `${path}/home`); // so that no token of the user is read
  const entry = `${path}/models--Some--Model`;
  return {
    path,
    entry,
    snapshot: `${entry}/snapshots/${COMMIT}`,
    async [Symbol.asyncDispose]() {
      for (const [name, value] of before) {
        if (value === undefined) Deno.env.delete(name);
        else Deno.env.set(name, value);
      }
      await Deno.remove(path, { recursive: true });
    },
  };
}

/** The files of a fixture by name, with a tokenizer.json. */
export async function fixtureFiles(
  fixture: string,
): Promise<Map<string, Uint8Array>> {
  const files = await readFolder(
    new URL(`../fixtures/${fixture}/`, import.meta.url),
  );
  return new Map([...files].map(([name, bytes]) => [name.slice(1), bytes]));
}

/** The SHA-256 of a large file's content. */
export function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/** The SHA-1 that names a blob in Git. */
export function gitSha1(bytes: Uint8Array): string {
  return createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes)
    .digest("hex");
}

/** The name of a file's blob in the cache. */
export function blobName(name: string, bytes: Uint8Array): string {
  return isLarge(name) ? sha256(bytes) : gitSha1(bytes);
}

function isLarge(name: string): boolean {
  return /\.(safetensors|bin|gguf)$/.test(name);
}

/** The entry of a file in the Hub's list. */
export function listedFile(name: string, bytes: Uint8Array) {
  return {
    type: "file",
    path: name,
    size: bytes.length,
    oid: isLarge(name)
      ? gitSha1(new TextEncoder().encode(`pointer to ${name}`))
      : gitSha1(bytes),
    ...(isLarge(name) && {
      lfs: { oid: sha256(bytes), size: bytes.length, pointerSize: 130 },
      xetHash: sha256(new TextEncoder().encode(name)),
    }),
  };
}

/** Answers in place of the Hub if it returns a response. `file` is what was asked for. */
export type Intercept = (
  request: Request,
  path: string,
  file: string | undefined,
) => Response | undefined | Promise<Response | undefined>;

/** Serves `Some/Model` with these files, and points the environment to the server. */
export async function serveHub(
  fixture: string | ReadonlyMap<string, Uint8Array>,
  intercept: Intercept = () => undefined,
) {
  let files: ReadonlyMap<string, Uint8Array>;
  if (typeof fixture === "string") {
    files = new Map([
      ...await fixtureFiles(fixture),
      ["tokenizer.json", new TextEncoder().encode('{"a":1}')],
      ["pytorch_model.bin", new Uint8Array(100)],
    ]);
  } else files = fixture;
  const server = serveFiles(new Map(), {
    async intercept(request) {
      const path = decodeURIComponent(new URL(request.url).pathname);
      const [, name] = /^\/Some\/Model\/resolve\/[0-9a-f]{40}\/(.+)$/
        .exec(path) ?? [];
      const answer = await intercept(request, path, name);
      if (answer !== undefined) return answer;
      if (
        /^\/api\/models\/Some\/Model\/revision\/(main|v1|0123456789abcdef\w*)$/
          .test(path)
      ) {
        return Response.json({ _id: "1", id: "Some/Model", sha: COMMIT });
      }
      if (path === `/api/models/Some/Model/tree/${COMMIT}`) {
        return Response.json(
          [...files].map(([name, bytes]) => listedFile(name, bytes)),
        );
      }
      const file = files.get(name);
      if (file !== undefined) {
        return rangeResponse(request, file, { etag: '"tag"' });
      }
      return Response.json({ error: "Repository not found" }, {
        status: 404,
        headers: { "x-error-code": "RepoNotFound" },
      });
    },
  });
  Deno.env.set("HF_ENDPOINT", server.url);
  return { ...server, files };
}

/** Names in a folder. */
export async function namesIn(folder: string): Promise<string[]> {
  return (await Array.fromAsync(Deno.readDir(folder), ({ name }) => name))
    .sort();
}

/** Puts files into the cache as Python's huggingface_hub does, with links to blobs. */
export async function fillCache(
  entry: string,
  files: ReadonlyMap<string, Uint8Array>,
  ref = "main",
) {
  for (const folder of ["refs", "blobs", `snapshots/${COMMIT}`]) {
    await Deno.mkdir(`${entry}/${folder}`, { recursive: true });
  }
  await Deno.writeTextFile(`${entry}/refs/${ref}`, COMMIT);
  for (const [name, bytes] of files) {
    const blob = blobName(name, bytes);
    await Deno.writeFile(`${entry}/blobs/${blob}`, bytes);
    const link = `${entry}/snapshots/${COMMIT}/${name}`;
    await Deno.remove(link).catch(() => {});
    await Deno.symlink(`../../blobs/${blob}`, link);
  }
}
