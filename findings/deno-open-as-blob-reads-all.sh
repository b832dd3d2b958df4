#!/usr/bin/env bash
# Deno 2.9.6, node:fs: openAsBlob reads the whole file into memory, twice its size.
#
# Guess: it opens the file, as on Node 26.10.0, and slices of the blob read what they need, so
#   that a file of weights may be larger than memory.
# Seen (2026-11-30, Linux): for a file of 256 MiB Node takes almost nothing, Deno some 512 MiB
#   before anything is read. The blob is a copy: if the file changes, Node refuses to read
#   and Deno gives the old bytes.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 node@26.10.0 >/dev/null
cat > try.mjs <<'JS'
import fs from "node:fs";
const size = 256 * 2 ** 20;
fs.writeFileSync("weights", "old");
const small = await fs.openAsBlob("weights");
fs.writeFileSync("weights", "newer");
const text = await small.text().catch((error) => error.name);
fs.truncateSync("weights", size);
const before = process.memoryUsage.rss();
const blob = await fs.openAsBlob("weights");
const taken = process.memoryUsage.rss() - before;
console.log(blob.size === size, taken < size / 4 ? "little" : taken > size ? "more" : taken, text);
JS
seen=$(npx node try.mjs; npx deno run --quiet --allow-all try.mjs); echo "$seen"
[ "$seen" = $'true little NotReadableError\ntrue more old' ] || { echo "changed"; exit 1; }
