#!/usr/bin/env bash
# Deno 2.9.6, node:sqlite: a text with a zero character (U+0000) is stored whole, but rows bring
#   back only what stands before it.
#
# Guess: a row has the text that was stored, as on Node 26.10.0.
# Seen (2026-11-30): "a\0b" comes back as "a", without an error, from get, all and iterate, also
#   when SQL made it. hex shows that the table has all three bytes, and a function called
#   from SQL gets all three characters.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 node@26.10.0 >/dev/null
cat > try.mjs <<'JS'
import { DatabaseSync } from "node:sqlite";
const db = new DatabaseSync(":memory:");
db.function("units", (text) => text.length);
db.exec("create table notes (text)");
db.prepare("insert into notes values (?)").run("a\0b");
const query = db.prepare("select text, hex(text) bytes, units(text) units from notes");
const { text, bytes, units } = query.get();
console.log(...[text, query.all()[0].text, [...query.iterate()][0].text,
  db.prepare("select 'c' || char(0) || 'd' text").get().text].map((text) => JSON.stringify(text)),
  bytes, units);
JS
seen=$(npx node try.mjs; npx deno run --quiet --allow-all try.mjs); echo "$seen"
[ "$seen" = '"a\u0000b" "a\u0000b" "a\u0000b" "c\u0000d" 610062 3
"a" "a" "a" "c" 610062 3' ] || { echo "changed"; exit 1; }
