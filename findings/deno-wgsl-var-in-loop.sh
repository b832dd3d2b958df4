#!/usr/bin/env bash
# Deno 2.9.6, WGSL: a variable without an initializer in a loop is zeroed once, not each time.
#
# Guess: it is zero whenever its declaration is reached, as specified, so each count is 3.
# Seen (2026-11-29, Mesa's llvmpipe): it keeps its value from one turn of the loop to the
#   next, as a scalar and as an array: 3 6 9 12. With "= 0u" or "= T()" it is zero each time.
# Needs a WebGPU adapter.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 >/dev/null
cat > try.ts <<'TS'
const adapter = (await navigator.gpu.requestAdapter())!;
const device = await adapter.requestDevice();
const count = (begin: number, declaration: string, element: string) => `
  for (var i = ${begin}u; i < ${begin + 4}u; i++) {
    ${declaration};
    for (var j = 0u; j < 3u; j++) { ${element} += 1u; }
    counts[i] = ${element};
  }`;
const module = device.createShaderModule({
  code: `@group(0) @binding(0) var<storage, read_write> counts: array<u32, 16>;
    @compute @workgroup_size(1) fn main() {
      ${count(0, "var n: u32", "n")}
      ${count(4, "var n: array<u32, 2>", "n[1]")}
      ${count(8, "var n: u32 = 0u", "n")}
      ${count(12, "var n: array<u32, 2> = array<u32, 2>()", "n[1]")}
    }`,
});
const pipeline = device.createComputePipeline({ layout: "auto", compute: { module } });
const buffer = device.createBuffer({ size: 64, usage: 4 | 128 }); // copied, storage
const copy = device.createBuffer({ size: 64, usage: 1 | 8 }); // read, copied to
const layout = pipeline.getBindGroupLayout(0), entries = [{ binding: 0, resource: { buffer } }];
const encoder = device.createCommandEncoder(), pass = encoder.beginComputePass();
pass.setPipeline(pipeline);
pass.setBindGroup(0, device.createBindGroup({ layout, entries }));
pass.dispatchWorkgroups(1);
pass.end();
encoder.copyBufferToBuffer(buffer, 0, copy, 0, 64);
device.queue.submit([encoder.finish()]);
await copy.mapAsync(1);
const counts = [...new Uint32Array(copy.getMappedRange())];
for (let i = 0; i < 16; i += 4) console.log(counts.slice(i, i + 4).join(" "));
TS
seen=$(npx deno run --quiet try.ts); echo "$seen"
[ "$seen" = $'3 6 9 12\n3 6 9 12\n3 3 3 3\n3 3 3 3' ] || { echo "changed"; exit 1; }
