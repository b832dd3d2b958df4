#!/usr/bin/env bash
# Deno 2.9.6, WebGPU: requestDevice throws if a required limit is undefined.
#
# Guess: as specified (https://www.w3.org/TR/webgpu/#gpudevicedescriptor: values are
#   GPUSize64 or undefined), undefined asks for nothing. That is so that scripts may copy a
#   limit that an older adapter does not have, and so does Chrome and npm's webgpu 0.6.2.
# Seen (2026-12-01, Mesa's llvmpipe): a limit that was left out gives the default of 4, one
#   that is undefined throws "InvalidData: invalid type: null, expected u32". One whose name
#   Deno does not know may be undefined: it is ignored, whatever its value.
# Needs a WebGPU adapter.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 webgpu@0.6.2 >/dev/null
cat > try.mjs <<'JS'
const dawn = process.argv[2] === "dawn";
const { create } = dawn ? await import("webgpu") : {};
const gpu = dawn ? create(["backend=null"]) : navigator.gpu;
for (const requiredLimits of [{}, { maxBindGroups: undefined }, { maxOfNothing: undefined }]) {
  const adapter = await gpu.requestAdapter();
  const seen = await adapter.requestDevice({ requiredLimits })
    .then(({ limits }) => limits.maxBindGroups, (error) => `${error}`);
  console.log(Object.keys(requiredLimits).join() || "none", seen);
}
process.exit();
JS
deno=$(npx deno run -A --quiet try.mjs) dawn=$(node try.mjs dawn)
printf 'deno:\n%s\ndawn:\n%s\n' "$deno" "$dawn"
[ "$deno" = "none 4
maxBindGroups InvalidData: invalid type: null, expected u32
maxOfNothing 4" ] &&
  [ "$dawn" = "none 4
maxBindGroups 4
maxOfNothing 4" ] || { echo "changed"; exit 1; }
