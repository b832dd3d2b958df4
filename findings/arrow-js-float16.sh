#!/usr/bin/env bash
# apache-arrow 21.2.0 (npm): a Float16 column turns tiny numbers into -Infinity and large ones
#   into small ones.
#
# Guess: each number becomes the nearest float16, as in Float16Array: 0 for 1e-8, Infinity
#   for 100000.
# Seen (2026-11-30, Node 20): 1e-8 and 0.00006102, just below the smallest normal number,
#   become -Infinity, 100000 becomes 3.05078125, 65536 becomes 2, and 2049, in the middle
#   between two, goes to the odd one.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent apache-arrow@21.2.0 >/dev/null
cat > try.mjs <<'JS'
import { Float16, vectorFromArray } from "apache-arrow";
const numbers = [0.1, 65504, 1e-8, 0.00006102, 65536, 100000, 2049];
const column = vectorFromArray(numbers, new Float16());
numbers.forEach((number, row) => console.log(number, column.get(row)));
JS
seen=$(node try.mjs); echo "$seen"
[ "$seen" = "0.1 0.0999755859375
65504 65504
1e-8 -Infinity
0.00006102 -Infinity
65536 2
100000 3.05078125
2049 2050" ] || { echo "changed"; exit 1; }
