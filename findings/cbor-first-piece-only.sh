#!/usr/bin/env bash
# cbor 10.0.12 on Node 26.10.0 and Deno 2.9.6: encode returns only the beginning of the data,
#   without an error.
#
# Guess: {"a":1} becomes the 4 bytes a1616101, as on Node 24.21.0; the package takes Node 20
#   and later.
# Seen (2026-11-30): it becomes a1 alone. A readable stream's read() without a size used to
#   give all that is buffered, and here gives the first piece of it, which cbor takes for all.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null
npm install --silent cbor@10.0.12 node@26.10.0 deno@2.9.6 >/dev/null
cat > try.mjs <<'JS'
import { PassThrough } from "node:stream";
import cbor from "cbor";
const stream = new PassThrough();
stream.write("ab");
stream.write("cd");
console.log(...[{ a: 1 }, [1, 2], 1000].map((value) => cbor.encode(value).toString("hex")),
  String(stream.read()));
JS
seen=$(npx node try.mjs; npx deno run --quiet --allow-all try.mjs); echo "$seen"
[ "$seen" = $'a1 82 19 ab\na1 82 19 ab' ] || { echo "changed"; exit 1; }
