#!/usr/bin/env bash
# Deno 2.9.6 (V8 15.0), WebAssembly: V8's pass that makes 256 bits of two vectors joins no
#   neighboring loads or stores in Deno, though it does in Node.
#
# Guess: with --experimental-wasm-revectorize, two loads and two stores of v128 at p and
#   p + 16 with the same operation between them become 256 bits wide on x86 with AVX2, as in
#   V8's own tests of the pass.
# Seen (2026-11-30, AMD EPYC): Node 26.10.0 (V8 14.6) joins all three. Deno joins none: it
#   does not turn on V8's trap handler, so a check of bounds stands before each load and
#   store, and V8 does not move what it joins across one. (What needs no second load is
#   joined in Deno too: both halves of a widened vector, or an element copied to all lanes.)
# Needs x86-64 with AVX2.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 node@26.10.0 >/dev/null
cat > try.mjs <<'JS'
// (func (param $p i32) (local $a v128) (local $b v128)): loads a and b from p and p + 16,
// doubles them and stores them there, b first.
const get = (local) => [0x20, local], load = (at) => [...get(0), 0xfd, 0x00, 4, at];
const twice = (local) => [...get(local), ...get(local), 0xfd, 0xe4, 0x01];
const store = (at, value) => [...get(0), ...value, 0xfd, 0x0b, 4, at];
const body = [1, 2, 0x7b, ...load(0), 0x21, 1, ...load(16), 0x21, 2, ...store(16, twice(2)), ...store(0, twice(1)), 0x0b];
const module = new WebAssembly.Module(new Uint8Array([
  ...[0, 0x61, 0x73, 0x6d, 1, 0, 0, 0], ...[1, 5, 1, 0x60, 1, 0x7f, 0], ...[3, 2, 1, 0], ...[5, 3, 1, 0, 1],
  ...[7, 5, 1, 1, 0x66, 0, 0], ...[10, body.length + 2, 1, body.length], ...body,
]));
new WebAssembly.Instance(module).exports.f(0);
JS
flags="--experimental-wasm-revectorize --trace-wasm-revectorize --no-liftoff --no-wasm-lazy-compilation"
report() { # prints what V8 says of the function
  grep -oE "break side effect|Decided to vectorize, [1-9]" | cut -d , -f 1 | sort -u
}
node=$(npx node $flags try.mjs | report); deno=$(npx deno run --v8-flags="${flags// /,}" try.mjs | report)
echo "node: $node"; echo "deno: $deno"
[ "$node" = "Decided to vectorize" ] && [ "$deno" = "break side effect" ] || { echo "changed"; exit 1; }
