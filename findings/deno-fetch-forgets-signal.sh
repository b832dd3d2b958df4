#!/usr/bin/env bash
# Deno 2.9.6: a response that has arrived may forget the AbortSignal of its request.
#
# Guess: aborting the signal ends a pending read of the body and closes the connection, no
#   matter when memory is collected.
# Seen (2026-11-28): after a garbage collection, abort does nothing: the read stays pending
#   and the connection open. Cancelling the body closes it. Before the response has arrived,
#   abort works either way.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 >/dev/null
cat > try.ts <<'TS'
import net from "node:net";
declare const gc: () => void;
const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
let open = 0;
const server = net.createServer((socket) => {
  open++;
  socket.on("close", () => open--).on("error", () => {}).on("end", () => socket.destroy());
  socket.once("data", () => socket.write("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"));
});
await new Promise<void>((listening) => server.listen(0, "127.0.0.1", () => listening()));
const { port } = server.address() as net.AddressInfo;
for (const collect of [false, true]) {
  const abort = new AbortController();
  const { body } = await fetch(`http://127.0.0.1:${port}`, { signal: abort.signal });
  const reader = body!.getReader();
  await reader.read();
  let state = "pending";
  reader.read().then(() => state = "ended", () => state = "failed");
  await sleep(50);
  if (collect) gc();
  abort.abort();
  await sleep(200);
  console.log(collect ? "collected" : "not collected", state, open);
  await reader.cancel().catch(() => {});
  await sleep(200);
  console.log("cancelled", open);
}
Deno.exit();
TS
seen=$(npx deno run --quiet --allow-net --v8-flags=--expose-gc try.ts); echo "$seen"
[ "$seen" = "not collected failed 0
cancelled 0
collected pending 1
cancelled 0" ] || { echo "changed"; exit 1; }
