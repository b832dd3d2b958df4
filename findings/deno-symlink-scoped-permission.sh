#!/usr/bin/env bash
# Deno 2.9.6: Deno.symlink needs read and write permission for everything.
#
# Guess: a link inside a folder is allowed by --allow-read=FOLDER --allow-write=FOLDER,
#   as creating, renaming and copying files there is.
# Seen (2026-11-28, Linux x64): the write and the rename succeed, the link throws
#   NotCapable; only --allow-read and --allow-write without paths allow it.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 >/dev/null
mkdir data
cat > try.ts <<'TS'
Deno.writeTextFileSync("data/a", "x");
Deno.renameSync("data/a", "data/b");
try {
  Deno.symlinkSync("b", "data/link");
  console.log("linked");
} catch (error) {
  console.log((error as Error).name);
}
TS
scoped=$(npx deno run --quiet --no-prompt --allow-read="$dir/data" --allow-write="$dir/data" try.ts 2>&1)
whole=$(npx deno run --quiet --no-prompt --allow-read --allow-write try.ts 2>&1)
echo "scoped: $scoped"; echo "whole: $whole"
[ "$scoped" = NotCapable ] && [ "$whole" = linked ] || { echo "changed"; exit 1; }
