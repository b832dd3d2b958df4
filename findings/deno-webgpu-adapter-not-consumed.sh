#!/usr/bin/env bash
# Deno 2.9.6, WebGPU: an adapter gives any number of devices, which work side by side.
#
# Guess: as specified (https://www.w3.org/TR/webgpu/#dom-gpuadapter-requestdevice), the first
#   requestDevice consumes the adapter, and a second one rejects with OperationError, as in
#   Chrome. So a script that asks one adapter twice works here and fails in a page.
# Seen (2026-11-30, Mesa's llvmpipe): three devices of one adapter, each with its own buffer;
#   destroying the first leaves the others alone.
# Needs a WebGPU adapter.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 >/dev/null
cat > try.mjs <<'JS'
const adapter = await navigator.gpu.requestAdapter(), devices = [];
for (let i = 0; i < 3; i++) devices.push(await adapter.requestDevice());
console.log(new Set(devices).size, "devices");
const { COPY_SRC, COPY_DST, MAP_READ } = GPUBufferUsage;
const filled = (device, value) => {
  const buffer = device.createBuffer({ size: 4, usage: COPY_SRC | COPY_DST });
  device.queue.writeBuffer(buffer, 0, Uint32Array.of(value));
  return buffer;
};
const buffers = devices.map((device, i) => filled(device, i + 1));
devices[0].destroy();
for (let i = 1; i < 3; i++) {
  const copy = devices[i].createBuffer({ size: 4, usage: COPY_DST | MAP_READ });
  const encoder = devices[i].createCommandEncoder();
  encoder.copyBufferToBuffer(buffers[i], 0, copy, 0, 4);
  devices[i].queue.submit([encoder.finish()]);
  await copy.mapAsync(GPUMapMode.READ);
  console.log("device", i + 1, "has", new Uint32Array(copy.getMappedRange())[0]);
}
JS
seen=$(npx deno run --quiet try.mjs); echo "$seen"
[ "$seen" = "3 devices
device 2 has 2
device 3 has 3" ] || { echo "changed"; exit 1; }
