#!/usr/bin/env bash
# Deno 2.9.6, node:v8: setFlagsFromString takes --expose-gc and drops every other flag,
#   without a word, also one that V8 does not know.
#
# Guess: it sets V8's flags as in Node, where those that V8 reads later take effect, or says
#   that it cannot.
# Seen (2026-11-30): Node 26.10.0 limits WebAssembly memories from then on, and says that it
#   does not know --no-such-flag; Deno does neither, though the same flag works in
#   --v8-flags. `gc` appears in new contexts in both.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 node@26.10.0 >/dev/null
cat > try.mjs <<'JS'
import v8 from "node:v8";
import vm from "node:vm";
const memory = () => { try { new WebAssembly.Memory({ initial: 20 }); return "memory"; } catch { return "refused"; } };
v8.setFlagsFromString("--expose-gc");
v8.setFlagsFromString("--wasm-max-mem-pages=10");
v8.setFlagsFromString("--no-such-flag");
console.log(vm.runInNewContext("typeof gc"), memory());
JS
deno=$(npx deno run try.mjs 2>&1 | xargs); started=$(npx deno run --v8-flags=--wasm-max-mem-pages=10 try.mjs 2>&1 | xargs)
node=$(npx node try.mjs 2>&1 | xargs)
echo "deno: $deno"; echo "deno --v8-flags: $started"; echo "node: $node"
[ "$deno" = "function memory" ] && [ "$started" = "function refused" ] &&
  [[ $node == *"unrecognized flag --no-such-flag"*"function refused" ]] || { echo "changed"; exit 1; }
