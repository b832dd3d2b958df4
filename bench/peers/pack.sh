#!/usr/bin/env bash
# Makes the folder that run.sh needs: llama.cpp's prebuilt Vulkan libraries and our
# benchmark of them, compressed so that it can be copied to another machine.
# Needs npm, git, gcc and the network. From the project's root:
#
#   bash bench/peers/pack.sh .peers
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cd "$work"
npm init --yes >/dev/null
npm install --silent --ignore-scripts node-llama-cpp@3.14.5 >/dev/null
bins=$work/node_modules/@node-llama-cpp/linux-x64-vulkan/bins/linux-x64-vulkan
git clone --quiet node_modules/node-llama-cpp/llama/gitRelease.bundle source 2>/dev/null

# Every library comes under three versioned names; the loader wants its soname.
mkdir llama
for library in "$bins"/*.so; do
  soname=$(readelf -d "$library" | sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p')
  cp "$library" "llama/${soname:-$(basename "$library")}"
done
gcc -std=c99 -D_GNU_SOURCE -O2 -Wall -Wextra -o llama/llama_bench "$here/llama_bench.c" \
  -Isource/include -Isource/ggml/include \
  llama/libllama.*.so.0 llama/libggml.*.so.0 llama/libggml-base.so.0 \
  -Wl,--allow-shlib-undefined -Wl,-rpath,'$ORIGIN'
tar --create --directory llama . | xz -T0 > "$out/llama.tar.xz"
du -sh "$out" >&2
