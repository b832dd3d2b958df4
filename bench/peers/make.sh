#!/usr/bin/env bash
# Writes a model as a GGUF that llama.cpp quantised, to measure both programs on it. From
# the project's root, with a folder made by pack.sh:
#
#   bash bench/peers/make.sh .peers synthetic:qwen3-0.6b Q4_K_M /tmp/0.6b-Q4_K_M.gguf
#
# TYPE is one of F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K_M, Q4_K_S, Q4_K_M,
# Q5_K_M, Q6_K, IQ4_NL and IQ4_XS. The f16 file that it comes from stays in the temporary
# folder, where run.sh finds it too.
set -euo pipefail
folder=$1 model=$2 type=$3 out=$4
source "$(dirname "$0")/unpack.sh"
to_f16 "$model"
"$unpacked/llama_bench" quantize "$gguf" "$out.part" "$type"
mv "$out.part" "$out"
