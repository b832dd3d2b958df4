#!/usr/bin/env bash
# Times llama.cpp: one line of JSON on stdout per program and workload (see
# llama_bench.c). From the project's root, with a folder made by pack.sh:
#
#   bash bench/peers/run.sh .peers synthetic:qwen3-0.6b pp512 tg@128
#   bash bench/peers/run.sh .peers /tmp/0.6b-Q4_K_M.gguf pp512 tg@128
#
# PROGRAMS selects from vulkan, vulkan-without-tensor-cores and cpu; RUNS is 5 by default,
# THREADS all that there are.
set -euo pipefail
folder=$1 model=$2
shift 2
programs=${PROGRAMS:-vulkan vulkan-without-tensor-cores cpu}
source "$(dirname "$0")/unpack.sh"
if [[ ${model,,} == *.gguf ]]; then gguf=$model; else to_f16 "$model"; fi

for program in $programs; do
  kind=gpu settings=()
  workloads=(pp512 pp2048 pp2048:2048 tg@128 tg@2048 tg@128x16 tg@32768)
  [[ $program != cpu ]] || kind=cpu workloads=(pp128 tg@128)
  [[ $# -eq 0 ]] || workloads=("$@")
  [[ $program != vulkan-without-tensor-cores ]] ||
    settings=(GGML_VK_DISABLE_COOPMAT=1 GGML_VK_DISABLE_COOPMAT2=1)
  echo "llama.cpp $program …" >&2
  env "${settings[@]}" \
    "$unpacked/llama_bench" "$gguf" "$unpacked" "$kind" "${RUNS:-5}" "${workloads[@]}" |
    sed --unbuffered "s/^{/{\"program\":\"llama.cpp $program\",/"
done
