#!/usr/bin/env bash
# Deno 2.9.6, WebGPU: getMappedRange may be called twice for the same bytes. Each range is a
#   copy, written back at unmap in the order of the calls, so a later one undoes what was
#   written through an earlier one. A range can be transferred, and its content is then lost.
#
# Guess: as specified (https://www.w3.org/TR/webgpu/#dom-gpubuffer-getmappedrange), the second
#   of two ranges that overlap throws OperationError, and transferring a range throws
#   TypeError.
# Seen (2026-11-30, Mesa's llvmpipe): nothing throws. 1 written through the first range of a
#   whole buffer is 0 afterwards, because the second range wrote its own zeros over it. A
#   transferred range leaves zeros.
# Needs a WebGPU adapter.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 >/dev/null
cat > try.mjs <<'JS'
const device = await (await navigator.gpu.requestAdapter()).requestDevice();
const { COPY_SRC, COPY_DST, MAP_READ } = GPUBufferUsage, size = 16;
const mapped = () => device.createBuffer({ size, usage: COPY_SRC, mappedAtCreation: true });
const words = (range) => new Uint32Array(range);
async function content(buffer) {
  const copy = device.createBuffer({ size, usage: COPY_DST | MAP_READ });
  const encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(buffer, 0, copy, 0, size);
  device.queue.submit([encoder.finish()]);
  await copy.mapAsync(GPUMapMode.READ);
  return words(copy.getMappedRange()).join();
}
{
  const buffer = mapped(), first = buffer.getMappedRange(), second = buffer.getMappedRange();
  words(first)[0] = 1;
  console.log("the second range has", words(second)[0]);
  words(second)[1] = 2;
  buffer.unmap();
  console.log("twice:", await content(buffer));
}
{
  const buffer = mapped(), first = buffer.getMappedRange(0, 16), second = buffer.getMappedRange(8, 8);
  words(second).fill(2);
  words(first).fill(1); // the last to be written, not the last to be made
  buffer.unmap();
  console.log("overlapping:", await content(buffer));
}
{
  const buffer = mapped(), range = buffer.getMappedRange();
  words(range).fill(3);
  const moved = structuredClone(range, { transfer: [range] });
  console.log("transferred:", words(moved).join(), "left:", range.byteLength);
  buffer.unmap();
  console.log("afterwards:", await content(buffer));
}
JS
seen=$(npx deno run --quiet try.mjs); echo "$seen"
[ "$seen" = "the second range has 0
twice: 0,2,0,0
overlapping: 1,1,2,2
transferred: 3,3,3,3 left: 0
afterwards: 0,0,0,0" ] || { echo "changed"; exit 1; }
