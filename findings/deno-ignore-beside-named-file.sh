#!/usr/bin/env bash
# Deno 2.9.6: `deno test --ignore=FILE FOLDER` leaves the file out; with any other file named as
#   well, it runs.
#
# Guess: what --ignore names is never collected from a folder, whatever else is named; at most
#   a file that is named itself runs all the same.
# Seen (2026-11-29, Linux x64): naming t/a beside t, to have it first, brings the ignored t/b
#   back, in either order; so does naming a file of another folder. A second folder does not.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent deno@2.9.6 >/dev/null
mkdir t other
for file in t/a t/b t/c other/o; do
  echo 'Deno.test("it runs", () => {});' > "${file}_test.ts"
done
run() {
  NO_COLOR=1 npx deno test --no-check --ignore=t/b_test.ts "$@" 2>&1 |
    grep -o 'from ./[a-z]*/[a-z]' | cut -d/ -f3 | sort | tr -d '\n'
}
seen="$(run t), $(run t t/a_test.ts), $(run t/a_test.ts t), $(run t other/o_test.ts), $(run t other)"; echo "$seen"
[ "$seen" = "ac, abc, abc, abco, aco" ] || { echo "changed"; exit 1; }
