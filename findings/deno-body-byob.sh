#!/usr/bin/env bash
# Deno 2.9.6: whether a body can be read into one's own memory (a BYOB reader) depends on what
#   it was made of.
#
# Guess: each body is a byte stream: the Fetch standard sets its stream up "with byte reading
#   support" whatever it is made of (https://fetch.spec.whatwg.org/#concept-bodyinit-extract).
# Seen (2026-11-30): Blob and FormData give one, as a fetched response has; a string, bytes,
#   URLSearchParams and Response.json do not, nor has the request that Deno.serve hands over:
#   "Cannot use a BYOB reader with a non-byte stream". In Node 20 the six made here do.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 >/dev/null
cat > try.mjs <<'JS'
const byob = ({ body }) => {
  try {
    body.getReader({ mode: "byob" }).releaseLock();
    return true;
  } catch {
    return false;
  }
};
const form = new FormData();
form.set("a", "b");
for (const [name, body] of Object.entries({
  blob: new Blob(["text"]), form, string: "text", bytes: new Uint8Array(4),
  parameters: new URLSearchParams("a=b"),
})) console.log(name, byob(new Response(body)));
console.log("json", byob(Response.json([])));
if (globalThis.Deno) {
  const server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen() {} }, (request) =>
    new Response(`request ${byob(request)}`));
  const url = `http://127.0.0.1:${server.addr.port}/`;
  const response = await fetch(url, { method: "POST", body: "text" });
  console.log("fetched", byob(response));
  console.log(await response.text());
  await server.shutdown();
}
JS
node=$(node try.mjs | grep -c true || true); echo "in Node: $node of 6"
seen=$(npx deno run --quiet --allow-net=127.0.0.1 try.mjs | tee /dev/stderr | xargs)
[ "$node, $seen" = "6, blob true form true string false bytes false parameters false json false \
fetched true request false" ] || { echo "changed"; exit 1; }
