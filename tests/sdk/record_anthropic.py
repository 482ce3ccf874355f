"""Writes `anthropic.json`: what Anthropic's own SDK sends, to a server on this machine that answers the same to all.

    python -m venv sdk && sdk/bin/pip install anthropic && sdk/bin/python tests/sdk/record_anthropic.py

Run again with a newer SDK, it shows in version control what the vendor has changed.
"""

import http.server
import importlib
import json
import threading
from pathlib import Path
from typing import ClassVar

KEY = "a-key-of-no-account"
ANSWER = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-opus-5-5",
    "content": [{"type": "text", "text": "hi"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 3, "output_tokens": 1},
}
# What tells of the client and of the connection, and nothing of the protocol.
PASSED_OVER = ("x-stainless-", "user-agent", "host", "accept-encoding", "connection", "content-length")

# With all that the service does not take of a schema, each with a number or a word of its own.
SCHEMA = {
    "type": "object",
    "description": "A review.",
    "properties": {
        "score": {"type": "integer", "minimum": 1, "maximum": 5, "description": "How good it is."},
        "mood": {"type": "string", "enum": ["glad", "sad"]},
        "kind": {"const": "review"},
        "note": {"anyOf": [{"type": "string", "maxLength": 80}, {"type": "null"}], "description": "If any."},
        "when": {"type": "string", "format": "date"},
        "how": {"type": "string", "format": "color", "pattern": "^#"},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 4},
        "pair": {
            "type": "array",
            "items": {"type": "number", "exclusiveMinimum": 0},
            "minItems": 2,
            "maxItems": 2,
            "title": "Pair",
        },
        "by": {"$ref": "#/$defs/Person"},
        "either": {"oneOf": [{"type": "boolean"}, {"$ref": "#/$defs/Person"}]},
    },
    "required": ["score", "mood"],
    "additionalProperties": False,
    "$defs": {
        "Person": {
            "type": "object",
            "properties": {"name": {"type": "string", "minLength": 1}},
            "required": ["name"],
        },
    },
}


def cases(anthropic, client):
    """What is sent, by name."""
    said = {"model": "claude-opus-5-5", "max_tokens": 256, "messages": [{"role": "user", "content": "What is 2 + 2?"}]}
    create = client.messages.create
    form = {"type": "json_schema", "schema": anthropic.transform_schema(SCHEMA)}
    return {
        "plain": lambda: create(**said),
        "system": lambda: create(**said, system="Be brief."),
        "settings": lambda: create(
            **said,
            stop_sequences=["END"],
            thinking={"type": "adaptive", "display": "summarized"},
            output_config={"effort": "low"},
            cache_control={"type": "ephemeral", "ttl": "1h"},
            service_tier="standard_only",
            metadata={"user_id": "u1"},
        ),
        "schema": lambda: create(**said, output_config={"format": form, "effort": "low"}),
        "no thinking": lambda: create(**said, thinking={"type": "disabled"}),
        "on trial": lambda: client.beta.messages.create(**said, speed="fast", betas=["fast-mode-2026-02-01"]),
    }


class Handler(http.server.BaseHTTPRequestHandler):
    """Keeps what comes."""

    seen: ClassVar[list[dict]] = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value.replace(KEY, "(key)") for name, value in self.headers.items()}
        kept = {name: value for name, value in sorted(headers.items()) if not name.startswith(PASSED_OVER)}
        self.seen.append({"path": self.path, "headers": kept, "body": body})
        content = json.dumps(ANSWER).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *args):
        pass


def main():
    anthropic = importlib.import_module("anthropic")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with anthropic.Anthropic(base_url=f"http://127.0.0.1:{server.server_port}", api_key=KEY) as client:
            sent = {}
            for name, send in cases(anthropic, client).items():
                send()
                sent[name] = Handler.seen[-1]
        server.shutdown()
    recorded = {"sdk": f"anthropic {anthropic.__version__}", "schema": SCHEMA, "sent": sent}
    path = Path(__file__).with_name("anthropic.json")
    path.write_text(json.dumps(recorded, indent=2) + "\n")


if __name__ == "__main__":
    main()
