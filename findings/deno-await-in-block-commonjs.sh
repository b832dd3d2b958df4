#!/usr/bin/env bash
# Deno 2.9.6: in a package of type commonjs, as `npm init` makes it, top-level await works or
#   fails depending on whether an await stands outside of blocks.
#
# Guess: a script with top-level await is an ES module wherever the await stands, or is
#   refused wherever it stands.
# Seen (2026-11-28, Linux x64): if all of them stand in blocks (try, for, if), the script ends
#   with "Cannot require() ES Module ... in a cycle", which does not mention await, before its
#   first line. With `await 0;` in front, it runs.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 >/dev/null
npm pkg set type=commonjs
echo 'try { console.log("ran", await 1); } catch {}' > block.ts
(echo "await 0;"; cat block.ts) > before.ts
run() {
  (npx deno run --quiet "$1" 2>&1 || true) | grep -o '^ran 1\|Cannot require() ES Module'
}
seen="$(run before.ts), $(run block.ts)"; echo "$seen"
[ "$seen" = "ran 1, Cannot require() ES Module" ] || { echo "changed"; exit 1; }
