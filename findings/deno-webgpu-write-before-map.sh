#!/usr/bin/env bash
# Deno 2.9.6, WebGPU: what writeBuffer wrote cannot be read with mapAsync until something is
#   submitted, even if that is nothing.
#
# Guess: as specified (https://www.w3.org/TR/webgpu/#dom-gpuqueue-writebuffer), writeBuffer is
#   an operation of the queue by itself, and mapAsync waits for those that use its buffer, so
#   the buffer has the new number.
# Seen (2026-11-30, Mesa's llvmpipe): it has the old one, however often it is mapped, and also
#   after onSubmittedWorkDone. submit([]) brings the last number written.
# Needs a WebGPU adapter.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 >/dev/null
cat > try.mjs <<'JS'
const adapter = await navigator.gpu.requestAdapter();
const device = await adapter.requestDevice(), { queue } = device;
const buffer = device.createBuffer({ size: 4, usage: 1 | 8 }); // read, copied to
const write = (number) => queue.writeBuffer(buffer, 0, new Uint32Array([number]));
const read = async () => {
  await buffer.mapAsync(1);
  const [number] = new Uint32Array(buffer.getMappedRange());
  buffer.unmap();
  return number;
};
write(1);
queue.submit([]);
const seen = [await read()];
write(2);
seen.push(await read());
write(3);
seen.push(await read(), await read());
await queue.onSubmittedWorkDone();
await new Promise((done) => setTimeout(done, 300));
seen.push(await read());
queue.submit([]);
seen.push(await read());
console.log(...seen);
JS
seen=$(npx deno run --quiet try.mjs); echo "$seen"
[ "$seen" = '1 1 1 1 1 3' ] || { echo "changed"; exit 1; }
