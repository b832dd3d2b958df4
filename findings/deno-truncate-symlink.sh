#!/usr/bin/env bash
# Deno 2.9.6: Deno.truncate does not follow a symbolic link.
#
# Guess: like truncate(2), Deno.writeTextFile and Deno.open, it follows the link and
#   shortens the file.
# Seen (2026-11-28, Linux x64): it throws FilesystemLoop, "Too many levels of symbolic
#   links (os error 40)", although there is one link and no loop. Writing through the
#   same link works.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 >/dev/null
cat > try.ts <<'TS'
Deno.writeTextFileSync("file", "0123456789");
Deno.symlinkSync("file", "link");
try {
  Deno.truncateSync("link", 4);
  console.log("followed:", Deno.statSync("file").size);
} catch (error) {
  console.log((error as Error).name);
}
Deno.writeTextFileSync("link", "0123");
console.log(Deno.statSync("file").size);
TS
seen=$(npx deno run --quiet -A try.ts 2>&1); echo "$seen"
[ "$seen" = $'FilesystemLoop\n4' ] || { echo "changed"; exit 1; }
