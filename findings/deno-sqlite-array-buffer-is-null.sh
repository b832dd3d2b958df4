#!/usr/bin/env bash
# Deno 2.9.6, node:sqlite: an ArrayBuffer as the first parameter of a statement becomes NULL,
#   without an error.
#
# Guess: it becomes a blob of its bytes, as on Node 26.10.0.
# Seen (2026-11-30): run(vector.buffer) stores NULL: the buffer is taken for an object of named
#   parameters, and it names none. As the second or a named one it is refused. The view
#   itself, vector, is stored as a blob of 8 bytes.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 node@26.10.0 >/dev/null
cat > try.mjs <<'JS'
import { DatabaseSync } from "node:sqlite";
const db = new DatabaseSync(":memory:");
const kind = "typeof(vector) || ifnull(length(vector), '')";
const vector = new Float32Array([1, 2]);
for (const [query, ...values] of [["select ? vector", vector], ["select ? vector", vector.buffer],
  ["select ?2 vector, ?1", 0, vector.buffer], ["select $v vector", { v: vector.buffer }]]) {
  try {
    console.log(db.prepare(`select ${kind} kind from (${query})`).get(...values).kind);
  } catch {
    console.log("refused");
  }
}
JS
seen=$(npx node try.mjs | xargs; npx deno run --quiet --allow-all try.mjs | xargs); echo "$seen"
[ "$seen" = $'blob8 blob8 blob8 blob8\nblob8 null refused refused' ] || { echo "changed"; exit 1; }
