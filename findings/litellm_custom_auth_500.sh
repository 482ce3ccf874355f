#!/usr/bin/env bash
# LiteLLM 1.108.7: a proxy's own check of keys that raises an exception answers 500 in place of 401.
#
# `custom_auth` names a function that returns who a key is, or raises. That of the manual raises a plain Exception.
# Expected: 401, as JSON, as where the function raises FastAPI's HTTPException.
# Behaviour: 500 `Internal Server Error`, as plain text. What makes an answer of an exception first asks whether it came
# from the database, and imports prisma for that, which `litellm[proxy]` does not install: ModuleNotFoundError.
# Whom it hurts: whose clients try server errors again, as the vendors' SDKs do: each wrong key is sent several times,
# and told as an outage. Without the function a wrong key is 400 `No connected db.`.
# Seen with CPython 3.11.7:
#   HTTPException: {"error":{"message":"not a key","type":"auth_error","param":"None","code":"401"}} (401)
#   Exception:     Internal Server Error (500)
#   ModuleNotFoundError: No module named 'prisma'
set -euo pipefail
folder=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'litellm[proxy]==1.108.7'
cd "$folder"
cat >check.py <<'PYTHON'
from fastapi import HTTPException


async def auth(request, api_key):
    raise HTTPException(401, "not a key") if api_key == "sk-http" else Exception("not a key")
PYTHON
cat >config.yaml <<'YAML'
model_list: [{model_name: m, litellm_params: {model: openai/m, api_key: none, mock_response: ok}}]
general_settings: {custom_auth: check.auth, master_key: sk-master}
YAML
port=$("$folder/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
LITELLM_LOCAL_MODEL_COST_MAP=True venv/bin/litellm --config config.yaml --host 127.0.0.1 --port "$port" >log 2>&1 &
server=$!
until curl --silent --output /dev/null "http://127.0.0.1:$port/health/liveliness"; do
  kill -0 "$server"
  sleep 1
done
ask() {
  curl --silent --write-out ' (%{http_code})\n' "http://127.0.0.1:$port/v1/chat/completions" \
    --header "Authorization: Bearer $1" --json '{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'
}
told=$(ask sk-http) failed=$(ask sk-other)
echo "HTTPException: $told"
echo "Exception:     $failed"
grep --max-count 1 ModuleNotFoundError log
[[ $told == *"(401)" && $failed == "Internal Server Error (500)" ]]
