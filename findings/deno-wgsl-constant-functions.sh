#!/usr/bin/env bash
# Deno 2.9.6, WGSL: 24 built-in functions and bitcast are refused in constants.
#
# Guess: a built-in function that WGSL marks @const gives a constant if its arguments are
#   constants (https://www.w3.org/TR/WGSL/#builtin-functions), so tables and masks can be
#   computed where they are declared, as Dawn lets them.
# Seen (2026-12-01, Mesa's llvmpipe): sqrt, pow, clamp, dot and most others are. mix, smoothstep,
#   bitcast, ldexp, frexp, modf, quantizeToF16, extractBits, insertBits, all packing and
#   unpacking, faceForward, reflect, refract and transpose are "Not implemented as constant
#   expression". Dawn (npm's webgpu 0.6.2) takes all of them. In a function Deno takes the same
#   expressions, except mix and smoothstep of numbers without a suffix: let c = mix(4.0, 8.0, 0.25);
#   is refused there as well, mix(4.0f, 8.0f, 0.25f) is taken.
# Needs a WebGPU adapter.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 webgpu@0.6.2 >/dev/null
cat > try.mjs <<'JS'
import { create, globals } from "webgpu";
const expressions = [
  "sqrt(2.0)", "pow(2.0, 3.0)", "clamp(3.0, 0.0, 1.0)", "dot(vec2f(1), vec2f(2))",
  "mix(4.0, 8.0, 0.25)", "mix(4.0f, 8.0f, 0.25f)", "smoothstep(0.0, 1.0, 0.5)", "bitcast<u32>(1.0f)",
  "ldexp(0.75, 3)", "frexp(8.0).fract", "modf(2.25).whole", "quantizeToF16(1.5)",
  "extractBits(240u, 4u, 4u)", "insertBits(0u, 255u, 4u, 4u)",
  "pack4x8snorm(vec4f(1))", "pack4x8unorm(vec4f(1))", "pack4xI8(vec4i(1))",
  "pack4xU8(vec4u(1))", "pack4xI8Clamp(vec4i(1))", "pack4xU8Clamp(vec4u(1))",
  "pack2x16snorm(vec2f(1))", "pack2x16unorm(vec2f(1))", "pack2x16float(vec2f(1))",
  "unpack4xI8(1u)", "unpack4xU8(1u)", "unpack2x16float(15360u)",
  "faceForward(vec2f(1), vec2f(1), vec2f(1))", "reflect(vec2f(1), vec2f(1))",
  "refract(vec2f(1, 0), vec2f(0, 1), 0.5)", "transpose(mat2x2f(1, 2, 3, 4))",
];
async function taken(device, code) {
  device.pushErrorScope("validation");
  device.createShaderModule({ code });
  return !await device.popErrorScope();
}
const own = await (await navigator.gpu.requestAdapter()).requestDevice();
Object.assign(globalThis, globals);
const dawn = create(["backend=null"]);
const other = await (await dawn.requestAdapter()).requestDevice();
for (const expression of expressions) {
  const constant = `const C = ${expression};`;
  const found = [
    await taken(own, constant),
    await taken(other, constant),
    await taken(own, `fn f() { let c = ${expression}; }`),
  ];
  console.log(`${found.map(Number).join("")} ${expression}`);
}
JS
XDG_RUNTIME_DIR=/tmp npx deno run -A --quiet try.mjs > out.txt
cat out.txt >&2
echo "constant in Deno, constant in Dawn, at run time in Deno" >&2
seen=$(cut -d ' ' -f 1 out.txt | sort | uniq -c | xargs)
[ "$seen" = "2 010 24 011 4 111" ] || { echo "changed: $seen"; exit 1; }
