#!/usr/bin/env bash
# Deno 2.9.6, WebGPU: after mapAsync and unmap, the promise resolves and mapState says
#   "mapped", but nothing is mapped.
#
# Guess: as specified, unmap or destroy rejects a pending mapAsync with AbortError, and the
#   buffer stays "unmapped". Calling unmap once more does nothing.
# Seen (2026-11-28, Mesa's llvmpipe): the promise of an idle buffer resolves, 10 ms later;
#   mapState, "unmapped" in between, is then "mapped", and getMappedRange throws "Buffer is
#   not mapped". destroy ends the same way. Unmapping an unmapped buffer throws OperationError.
# Needs a WebGPU adapter.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 >/dev/null
cat > try.ts <<'TS'
const device = await (await navigator.gpu.requestAdapter())!.requestDevice();
const name = (f: () => unknown) => {
  try {
    return f() ?? "fine";
  } catch (error) {
    return (error as Error).name;
  }
};
for (const how of ["unmap", "destroy"] as const) {
  const buffer = device.createBuffer({ size: 16, usage: GPUBufferUsage.MAP_READ });
  const mapping = buffer.mapAsync(GPUMapMode.READ).then(() => "resolved", (e) => e.name);
  buffer[how]();
  const outcome = await mapping;
  console.log(how, outcome, buffer.mapState, name(() => buffer.getMappedRange()));
}
const buffer = device.createBuffer({ size: 16, usage: GPUBufferUsage.MAP_READ });
console.log("again", name(() => buffer.unmap()));
TS
seen=$(npx deno run --quiet try.ts); echo "$seen"
[ "$seen" = "unmap resolved mapped OperationError
destroy resolved mapped OperationError
again OperationError" ] || { echo "changed"; exit 1; }
