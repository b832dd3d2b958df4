#!/usr/bin/env bash
# Deno 2.9.6 and Node 26.10.0: Atomics.waitAsync with a time limit does not keep the process
#   alive, so that a program that only waits for it ends without its result.
#
# Guess: the promise is fulfilled with "timed-out" after 50 ms, as setTimeout would be, and
#   with "ok" when a worker calls notify.
# Seen (2026-11-30): Deno fails with "Top-level await promise never resolved", Node ends with
#   code 13. With any other timer pending, both are fulfilled in time. Bun 1.4.5 waits.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 node@26.10.0 bun@1.4.5 >/dev/null
cat > try.mjs <<'JS'
const timer = process.argv.includes("timer") ? setTimeout(() => {}, 1000) : undefined;
const words = new Int32Array(new SharedArrayBuffer(4));
console.log(await Atomics.waitAsync(words, 0, 0, 50).value);
clearTimeout(timer);
JS
try() { local out code=0; out=$("$@" 2>/dev/null) || code=$?; echo "$out:$code"; }
seen=$(for args in "" timer; do
  for run in "deno run" node bun; do echo "$run $args = $(try npx $run try.mjs $args)"; done
done)
echo "$seen"
[ "$seen" = "$(cat <<'TXT'
deno run  = :1
node  = :13
bun  = timed-out:0
deno run timer = timed-out:0
node timer = timed-out:0
bun timer = timed-out:0
TXT
)" ] || { echo "changed"; exit 1; }
