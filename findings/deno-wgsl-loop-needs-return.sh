#!/usr/bin/env bash
# Deno 2.9.6, WGSL: a function that ends with an endless loop needs a return after it, which
#   is never reached.
#
# Guess: a loop that is left only by return is the end of a function, as specified
#   (https://www.w3.org/TR/WGSL/#behaviors: without a break in it, its behavior is Return),
#   just as an if or a switch is that returns in each of its parts.
# Seen (2026-11-30, Mesa's llvmpipe): if and switch are taken, loop and for without a condition
#   refused, with "The `return` expression None does not match the declared return type",
#   which points at the whole function. Any return behind the loop helps.
# Needs a WebGPU adapter.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 >/dev/null
cat > try.mjs <<'JS'
const adapter = await navigator.gpu.requestAdapter(), device = await adapter.requestDevice();
for (const body of [
  "if x > 1u { return 1u; } else { return 2u; }",
  "switch x { case 1u { return 1u; } default { return 2u; } }",
  "loop { if x > 1u { return 1u; } x++; }",
  "for (;;) { if x > 1u { return 1u; } x++; }",
  "loop { if x > 1u { return 1u; } x++; } return 0u;",
]) {
  device.pushErrorScope("validation");
  device.createShaderModule({ code: `fn f() -> u32 { var x = 0u; ${body} }` });
  const error = await device.popErrorScope();
  console.log(`${error ? "refused" : "taken"}: ${body}`);
}
JS
seen=$(npx deno run --quiet try.mjs | tee /dev/stderr | cut -d : -f 1 | xargs)
[ "$seen" = "taken taken refused refused taken" ] || { echo "changed"; exit 1; }
