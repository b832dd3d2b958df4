#!/usr/bin/env bash
# transformers 5.18.0: saving Qwen3-MoE's configuration renames the number of experts.
#
# Guess: a config.json that is loaded and saved keeps the key that published checkpoints
#   have, num_experts, and a file with that key has as many experts as it says.
# Seen (2026-11-28): it has num_local_experts instead, so programs that know the published
#   key find none; and if a file has both, num_local_experts wins, in any order.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
python3 -m venv venv; venv/bin/pip install --quiet transformers==5.18.0
seen=$(venv/bin/python - 2>/dev/null <<'PY'
import json
from transformers import Qwen3MoeConfig

def load(fields):
    with open("config.json", "w") as file:
        json.dump({"model_type": "qwen3_moe", **fields}, file)
    return Qwen3MoeConfig.from_pretrained(".")

config = load({"num_experts": 16})
print(config.num_experts)
config.save_pretrained(".")
with open("config.json") as file:
    print(*sorted(key for key in json.load(file) if key.endswith("_experts")))
print(load({"num_experts": 16, "num_local_experts": 4}).num_experts)
print(load({"num_local_experts": 4, "num_experts": 16}).num_experts)
PY
)
echo "$seen"
[ "$seen" = "16
num_local_experts
4
4" ] || { echo "changed"; exit 1; }
