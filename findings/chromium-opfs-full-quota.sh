#!/usr/bin/env bash
# Chromium 156 (Debian 12): FileSystemSyncAccessHandle.write() does not throw at the quota.
#
# Guess: it throws QuotaExceededError, as specified, or returns fewer bytes.
# Seen (2026-11-29, a quota of 5 MB, writes of 2,000,000 bytes): the third stores what fits,
#   999,846 bytes, and the fourth nothing; both return 4294967288, which is -8 as an unsigned
#   number. A writer that adds up what write() returns believes that all is stored.
# Needs /usr/bin/chromium; npm playwright-core 1.56.1 sets the quota.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent playwright-core@1.56.1 >/dev/null
cat > try.mjs <<'JS'
import { createServer } from "node:http";
import { chromium } from "playwright-core";

const server = createServer((_, response) => {
  response.setHeader("content-type", "text/html");
  response.end("<!doctype html><title>a page</title>");
}).listen(0, "127.0.0.1");
await new Promise((resolve) => server.once("listening", resolve));
const origin = `http://127.0.0.1:${server.address().port}`; // loopback is a secure context
const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--no-sandbox"],
});
const page = await browser.newPage();
await page.goto(origin);
const devtools = await page.context().newCDPSession(page);
await devtools.send("Storage.overrideQuotaForOrigin", { origin, quotaSize: 5e6 });
const seen = await page.evaluate(() => {
  const work = async () => {
    const folder = await navigator.storage.getDirectory();
    const file = await folder.getFileHandle("data", { create: true });
    const handle = await file.createSyncAccessHandle();
    const said = [];
    for (let i = 0; i < 4; i++) {
      const before = handle.getSize();
      try {
        const count = handle.write(new Uint8Array(2e6), { at: before });
        said.push(`returned ${count}, stored ${handle.getSize() - before}`);
      } catch (error) {
        said.push(`threw ${error.name}`);
      }
    }
    postMessage(said);
  };
  const worker = new Worker(URL.createObjectURL(new Blob([`(${work})()`])));
  return new Promise((resolve) => worker.onmessage = ({ data }) => resolve(data));
});
console.log(seen.join("\n"));
await browser.close();
server.close();
JS
seen=$(node try.mjs 2>/dev/null); echo "$seen"
grep -q "returned 4294967288, stored 0" <<<"$seen" || { echo "changed"; exit 1; }
