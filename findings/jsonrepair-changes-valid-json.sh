#!/usr/bin/env bash
# jsonrepair 3.15.0: some valid JSON comes out as other data.
#
# Guess: it repairs what is broken; a text that JSON.parse takes keeps its value.
# Seen (2026-11-30, Node 20): if an array's last string has an opening bracket that it does
#   not close, the string is cut there: ["read arr[i"] becomes ["read arr",["i"]]. Later
#   values may be drawn in: {"a":["["],"b":1} loses b. Nothing tells of the change.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent jsonrepair@3.15.0 >/dev/null
cat > try.mjs <<'JS'
import { jsonrepair } from "jsonrepair";
const values = [["read arr[0]"], ["arr[", "x"], ["{"], ["read arr[i"], ["half-open [0, 1)"],
  { a: ["["], b: 1 }];
for (const text of values.map((value) => JSON.stringify(value))) {
  const repaired = jsonrepair(text);
  JSON.parse(repaired);
  console.log(text, repaired === text ? "kept" : repaired);
}
JS
seen=$(node try.mjs); echo "$seen"
[ "$seen" = '["read arr[0]"] kept
["arr[","x"] kept
["{"] kept
["read arr[i"] ["read arr",["i"]]
["half-open [0, 1)"] ["half-open", [0, 1,")"]]
{"a":["["],"b":1} {"a":["",["]","b",":1"]]}' ] || { echo "changed"; exit 1; }
