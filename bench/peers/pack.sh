#!/usr/bin/env bash
# Makes the folder that run.sh and make.sh need: llama.cpp's prebuilt Vulkan and CPU
# libraries and our benchmark of them, compressed so that it can be copied to another
# machine. Needs npm, git, gcc and the network. From the project's root:
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
npm install --silent --ignore-scripts node-llama-cpp@3.22.1 >/dev/null
bins=$work/node_modules/@node-llama-cpp/linux-x64-vulkan/bins/linux-x64-vulkan
git clone --quiet node_modules/node-llama-cpp/llama/gitRelease.bundle source 2>/dev/null

mkdir llama
cp "$bins"/libggml*.so "$bins"/libllama.*.so llama
gcc -std=c99 -D_GNU_SOURCE -O2 -Wall -Wextra -o llama/llama_bench "$here/llama_bench.c" \
  -Isource/include -Isource/ggml/include \
  llama/libllama.*.so llama/libggml.*.so llama/libggml-base.so \
  -Wl,--allow-shlib-undefined -Wl,-rpath,'$ORIGIN'
strip --strip-unneeded llama/*
tar --create --directory llama . | xz -T0 -9 > "$out/llama.tar.xz"
du -sh "$out" >&2
