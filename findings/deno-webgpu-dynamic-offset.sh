#!/usr/bin/env bash
# Deno 2.9.6: what a shader wrote through a dynamic offset is zeroed by the next submit.
#
# Guess: a new buffer is zeroed once, before its first use. A shader that wrote its four
#   quarters through dynamic offsets has written them.
# Seen (2026-11-28, Mesa's llvmpipe): a copy in the same submit has all four numbers, a copy
#   in the next submit only the first, which the bind group covers; the others are taken
#   for memory that was never written. Needs a WebGPU adapter.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 >/dev/null
cat > try.ts <<'TS'
const device = await (await navigator.gpu.requestAdapter())!.requestDevice();
const storage = { type: "storage", hasDynamicOffset: true } as const;
const binding = { binding: 0, visibility: GPUShaderStage.COMPUTE, buffer: storage };
const layout = device.createBindGroupLayout({ entries: [binding] });
const module = device.createShaderModule({ code: `
  @group(0) @binding(0) var<storage, read_write> quarter: array<u32, 64>;
  @compute @workgroup_size(1) fn main() { quarter[0] = 7; }` });
const explicit = device.createPipelineLayout({ bindGroupLayouts: [layout] });
const pipeline = device.createComputePipeline({ layout: explicit, compute: { module } });
for (const submits of [1, 2]) {
  const buffer = device.createBuffer({ size: 1024, usage: 4 | 128 }); // copied from, storage
  const copy = device.createBuffer({ size: 1024, usage: 1 | 8 }); // read, copied to
  const entry = { binding: 0, resource: { buffer, size: 256 } };
  const group = device.createBindGroup({ layout, entries: [entry] });
  let encoder = device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  pass.setPipeline(pipeline);
  for (const offset of [0, 256, 512, 768]) {
    pass.setBindGroup(0, group, [offset]);
    pass.dispatchWorkgroups(1);
  }
  pass.end();
  if (submits === 2) device.queue.submit([encoder.finish()]);
  if (submits === 2) encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(buffer, 0, copy, 0, 1024);
  device.queue.submit([encoder.finish()]);
  await copy.mapAsync(1);
  console.log(...new Uint32Array(copy.getMappedRange()).filter((_, i) => i % 64 === 0));
}
TS
seen=$(npx deno run --quiet try.ts); echo "$seen"
[ "$seen" = $'7 7 7 7\n7 0 0 0' ] || { echo "changed"; exit 1; }
