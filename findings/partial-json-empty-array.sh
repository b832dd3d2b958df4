#!/usr/bin/env bash
# partial-json 0.1.7, and openai 7.59.0 with its copy: what follows an empty array that has a
#   space in it is dropped, also from complete JSON.
#
# Guess: a complete text gives the value that JSON.parse gives; white space means nothing.
# Seen (2026-11-30, Node 20): [[ ],1] gives [[]], and {"a":[ ],"b":1} loses b, but { } does no
#   harm. In a stream of openai's SDK the partial value stays the same to the end; only
#   the final one, which JSON.parse reads, is right.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null
npm install --silent partial-json@0.1.7 openai@7.59.0 zod@4.6.7 >/dev/null
cat > try.mjs <<'JS'
import { createServer } from "node:http";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { parse } from "partial-json";
import { z } from "zod";
for (const text of ["[[],1]", "[{ },1]", "[[ ],1]", '{"a":[ ],"b":1}']) {
  console.log(text, JSON.stringify(parse(text)));
}
const server = createServer((_, response) => {
  response.writeHead(200, { "Content-Type": "text/event-stream" });
  const base = { id: "1", object: "chat.completion.chunk", created: 1, model: "m" };
  for (const content of ['{"rows":[', ' ],"total"', ":7}", null]) {
    const delta = content === null ? {} : { role: "assistant", content };
    const finish_reason = content === null ? "stop" : null;
    const choices = [{ index: 0, delta, finish_reason }];
    response.write(`data: ${JSON.stringify({ ...base, choices })}\n\n`);
  }
  response.end("data: [DONE]\n\n");
});
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
const baseURL = `http://127.0.0.1:${server.address().port}/v1`;
const { chat } = new OpenAI({ apiKey: "none", baseURL });
const shape = z.object({ rows: z.array(z.number()), total: z.number() });
const stream = chat.completions.stream(
  { model: "m", messages: [], response_format: zodResponseFormat(shape, "table") });
let last;
stream.on("content.delta", ({ snapshot, parsed }) => last = [snapshot, JSON.stringify(parsed)]);
const message = await stream.finalMessage();
console.log("openai, last part:", ...last);
console.log("openai, final:", JSON.stringify(message.parsed));
process.exit();
JS
seen=$(node try.mjs); echo "$seen"
[ "$seen" = '[[],1] [[],1]
[{ },1] [{},1]
[[ ],1] [[]]
{"a":[ ],"b":1} {"a":[]}
openai, last part: {"rows":[ ],"total":7} {"rows":[]}
openai, final: {"rows":[],"total":7}' ] || { echo "changed"; exit 1; }
