#!/usr/bin/env bash
# Deno 2.9.6: while a program works and lets the event loop turn by messages (MessageChannel) or
#   setImmediate, requests that have arrived at its server wait for dozens of turns.
#
# Guess: a turn by a message runs what is ready, sockets included.
# Seen (2026-11-29, Linux x64): of 16 requests that come together the first is handled at once,
#   the others within one or two turns by setTimeout, and mostly after 30 turns or more by
#   messages: tokio looks at sockets when it has nothing else to do, or every 61 tasks.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 >/dev/null
cat > client.mts <<'TS'
const [url] = Deno.args;
await Promise.all(Array.from({ length: 16 }, async () => await (await fetch(url)).text()));
TS
cat > server.mts <<'TS'
const ways: Record<string, () => Promise<unknown>> = {
  messages() {
    const { port1, port2 } = new MessageChannel();
    const turned = new Promise<void>((resolve) => port1.onmessage = () => {
      port1.close();
      resolve();
    });
    port2.postMessage(null);
    return turned;
  },
  timers: () => new Promise((resolve) => setTimeout(resolve, 0)),
};
for (const [name, turn] of Object.entries(ways)) {
  let most = 0;
  for (let round = 0; round < 5; round++) {
    const all = Promise.withResolvers<void>();
    let arrived = 0, turns = 0;
    const server = Deno.serve({ port: 0, onListen() {} }, async () => {
      if (++arrived === 1) {
        for (; arrived < 16; turns++) {
          for (const end = performance.now() + 2.5; performance.now() < end;);
          await turn();
        }
        all.resolve();
      }
      await all.promise;
      return new Response();
    });
    const url = `http://127.0.0.1:${server.addr.port}`;
    const args = ["run", "--allow-net", "client.mts", url];
    await new Deno.Command(Deno.execPath(), { args }).output();
    await server.shutdown();
    most = Math.max(most, turns);
  }
  console.log(name, most > 20 ? "late" : "soon");
  console.error(name, most, "turns");
}
TS
seen=$(NO_COLOR=1 npx deno run -A server.mts | tr '\n' ' '); echo "$seen"
[ "$seen" = "messages late timers soon " ] || { echo "changed"; exit 1; }
