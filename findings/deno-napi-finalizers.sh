#!/usr/bin/env bash
# Deno 2.9.6: functions that an N-API module made block the thread for seconds when they are
#   collected, once there are tens of thousands.
#
# Guess: a function of `napi_create_function` is collected in about a microsecond.
# Seen (2026-11-29, Linux x64, two busy cores): 4,000 take 70 ms, 20,000 between 2 and 4 seconds.
#   npm's webgpu 0.6.2 makes one in every turn of the event loop while somebody waits for the
#   GPU, so a second of waiting costs several. On an H200 a decode loop stood still for 2.2 s.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 webgpu@0.6.2 >/dev/null
cat > try.ts <<'TS'
const { create } = await import("npm:webgpu@0.6.2");
const gpu = create(["backend=null"]);
const device = await (await gpu.requestAdapter()).requestDevice();
let longest = 0, last = performance.now();
for (let i = 0; i < 120_000; i++) {
  await device.queue.onSubmittedWorkDone(); // one function each, nothing to wait for
  const now = performance.now();
  longest = Math.max(longest, now - last);
  last = now;
}
console.log("the longest of 120,000 turns takes", longest.toFixed(0), "ms");
if (longest < 300) console.error("changed: no turn takes long");
Deno.exit(gpu && longest >= 300 ? 0 : 1); // Dawn must stay referenced
TS
npx deno run -A --quiet try.ts
