#!/usr/bin/env bash
# Deno 2.9.6, WGSL: const_assert ends with the parenthesis that it begins with.
#
# Guess: const_assert takes any expression, as specified
#   (https://www.w3.org/TR/WGSL/#const-assert-statement), so "const_assert (N % 4u) == 0u;" says
#   the same as with the sides exchanged; if and while take such an expression.
# Seen (2026-11-30, Mesa's llvmpipe): it is refused, with "expected `;`, found "=="", in a module
#   and in a function. Exchanged, or in one more pair of parentheses, it is taken.
# Needs a WebGPU adapter.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 >/dev/null
cat > try.mjs <<'JS'
const adapter = await navigator.gpu.requestAdapter(), device = await adapter.requestDevice();
const n = "const N = 8u;";
for (const code of [
  `${n} const_assert (N % 4u) == 0u;`,
  `${n} const_assert (N > 4u) && (N < 16u);`,
  `${n} fn f() { const_assert (N % 4u) == 0u; }`,
  `${n} fn f() { if (N % 4u) == 0u { } while (N < 4u) && (N > 2u) { } }`,
  `${n} const_assert 0u == (N % 4u);`,
  `${n} const_assert ((N % 4u) == 0u);`,
]) {
  device.pushErrorScope("validation");
  device.createShaderModule({ code });
  const error = await device.popErrorScope();
  console.log(`${error ? "refused" : "taken"}: ${code}`);
}
JS
seen=$(npx deno run --quiet try.mjs | tee /dev/stderr | cut -d : -f 1 | xargs)
[ "$seen" = "refused refused refused taken taken taken" ] || { echo "changed"; exit 1; }
