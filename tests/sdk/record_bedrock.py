"""Writes `bedrock.json`: what AWS's own package sends for the calls that `test_bedrock.py` makes, signature and all.

python -m venv sdk && sdk/bin/pip install boto3==1.44.8 && sdk/bin/python tests/sdk/record_bedrock.py

The keys are those of AWS's own examples, and the clock stands still, so that signatures can be compared. For that the
bodies are kept as they are sent, and the address is, which `loopback` does not keep.
"""

import datetime
import http.server
import json
import os
import threading
import types
from pathlib import Path

import boto3
import botocore.auth
import botocore.awsrequest
import botocore.config
import loopback

KEYS = {"aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}
TOKEN = "a-session-token-of-no-account"
NOW = datetime.datetime(2026, 12, 1, 12, 0, 0)
# What tells of the client and of the connection, and nothing of the protocol.
PASSED_OVER = ("accept-encoding", "amz-sdk-", "connection", "content-length", "user-agent", "x-amzn-")
HAIKU = "global.anthropic.claude-haiku-4-5-20251001-v1:0"
PROFILE = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/a1b2c3"
PNG = b"\x89PNG\r\n\x1a\n"
SYSTEM = [{"text": "Be brief."}]
TURNS = [
    {"role": "user", "content": [{"text": "What is 2 + 2?"}]},
    {"role": "assistant", "content": [{"text": "4"}]},
    {"role": "user", "content": [{"text": "And 3 + 3?"}]},
]
CALLS = {
    "plain": {"modelId": HAIKU, "system": SYSTEM, "messages": TURNS},
    "by ARN": {"modelId": PROFILE, "system": SYSTEM, "messages": TURNS},
    "sampled": {
        "modelId": HAIKU,
        "system": SYSTEM,
        "messages": TURNS,
        "inferenceConfig": {"maxTokens": 100, "temperature": 0.5, "topP": 0.9, "stopSequences": ["END"]},
        "additionalModelRequestFields": {"top_k": 40},
        "serviceTier": {"type": "flex"},
        "requestMetadata": {"team": "a"},
    },
    "structured": {
        "modelId": HAIKU,
        "system": SYSTEM,
        "messages": TURNS,
        "outputConfig": {
            "effort": "low",
            "textFormat": {
                "type": "json_schema",
                "structure": {"jsonSchema": {"name": "A", "schema": json.dumps(loopback.SCHEMA)}},
            },
        },
    },
    "media": {
        "modelId": HAIKU,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"text": "What is this?"},
                    {"image": {"format": "png", "source": {"bytes": PNG}}},
                    {"document": {"format": "pdf", "name": "report", "source": {"bytes": b"%PDF-1.7"}}},
                ],
            }
        ],
    },
    "tools": {
        "modelId": HAIKU,
        "messages": [
            {"role": "user", "content": [{"text": "Add."}]},
            {
                "role": "assistant",
                "content": [
                    {"reasoningContent": {"reasoningText": {"text": "Well.", "signature": "abc"}}},
                    {"reasoningContent": {"redactedContent": b"hidden"}},
                    {"toolUse": {"toolUseId": "id-1", "name": "add", "input": {"a": 1}}},
                ],
            },
            {"role": "user", "content": [{"toolResult": {"toolUseId": "id-1", "content": [{"text": "3"}]}}]},
        ],
        "toolConfig": {
            "tools": [{"toolSpec": {"name": "add", "description": "Adds.", "inputSchema": {"json": loopback.SCHEMA}}}],
            "toolChoice": {"any": {}},
        },
    },
}
ANSWER = {
    "output": {"message": {"role": "assistant", "content": [{"text": "6"}]}},
    "stopReason": "end_turn",
    "usage": {"inputTokens": 3, "outputTokens": 1, "totalTokens": 4},
    "metrics": {"latencyMs": 1},
    "modelSummaries": [],
}


class Echo(http.server.BaseHTTPRequestHandler):
    """Keeps each request, and answers it."""

    seen: list = []  # noqa: RUF012

    def do_POST(self):
        raw = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        headers = {k.lower(): v for k, v in self.headers.items() if not k.lower().startswith(PASSED_OVER)}
        self.seen.append({"method": self.command, "path": self.path, "headers": headers, "raw": raw})
        answer = json.dumps(ANSWER).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST

    def log_message(self, *_):
        pass


def bearer():
    """What is sent with a bearer key, which the package sends over TLS alone: it is caught before it is."""
    os.environ["AWS_BEARER_TOKEN_BEDROCK"] = "k"
    client = boto3.client("bedrock-runtime", region_name="us-east-1")
    caught = []

    def keep(request, **_):
        caught.append(request)
        raw = types.SimpleNamespace(stream=lambda *_: iter([json.dumps(ANSWER).encode()]))
        return botocore.awsrequest.AWSResponse(request.url, 200, {}, raw)

    client.meta.events.register("before-send.bedrock-runtime", keep)
    client.converse(**CALLS["plain"])
    (request,) = caught
    headers = {k.lower(): v.decode() if isinstance(v, bytes) else v for k, v in request.headers.items()}
    kept = {k: v for k, v in headers.items() if not k.startswith(PASSED_OVER)}
    return {"method": request.method, "url": request.url, "headers": kept, "raw": request.body.decode()}


def main():
    for name in list(os.environ):
        if name.startswith("AWS_"):
            del os.environ[name]
    botocore.auth.get_current_datetime = lambda *_: NOW
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = botocore.config.Config(retries={"total_max_attempts": 1})
    place = {"region_name": "us-east-1", "endpoint_url": f"http://127.0.0.1:{server.server_port}", "config": config}
    runtime = boto3.client("bedrock-runtime", **place, **KEYS)
    for call in CALLS.values():
        runtime.converse(**call)
    boto3.client("bedrock-runtime", **place, **KEYS, aws_session_token=TOKEN).converse(**CALLS["plain"])
    boto3.client("bedrock", **place, **KEYS).list_foundation_models()
    sent = dict(zip([*CALLS, "session", "models"], Echo.seen, strict=True)) | {"bearer": bearer()}
    out = Path(__file__).with_name("bedrock.json")
    package = f"boto3 {boto3.__version__}"
    out.write_text(json.dumps({"package": package, "keys": KEYS, "token": TOKEN, "sent": sent}, indent=1) + "\n")


if __name__ == "__main__":
    main()
