#!/usr/bin/env bash
# typegpu 0.12.5: its WGSL functions, when called in JavaScript, compute other integers than
#   on a GPU.
#
# Guess: a function written once gives the same on both sides: u32 products keep the low 32
#   bits, and pack4x8unorm rounds.
# Seen (2026-11-30, Node 26.10.0): products go through doubles, so that the low bits of large
#   ones, on which hashes and random numbers rest, are lost: 4294967295 * 4294967295 is 0,
#   not 1. dot does not wrap at all, and pack4x8unorm cuts 0.999 to 254, where WGSL has 255.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent typegpu@0.12.5 node@26.10.0 >/dev/null
cat > try.mjs <<'JS'
import { vec2u, vec4f } from "typegpu/data";
import { add, dot, mul, pack4x8unorm } from "typegpu/std";
const product = (x, y) => [mul(vec2u(x, 0), vec2u(y, 0)).x, Math.imul(x, y) >>> 0].join(", exact ");
console.log("sum:", add(vec2u(4294967295, 0), vec2u(2, 0)).x);
console.log("small product:", product(65537, 65537));
console.log("large product:", product(4294967295, 4294967295));
console.log("random step:", product(747796405, 2891336453));
console.log("dot:", dot(vec2u(65536, 1), vec2u(65536, 1)), "exact", 1);
console.log("pack:", pack4x8unorm(vec4f(0.999, 0, 0, 0)), "exact", Math.floor(0.5 + 255 * 0.999));
JS
seen=$(npx node try.mjs); echo "$seen"
[ "$seen" = "sum: 1
small product: 131073, exact 131073
large product: 0, exact 1
random step: 2596036096, exact 2596035977
dot: 4294967297 exact 1
pack: 254 exact 255" ] || { echo "changed"; exit 1; }
