#!/usr/bin/env bash
# Deno 2.9.6, node:worker_threads: with the option stdout: true a worker's output still goes to
#   the program's own standard output.
#
# Guess: it goes to worker.stdout only, as on Node 26.10.0.
# Seen (2026-11-30): what console.log prints is not in worker.stdout at all, but in the program's
#   output. What process.stdout.write prints is in both. stderr: true is the same.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 node@26.10.0 >/dev/null
cat > try.mjs <<'JS'
import { writeFileSync } from "node:fs";
import { Worker } from "node:worker_threads";
let captured = "";
for (const code of ["console.log('log')", "process.stdout.write('write\\n')"]) {
  const worker = new Worker(code, { eval: true, stdout: true });
  worker.stdout.on("data", (bytes) => captured += bytes);
  await new Promise((resolve) => worker.on("exit", resolve));
}
writeFileSync("captured", captured);
JS
seen=$(for run in node "deno run --quiet --allow-all"; do
  printed=$(npx $run try.mjs); echo "${run%% *} printed:" $printed, captured: $(cat captured)
done)
echo "$seen"
[ "$seen" = "node printed: , captured: log write
deno printed: log write, captured: write" ] || { echo "changed"; exit 1; }
