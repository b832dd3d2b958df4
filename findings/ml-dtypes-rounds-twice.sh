#!/usr/bin/env bash
# ml_dtypes 0.6.0: casts of float64 and of integers to bfloat16 and float8 round twice.
#
# Guess: a cast gives the nearest value, as NumPy's cast of float64 to float16 does.
# Seen (2026-11-28, NumPy 2.4.6): the number is rounded to float32 first. Just above the
#   middle between two values that becomes the middle itself, and the second rounding goes
#   down to the even one: bfloat16(1 + 2**-8 + 2**-40) is 1, the nearest is 1.0078125, and
#   33685505 becomes 33554432, the nearest is 33816576.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
python3 -m venv venv; venv/bin/pip install --quiet numpy==2.4.6 ml_dtypes==0.6.0
seen=$(venv/bin/python - <<'PY'
import numpy as np, ml_dtypes as m

def cast(value, dtype, step):
    """Above the middle between two neighbours, value must go to the upper one."""
    low, high = value // step * step, (value // step + 1) * step
    assert high - value < value - low and low == dtype(low) and high == dtype(high)
    got = float(np.array([value]).astype(dtype)[0])
    print(np.dtype(dtype).name, type(value).__name__, {low: "low", high: "high"}[got])

cast(1 + 2**-11 + 2**-40, np.float16, 2**-10)
cast(1 + 2**-8 + 2**-40, m.bfloat16, 2**-7)
cast(1 + 2**-4 + 2**-40, m.float8_e4m3fn, 2**-3)
cast(1 + 2**-3 + 2**-40, m.float8_e5m2, 2**-2)
cast(2**25 + 2**17 + 1, m.bfloat16, 2**18)
PY
)
echo "$seen"
[ "$seen" = "float16 float high
bfloat16 float low
float8_e4m3fn float low
float8_e5m2 float low
bfloat16 int low" ] || { echo "changed"; exit 1; }
