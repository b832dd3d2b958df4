#!/usr/bin/env bash
# best-effort-json-parser 1.5.1: in JSON that has not ended yet, the exponent of a number
#   becomes a value of its own.
#
# Guess: each prefix of a valid text gives the values read so far.
# Seen (2026-11-30, Node 20): [1e-3,2 gives [1,"e-3",2]. In an object the rest of the number
#   becomes a key with the next value: {"loss":1e-3,"ok":[true gives {"loss":1,"e-3,\"ok\"":
#   [true]}. Only the complete text is read rightly.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent best-effort-json-parser@1.5.1 >/dev/null
cat > try.mjs <<'JS'
import { parse } from "best-effort-json-parser";
for (const text of ["[0.001,2", "[1e-3,2", "[1e-3,2]", '{"loss":1e-3,"ok":[true',
  '{"loss":1e-3,"ok":[true]}']) {
  console.log(text, JSON.stringify(parse(text)));
}
JS
seen=$(node try.mjs); echo "$seen"
[ "$seen" = '[0.001,2 [0.001,2]
[1e-3,2 [1,"e-3",2]
[1e-3,2] [0.001,2]
{"loss":1e-3,"ok":[true {"loss":1,"e-3,\"ok\"":[true]}
{"loss":1e-3,"ok":[true]} {"loss":0.001,"ok":[true]}' ] || { echo "changed"; exit 1; }
