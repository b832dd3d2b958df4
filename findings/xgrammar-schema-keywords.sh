#!/usr/bin/env bash
# @mlc-ai/web-xgrammar 0.1.27: grammars of JSON schemas take invalid texts and refuse valid ones.
#
# Guess: a grammar made from a schema takes only what is valid under it, or says that a
#   keyword is not supported.
# Seen (2026-11-28, Node 20): minimum 3 lets 2 pass; minLength beside anyOf and required
#   without properties are ignored; a pattern with a quote lets through what is no JSON; a
#   slash in enum, and an escape in a string with maxLength, are refused.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent @mlc-ai/web-xgrammar@0.1.27 >/dev/null
# The package calls itself a module, but its file is CommonJS.
cp node_modules/@mlc-ai/web-xgrammar/lib/index.js xgrammar.cjs
cat > try.cjs <<'JS'
const { Grammar, Testings } = require("./xgrammar.cjs");
const cases = [
  [{ type: "integer", minimum: 3 }, "2"],
  [{ type: "string", minLength: 2, anyOf: [{ maxLength: 5 }] }, '"a"'],
  [{ type: "object", required: ["a"] }, "{}"],
  [{ type: "string", pattern: '^"$' }, '"""'],
  [{ enum: ["a/b"] }, '"a/b"'],
  [{ type: "string", maxLength: 1 }, '"\\n"'],
];
(async () => {
  const taken = [];
  for (const [schema, text] of cases) {
    const grammar = await Grammar.fromJSONSchema(JSON.stringify(schema), false);
    taken.push(await Testings.isGrammarAcceptString(grammar, text));
  }
  process.stdout.write(taken.join(" ") + "\n", () => process.exit(0));
})();
JS
seen=$(node try.cjs 2>/dev/null | tail -1)
echo "$seen"
[ "$seen" = "true true true true false false" ] || { echo "changed"; exit 1; }
