#!/usr/bin/env bash
# @huggingface/jinja 0.5.11 (chat templates in JavaScript): strip, lstrip and rstrip ignore
#   their argument.
#
# Guess: they strip the given characters, as in Python, for which chat templates are written.
# Seen (2026-11-28, Node 20): they always strip whitespace and nothing else. The expression
#   with which Qwen3's template takes a reply out of the history removes the indentation of
#   its first line, so the model reads another conversation than the one from Python.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent @huggingface/jinja@0.5.11 >/dev/null
python3 -m venv venv; venv/bin/pip install --quiet jinja2==3.1.6
cat > cases.json <<'JSON'
[
  "{{ '<think>Short.</think>\n\n    return x'.split('</think>')[-1].lstrip('\n') }}",
  "{{ '  two spaces  \n'.rstrip('\n') }}",
  "{{ '**bold**'.strip('*') }}"
]
JSON
cat > try.mjs <<'JS'
import { readFileSync } from "node:fs";
import { Template } from "@huggingface/jinja";
for (const text of JSON.parse(readFileSync("cases.json"))) {
  console.log(JSON.stringify(new Template(text).render()));
}
JS
cat > try.py <<'PY'
import json, jinja2
for text in json.load(open("cases.json")):
    print(json.dumps(jinja2.Template(text).render()))
PY
seen=$(venv/bin/python try.py; node try.mjs); echo "$seen"
[ "$seen" = '"    return x"
"  two spaces  "
"bold"
"return x"
"  two spaces"
"**bold**"' ] || { echo "changed"; exit 1; }
