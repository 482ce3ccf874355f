#!/usr/bin/env bash
# llama.cpp's server (xllamacpp 2026.10.11549): `/v1/responses` refuses an assistant's turn whose content is a string.
#
# Expected: `input` takes items such as {"role": "assistant", "content": "Hi"}, as OpenAI's own SDK types them: the
# content a string or a list of parts, and `type` left out. The user's and the system's turns are taken so.
# Behaviour: the same item of the assistant is refused with 400, "Cannot determine type of 'item'". It is taken with
# `"type": "message"` and a list of `output_text` parts, in which form the server itself answers.
# Whom it hurts: programs that carry a conversation on by the short form, which pass against OpenAI.
# Seen with CPython 3.11.7, with the tiny model of tests/servers, which has random weights:
#   user, a string          200
#   assistant, a string     400 Cannot determine type of 'item'
#   assistant, output_text  200
set -euo pipefail
servers=$(cd "$(dirname "$0")/../tests/servers" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check -r "$servers/llamacpp.txt"
"$folder/venv/bin/python" "$servers/model.py" "$folder/tiny.gguf"
"$folder/venv/bin/python" - "$servers/llamacpp.py" "$folder/tiny.gguf" <<'PYTHON'
import json
import subprocess
import sys
import urllib.error
import urllib.request

command = [sys.executable, *sys.argv[1:], "sk-any", "plain"]
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
with subprocess.Popen(command, **pipes, text=True) as server:  # it ends with its input
    address = server.stdout.readline().strip()
    headers = {"Authorization": "Bearer sk-any", "Content-Type": "application/json"}

    def ask(*turns):
        body = {"model": "tiny", "input": [*turns, {"role": "user", "content": "And?"}], "max_output_tokens": 4}
        asked = urllib.request.Request(f"{address}/v1/responses", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return answer.status, ""
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())["error"]["message"]

    part = {"type": "output_text", "text": "Hi"}
    found = {
        "user, a string         ": ask({"role": "user", "content": "Hi"}),
        "assistant, a string    ": ask({"role": "assistant", "content": "Hi"}),
        "assistant, output_text ": ask({"type": "message", "role": "assistant", "content": [part]}),
    }
for how, told in found.items():
    print(how, *told)
assert [status for status, _ in found.values()] == [200, 400, 200]
PYTHON
