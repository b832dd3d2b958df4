#!/usr/bin/env bash
# Deno 2.9.6, import(): a file imported as text by a literal name fails if the type is in a
#   variable, though both together as variables work.
#
# Guess: import("./t.txt", { with: { type } }) does what its values say when it runs.
# Seen (2026-11-30): Deno looks for literal names before it runs a program, finds no literal
#   type beside them and takes the file for a script: "Expected a JavaScript or TypeScript
#   module, but identified a Unknown module". That also fails the same import with a literal
#   type elsewhere in the program. A name that is no literal works with either.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 >/dev/null
printf 'plain words' > t.txt
try() { # tries to import what its arguments say, each a file as text
  echo 'const type = "text", options = { with: { type } }, name = "./t.txt";' > try.mjs
  echo 'const say = (module) => module.then((m) => m.default.length, (e) => e.name);' >> try.mjs
  for one; do echo "console.log(await say(import($one)));" >> try.mjs; done
  npx deno run --allow-read try.mjs | xargs
}
literal='"./t.txt", { with: { type: "text" } }'
seen=$(for one in "$literal" '"./t.txt", { with: { type } }' '"./t.txt", options' \
  'name, { with: { type: "text" } }' 'name, { with: { type } }' 'name, options'; do
  echo "$one: $(try "$one")"
done; echo "the first two: $(try "$literal" '"./t.txt", options')")
echo "$seen"
[ "$(grep -o '[^ ]*$' <<< "$seen" | xargs)" = "11 TypeError TypeError 11 11 11 TypeError" ] ||
  { echo "changed"; exit 1; }
