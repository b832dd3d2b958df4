#!/usr/bin/env bash
# Deno 2.9.6, WGSL: bitcast<vec2<f16>> of a u32 gives one f32.
#
# Guess: it unpacks two halves, as specified and as unpack2x16float does, or is refused.
# Seen (2026-11-28, Mesa's llvmpipe): passed to vec2f it compiles, and both components are
#   the u32's bits read as one f32: 0xc0003c00, the halves 1 and -2, becomes -2.0037 twice.
#   Assigned to a vec2<f16> it is refused.
# Needs a WebGPU adapter with shader-f16.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 >/dev/null
cat > try.ts <<'TS'
const adapter = (await navigator.gpu.requestAdapter())!;
const device = await adapter.requestDevice({ requiredFeatures: ["shader-f16"] });
const shader = (body: string) =>
  device.createShaderModule({ code: `enable f16;
    @group(0) @binding(0) var<storage, read_write> data: array<vec2f, 2>;
    @compute @workgroup_size(1) fn main() { let word = bitcast<u32>(data[0].x); ${body} }` });
const module = shader(`data[0] = unpack2x16float(word);
  data[1] = vec2f(bitcast<vec2<f16>>(word));`);
const pipeline = device.createComputePipeline({ layout: "auto", compute: { module } });
const buffer = device.createBuffer({ size: 16, usage: 4 | 8 | 128 }); // copied, storage
const copy = device.createBuffer({ size: 16, usage: 1 | 8 }); // read, copied to
device.queue.writeBuffer(buffer, 0, new Uint32Array([0xc0003c00]));
const layout = pipeline.getBindGroupLayout(0), entries = [{ binding: 0, resource: { buffer } }];
const encoder = device.createCommandEncoder(), pass = encoder.beginComputePass();
pass.setPipeline(pipeline);
pass.setBindGroup(0, device.createBindGroup({ layout, entries }));
pass.dispatchWorkgroups(1);
pass.end();
encoder.copyBufferToBuffer(buffer, 0, copy, 0, 16);
device.queue.submit([encoder.finish()]);
await copy.mapAsync(1);
console.log(Array.from(new Float32Array(copy.getMappedRange()), (x) => x.toFixed(4)).join(" "));
device.pushErrorScope("validation");
shader("let halves: vec2<f16> = bitcast<vec2<f16>>(word); data[0].x = f32(halves.x);");
console.log(await device.popErrorScope() ? "refused" : "compiles");
TS
seen=$(npx deno run --quiet try.ts); echo "$seen"
[ "$seen" = $'1.0000 -2.0000 -2.0037 -2.0037\nrefused' ] || { echo "changed"; exit 1; }
