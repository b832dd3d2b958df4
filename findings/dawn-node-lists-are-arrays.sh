#!/usr/bin/env bash
# npm's webgpu 0.6.2 (Dawn): requestDevice({ requiredFeatures: adapter.features }) throws, and
#   a set of features has no forEach.
#
# Guess: as specified, a list may be anything that can be iterated
#   (https://webidl.spec.whatwg.org/#js-sequence), so a script asks for all that there is by
#   handing over the adapter's own set, as it does in Deno and Chrome; and a set of features
#   has the methods of a Set that is only read (https://webidl.spec.whatwg.org/#js-setlike).
# Seen (2026-12-01): "no overload matched for requestDevice: value is not an array", so also
#   for the entries of a layout in a Set; [...adapter.features] works. The set can be iterated
#   and has has, keys and size, but neither forEach nor entries. Deno 2.9.6 takes all of them.
# Needs a WebGPU adapter for Deno's part.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 webgpu@0.6.2 >/dev/null
cat > try.mjs <<'JS'
const dawn = process.argv[2] === "dawn";
const { create } = dawn ? await import("webgpu") : {};
const gpu = dawn ? create(["backend=null"]) : navigator.gpu;
const attempt = async (what, run) =>
  console.log(what, await Promise.resolve().then(run).then(() => "works", ({ name }) => name));
const adapter = () => gpu.requestAdapter();
await attempt("array", async () => {
  const one = await adapter();
  return one.requestDevice({ requiredFeatures: [...one.features] });
});
await attempt("set", async () => {
  const one = await adapter();
  return one.requestDevice({ requiredFeatures: one.features });
});
const device = await (await adapter()).requestDevice();
const entry = { binding: 0, visibility: 4, buffer: {} };
await attempt("entries", () => device.createBindGroupLayout({ entries: new Set([entry]) }));
const methods = ["has", "keys", "values", "entries", "forEach"];
console.log(methods.filter((name) => typeof device.features[name] === "function").join(" "));
process.exit();
JS
deno=$(npx deno run -A --quiet try.mjs) dawn=$(node try.mjs dawn)
printf 'deno:\n%s\ndawn:\n%s\n' "$deno" "$dawn"
[ "$deno" = "array works
set works
entries works
has keys values entries forEach" ] &&
  [ "$dawn" = "array works
set TypeError
entries TypeError
has keys" ] || { echo "changed"; exit 1; }
