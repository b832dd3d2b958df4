#!/usr/bin/env bash
# node-llama-cpp 3.22.1: the package of binaries for 32-bit ARM has those for 64-bit ARM.
#
# Guess: in @node-llama-cpp/linux-armv7l, whose build metadata say armv7l, every library is a
#   32-bit ELF file for ARM (class 1, machine 40).
# Seen (2026-11-30): all six are 64-bit and for AArch64 (class 2, machine 183), as those of
#   @node-llama-cpp/linux-arm64 are. A 32-bit system cannot load them. (Read from the files'
#   headers; nothing was run on ARM.)
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
seen=""
for cpu in armv7l arm64; do
  mkdir "$cpu"
  npm pack --silent "@node-llama-cpp/linux-$cpu@3.22.1" >/dev/null
  tar --extract --gzip --strip-components 1 --directory "$cpu" \
    --file "node-llama-cpp-linux-$cpu-3.22.1.tgz"
  seen+="$cpu: $(cd "$cpu/bins/linux-$cpu" && node -e '
    const fs = require("fs"), { arch } = JSON.parse(
      fs.readFileSync("_nlcBuildMetadata.json", "utf8")).buildOptions;
    const kinds = fs.readdirSync(".").filter((name) => /\.(so|node)$/.test(name))
      .map((name) => fs.readFileSync(name))
      .map((elf) => `class ${elf[4]}, machine ${elf.readUInt16LE(18)}`);
    console.log(`built for ${arch}, ${kinds.length} files, ${[...new Set(kinds)]}`);
  '); "
done
echo "$seen"
[ "$seen" = "armv7l: built for armv7l, 6 files, class 2, machine 183; arm64: built for arm64, 13 files, class 2, machine 183; " ] ||
  { echo "changed"; exit 1; }
