#!/usr/bin/env bash
# ai-tokenizer 1.0.6: encode gives JavaScript functions instead of token numbers for some words.
#
# Guess: every text gives numbers, those of tiktoken for OpenAI's encodings, and they decode
#   to the text.
# Seen (2026-11-30, Node 20): a word like toString or hasOwnProperty that is no token is found
#   as a method that all objects have, which becomes its "token". It counts as one token,
#   is null in JSON, and decoding loses the word.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent ai-tokenizer@1.0.6 tiktoken@1.0.22 >/dev/null
cat > try.mjs <<'JS'
import { Tokenizer } from "ai-tokenizer";
import * as encodings from "ai-tokenizer/encoding";
import { get_encoding } from "tiktoken";
for (const [name, text] of [["p50k_base", "value.text()"], ["p50k_base", "value.toString()"],
  ["cl100k_base", "hasOwnProperty"], ["claude", "value.valueOf()"]]) {
  const tokenizer = new Tokenizer(encodings[name]);
  const tokens = tokenizer.encode(text);
  console.log(name, text, tokens.map((token) => typeof token).join(), JSON.stringify(tokens),
    tokenizer.count(text), tokenizer.decode(tokens));
  if (name !== "claude") console.log("tiktoken:", get_encoding(name).encode(text).join());
}
JS
seen=$(node try.mjs); echo "$seen"
[ "$seen" = "p50k_base value.text() number,number,number,number [8367,13,5239,3419] 4 value.text()
tiktoken: 8367,13,5239,3419
p50k_base value.toString() number,number,function,number [8367,13,null,3419] 4 value.()
tiktoken: 8367,13,1462,10100,3419
cl100k_base hasOwnProperty function [null] 1 
tiktoken: 4752,19964
claude value.valueOf() number,number,function,number [929,18,null,370] 4 value.()" ] ||
  { echo "changed"; exit 1; }
