#!/usr/bin/env bash
# Node 26.10.0, fetch: bytes in shared memory, as WebAssembly with threads has them, are sent
#   as text, their numbers with commas between them.
#
# Guess: as specified (https://webidl.spec.whatwg.org/#AllowShared: a body may not be a view
#   of shared memory), fetch, Request and Response throw a TypeError; or the bytes are sent.
# Seen (2026-11-30): the server gets "1,2,3" as text/plain;charset=UTF-8 for the bytes 1, 2, 3.
#   Blob takes them, as bytes. Deno 2.9.6 throws TypeErrors for all of these.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 node@26.10.0 >/dev/null
cat > try.mjs <<'JS'
import { createServer } from "node:http";
const { buffer } = new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true });
const bytes = new Uint8Array(buffer, 0, 3);
bytes.set([1, 2, 3]);
const server = createServer(async (request, response) => {
  let body = "";
  for await (const chunk of request) body += chunk;
  response.end(`${JSON.stringify(body)} as ${request.headers["content-type"]}`);
}).listen(0, "127.0.0.1");
await new Promise((resolve) => server.once("listening", resolve));
const attempt = async (what, get) => {
  console.log(`${what}: ${await get().catch(({ name }) => name)}`);
};
await attempt("fetch", async () => {
  const url = `http://127.0.0.1:${server.address().port}/`;
  return await (await fetch(url, { method: "POST", body: bytes })).text();
});
await attempt("Response", async () => JSON.stringify(await new Response(bytes).text()));
await attempt("Blob", async () => [...new Uint8Array(await new Blob([bytes]).arrayBuffer())].join(" "));
server.close();
JS
node=$(npx node try.mjs) deno=$(npx deno run -A try.mjs)
printf 'node:\n%s\ndeno:\n%s\n' "$node" "$deno"
[ "$node" = $'fetch: "1,2,3" as text/plain;charset=UTF-8\nResponse: "1,2,3"\nBlob: 1 2 3' ] &&
  [ "$deno" = $'fetch: TypeError\nResponse: TypeError\nBlob: TypeError' ] || { echo "changed"; exit 1; }
