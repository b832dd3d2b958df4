#!/usr/bin/env bash
# serve-handler 6.1.8 (in serve), http-server 14.1.1 and sirv 3.0.2: each answers the range
#   requests of a download in its own way, none as RFC 9110 says.
#
# Guess: "bytes=-4" gets the last 4 bytes. If-Range with the tag of another version gets the
#   whole file, so a resumed download never mixes versions. A range that begins at the end
#   gets 416 and no content.
# Seen (2026-11-28, Node 20): for "bytes=-4" sirv sends the first 5 bytes, http-server 416.
#   All three ignore If-Range and send a part of the new version. serve puts the whole file
#   into a 416, so resuming a complete download transfers it again.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null
npm install --silent serve-handler@6.1.8 http-server@14.1.1 sirv@3.0.2 >/dev/null
mkdir files; printf 0123456789 > files/weights
cat > try.mjs <<'JS'
import { createServer } from "node:http";
import serve from "serve-handler";
import httpServer from "http-server";
import sirv from "sirv";
const servers = {
  serve: createServer((request, response) => serve(request, response, { public: "files" })),
  httpServer: httpServer.createServer({ root: "files" }).server,
  sirv: createServer(sirv("files", { etag: true })),
};
for (const [name, server] of Object.entries(servers)) {
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  const url = `http://127.0.0.1:${server.address().port}/weights`;
  for (const Range of ["bytes=-4", "bytes=4-", "bytes=10-"]) {
    const headers = Range === "bytes=4-" ? { Range, "If-Range": '"other"' } : { Range };
    const response = await fetch(url, { headers });
    console.log(name, Range, response.status, `"${await response.text()}"`);
  }
}
process.exit();
JS
seen=$(node try.mjs 2>/dev/null); echo "$seen"
[ "$(tr '\n' ' ' <<< "$seen")" = 'serve bytes=-4 206 "6789" serve bytes=4- 206 "456789" '\
'serve bytes=10- 416 "0123456789" httpServer bytes=-4 416 "" httpServer bytes=4- 206 "456789" '\
'httpServer bytes=10- 416 "" sirv bytes=-4 206 "01234" sirv bytes=4- 206 "456789" '\
'sirv bytes=10- 416 "" ' ] || { echo "changed"; exit 1; }
