#!/usr/bin/env bash
# wgsl_reflect 1.6.0: WgslExec, which runs WGSL shaders on the CPU, computes other results than
#   a GPU.
#
# Guess: as its documentation says, buffers hold what a GPU would write: 1 in each case below,
#   as WGSL defines it.
# Seen (2026-11-30, Node 20): break in a switch ends the loop around it, a product of matrices
#   is taken in the wrong order and so is a vector times a matrix, && calls its right side
#   always, >> repeats the top bit of a u32, and a vector of integers divides with fractions.
#   (Deno 2.9.6 on Mesa's software GPU writes 1 each time.)
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent wgsl_reflect@1.6.0 >/dev/null
cat > try.mjs <<'JS'
import { WgslExec, WgslParser } from "wgsl_reflect/wgsl_reflect.module.js";
const cases = {
  "a / b": "result[0] = 7u / 4u;",
  "break": `for (var i = 0u; i < 2u; i++) {
      switch i { case 0u: { break; } default: { result[0] = 1u; } }
    }`,
  "m * m": `let a = mat2x2f(0, 1, 0, 0);
    let b = mat2x2f(1, 0, 0, 0);
    result[0] = u32((a * b)[0].y);`,
  "v * m": "result[0] = u32((vec2f(0, 1) * mat2x2f(0, 1, 0, 0)).x);",
  "&&": "let never = false && one(); result[0] = 1u - calls;",
  ">>": "let top = 0x80000000u; result[0] = top >> 31u;",
  "vec / n": "result[0] = u32((vec2i(3, 3) / 2).x * 2 - 1);",
};
for (const [name, body] of Object.entries(cases)) {
  const shader = `
    @group(0) @binding(0) var<storage, read_write> result: array<u32>;
    var<private> calls: u32;
    fn one() -> bool { calls += 1u; return true; }
    @compute @workgroup_size(1) fn main() { ${body} }`;
  const result = new Uint32Array(1);
  new WgslExec(new WgslParser().parse(shader)).dispatchWorkgroups("main", 1, { 0: { 0: result } });
  console.log(`${name}:`, result[0]);
}
JS
seen=$(node try.mjs); echo "$seen"
[ "$seen" = "a / b: 1
break: 0
m * m: 0
v * m: 0
&&: 0
>>: 4294967295
vec / n: 2" ] || { echo "changed"; exit 1; }
