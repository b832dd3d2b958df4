#!/usr/bin/env bash
# Jinja2 3.1.6: the indent filter changes a list that it refuses.
#
# Guess: {{ items | indent }} fails or prints the list's text; in ImmutableSandboxedEnvironment
#   a template cannot change the caller's values.
# Seen (2026-11-28, Python 3.11): it raises AttributeError, and the caller's list has a
#   line break appended, also in the immutable sandbox.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
python3 -m venv venv; venv/bin/pip install --quiet jinja2==3.1.6
seen=$(venv/bin/python - <<'PY'
from jinja2.sandbox import ImmutableSandboxedEnvironment
items = ["a"]
try:
    print(ImmutableSandboxedEnvironment().from_string("{{ items | indent }}").render(items=items))
except Exception as error:
    print(type(error).__name__)
print(items)
PY
)
echo "$seen"
[ "$seen" = $'AttributeError\n[\'a\', \'\\n\']' ] || { echo "changed"; exit 1; }
