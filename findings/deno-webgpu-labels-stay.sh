#!/usr/bin/env bash
# Deno 2.9.6, WebGPU: a label given to an object that exists is ignored, without an error, and
#   a queue has its device's label.
#
# Guess: as specified (https://www.w3.org/TR/webgpu/#gpuobjectbase), `label` can be set at any
#   time and then has the new text, and the queue's is that of `defaultQueue`, "" by default.
# Seen (2026-11-30, Mesa's llvmpipe): all of 15 kinds of objects keep the label that they were
#   made with, in module code, where an attribute without a setter would throw. An object
#   that was made without one can never be told apart in an error message.
# Needs a WebGPU adapter.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 >/dev/null
cat > try.mjs <<'JS'
const adapter = await navigator.gpu.requestAdapter(), label = "old";
const device = await adapter.requestDevice({ label });
const code = "@compute @workgroup_size(1) fn main() {}";
const module = device.createShaderModule({ code, label });
const layout = device.createBindGroupLayout({ entries: [], label });
const encoder = device.createCommandEncoder({ label });
const pass = encoder.beginComputePass({ label });
const texture = device.createTexture({ size: [1], format: "rgba8unorm", usage: 4, label });
const objects = [
  device, device.queue, module, layout, encoder, pass, texture,
  texture.createView({ label }),
  device.createBuffer({ size: 4, usage: 8, label }),
  device.createBindGroup({ layout, entries: [], label }),
  device.createPipelineLayout({ bindGroupLayouts: [], label }),
  device.createComputePipeline({ layout: "auto", compute: { module, entryPoint: "main" }, label }),
  device.createSampler({ label }),
  device.createQuerySet({ type: "occlusion", count: 1, label }),
];
pass.end();
objects.push(encoder.finish({ label }));
console.log(objects.length, "objects;", "queue:", device.queue.label);
for (const object of objects) object.label = "new";
console.log(objects.filter((object) => object.label === "new").length, "have the new label");
const buffer = device.createBuffer({ size: 4, usage: 8 });
buffer.label = "new";
console.log(JSON.stringify(buffer.label));
JS
seen=$(npx deno run --quiet try.mjs); echo "$seen"
[ "$seen" = '15 objects; queue: old
0 have the new label
""' ] || { echo "changed"; exit 1; }
