#!/usr/bin/env bash
# openai 7.59.0 (npm) and 3.22.1 (PyPI): the final message of a stream loses reasoning in
#   JavaScript and repeats the role in Python.
#
# Guess: both SDKs build the same message: the pieces of each text joined, and once the role
#   that local servers send with each piece.
# Seen (2026-11-28, Node 20, Python 3.11): in JavaScript reasoning_content is its last piece.
#   In Python it is complete, but the role is "assistantassistantassistant".
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT; cd "$dir"
npm init -y >/dev/null; npm install --silent openai@7.59.0 >/dev/null
python3 -m venv venv; venv/bin/pip install --quiet openai==3.22.1
cat > try.mjs <<'JS'
import OpenAI from "openai";
const { chat } = new OpenAI({ apiKey: "none", baseURL: process.argv[2] });
const message = await chat.completions.stream({ model: "m", messages: [] }).finalMessage();
console.log("JavaScript:", message.role, message.reasoning_content, message.content);
JS
cat > try.py <<'PY'
import json, subprocess, threading, http.server, openai
base = dict(id="1", object="chat.completion.chunk", created=1, model="m")
pieces = [("reasoning_content", "Think, "), ("reasoning_content", "think."), ("content", "Done.")]

class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for (key, text), reason in zip(pieces, [None, None, "stop"]):
            choice = dict(index=0, delta={"role": "assistant", key: text}, finish_reason=reason)
            self.wfile.write(b"data: %s\n\n" % json.dumps({**base, "choices": [choice]}).encode())
        self.wfile.write(b"data: [DONE]\n\n")

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = openai.OpenAI(api_key="none", base_url=f"http://127.0.0.1:{server.server_port}/v1")
subprocess.run(["node", "try.mjs", str(client.base_url)], check=True)
with client.chat.completions.stream(model="m", messages=[]) as stream:
    message = stream.get_final_completion().choices[0].message
print("Python:", message.role, message.reasoning_content, message.content)
PY
seen=$(venv/bin/python -u try.py 2>/dev/null); echo "$seen"
[ "$seen" = "JavaScript: assistant think. Done.
Python: assistantassistantassistant Think, think. Done." ] || { echo "changed"; exit 1; }
