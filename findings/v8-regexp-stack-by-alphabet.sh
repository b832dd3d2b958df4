#!/usr/bin/env bash
# Deno 2.9.6 (V8 15.0): how long a word /\p{L}+/u can match depends on its alphabet.
#
# Guess: a greedy class needs no stack, so the length of a match is limited by memory
#   only, or else by the same length for every letter.
# Seen (2026-11-28, Linux x64): with the alternation that tokenizers use, 5 million
#   letters "a" or "é" match; 5 million "中" raise RangeError "Maximum call stack size
#   exceeded". The class alone or a literal /中+/u takes them.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 >/dev/null
cat > try.ts <<'TS'
const length = 5_000_000;
for (const letter of ["a", "é", "中"]) {
  const text = letter.repeat(length);
  for (const pattern of [/\p{L}+|\P{L}+/u, new RegExp(`${letter}+`, "u")]) {
    try {
      console.log(letter, pattern.exec(text)![0].length === length);
    } catch (error) {
      console.log(letter, (error as Error).message);
    }
  }
}
TS
seen=$(npx deno run --quiet try.ts 2>&1); echo "$seen"
want=$'a true\na true\né true\né true\n中 Maximum call stack size exceeded\n中 true'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
