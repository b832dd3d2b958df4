# Sourced by run.sh and make.sh, with `folder` as pack.sh made it: unpacks it once into
# the temporary folder, and sets `work` and `unpacked`.
work=${TMPDIR:-/tmp}/toolkit-peers
unpacked=$work/$(cksum < "$folder/llama.tar.xz" | tr ' ' -)
if [[ ! -x $unpacked/llama_bench ]]; then
  rm -rf "$unpacked.part"
  mkdir -p "$unpacked.part"
  tar --extract --xz --file "$folder/llama.tar.xz" --directory "$unpacked.part"
  mv "$unpacked.part" "$unpacked"
fi
export LD_LIBRARY_PATH=$unpacked${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

# Writes a model as f16 GGUF, once: to_f16 MODEL; sets `gguf`.
to_f16() {
  local name=$work/$(cksum <<< "$1" | tr ' ' -)
  gguf=$name.gguf
  [[ ! -f $gguf ]] || return 0
  "${DENO:-deno}" run -A --no-lock --no-check \
    "$(dirname "${BASH_SOURCE[0]}")/../../tasks/quantize.ts" \
    "$1" "$name.part.gguf" --type f16 --force >&2
  mv "$name.part.gguf" "$gguf"
}
