#!/usr/bin/env bash
# Deno 2.9.6, node:fs: writeSync of a string ignores the position.
#
# Guess: writeSync(fd, "X", 0) writes at the file's start and leaves the current position, as
#   on Node 26.10.0.
# Seen (2026-11-30): it writes at the current position, here the end, and moves it. A buffer in
#   place of the string, the callback's fs.write and a FileHandle's write keep the position.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 node@26.10.0 >/dev/null
cat > try.mjs <<'JS'
import fs from "node:fs";
const ways = {
  string: (fd) => fs.writeSync(fd, "X", 0),
  buffer: (fd) => fs.writeSync(fd, Buffer.from("X"), 0, 1, 0),
  callback: (fd) => new Promise((resolve) => fs.write(fd, "X", 0, "utf8", resolve)),
};
const results = [];
for (const [name, write] of Object.entries(ways)) {
  const fd = fs.openSync("file", "w");
  fs.writeSync(fd, "abc");
  await write(fd);
  fs.writeSync(fd, "d");
  fs.closeSync(fd);
  results.push(`${name} ${fs.readFileSync("file", "utf8")}`);
}
console.log(results.join(", "));
JS
seen=$(npx node try.mjs; npx deno run --quiet --allow-all try.mjs); echo "$seen"
[ "$seen" = "string Xbcd, buffer Xbcd, callback Xbcd
string abcXd, buffer Xbcd, callback Xbcd" ] || { echo "changed"; exit 1; }
