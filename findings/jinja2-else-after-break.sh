#!/usr/bin/env bash
# Jinja2 3.1.6, extension loopcontrols: a loop's else runs after break and continue.
#
# Guess: as documented, else runs "if no iteration took place"; or as in Python, where
#   break skips it.
# Seen (2026-11-28, Python 3.11): it runs whenever no iteration reached its end: after a
#   break in the first iteration and when every iteration continues, but not after a
#   break in the second.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
python3 -m venv venv; venv/bin/pip install --quiet jinja2==3.1.6
seen=$(venv/bin/python - <<'PY'
from jinja2 import Environment
env = Environment(extensions=["jinja2.ext.loopcontrols"])
for body in ["{% break %}", "{% continue %}", "{% if i == 2 %}{% break %}{% endif %}", "."]:
    text = "{% for i in [1, 2] %}" + body + "{% else %}else{% endfor %}"
    print(repr(env.from_string(text).render()))
PY
)
echo "$seen"
[ "$seen" = $'\'else\'\n\'else\'\n\'\'\n\'..\'' ] || { echo "changed"; exit 1; }
