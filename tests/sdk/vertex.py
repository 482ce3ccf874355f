"""Writes `vertex.json`: what the vendors' own packages send to Vertex AI for the calls that `test_vertex.py` makes.

They need an environment of their own: `pip install google-genai==3.6.1 anthropic==2.14.0 google-auth[requests]`, then
`python tests/sdk/vertex.py`.
"""

import http.server
import json
import os
import threading
from pathlib import Path

import anthropic
import google.auth.credentials
from google import genai
from google.genai import types

HIDDEN = ("host", "user-agent", "x-goog-api-client", "content-length", "accept", "accept-encoding", "connection")
STAINLESS = "x-stainless-"
TURNS = [("user", "What is 2 + 2?"), ("model", "4"), ("user", "And 3 + 3?")]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
CALLS = {
    "plain": ("gemini-2.5-flash", {}),
    "sampled": (
        "gemini-2.5-flash",
        {"temperature": 0.5, "top_p": 0.9, "max_output_tokens": 100, "stop_sequences": ["END"], "seed": 7},
    ),
    "structured": ("gemini-3-pro", {"response_mime_type": "application/json", "response_json_schema": SCHEMA}),
    "budget": ("gemini-2.5-flash", {"thinking_config": {"thinking_budget": 1024, "include_thoughts": True}}),
    "another's": ("meta/llama-4-scout", {}),
    "tuned": ("projects/p-1/locations/us-central1/endpoints/7", {}),
}
ANSWER = {"candidates": [{"content": {"parts": [{"text": "6"}], "role": "model"}, "finishReason": "STOP"}]}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-haiku-4-5",
    "content": [{"type": "text", "text": "6"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 3, "output_tokens": 1},
}


class Echo(http.server.BaseHTTPRequestHandler):
    """Keeps each request, and answers it."""

    seen: list = []  # noqa: RUF012

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {k.lower(): v for k, v in self.headers.items()}
        headers = {k: v for k, v in headers.items() if k not in HIDDEN and not k.startswith(STAINLESS)}
        sent = {"method": self.command, "path": self.path, "headers": headers, "body": json.loads(body or b"null")}
        self.seen.append(sent)
        answer = json.dumps(MESSAGE if "anthropic" in self.path else ANSWER).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST

    def log_message(self, *_):
        pass


class Known(google.auth.credentials.Credentials):
    """Credentials whose token is there."""

    def __init__(self):
        super().__init__()
        self.token = "t"

    def refresh(self, request):
        pass


def main():
    for name in list(os.environ):
        if name.startswith(("GOOGLE_", "GEMINI_", "ANTHROPIC_")):
            del os.environ[name]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    options = types.HttpOptions(base_url=url)
    place = {"project": "p-1", "location": "us-central1"}
    client = genai.Client(vertexai=True, **place, credentials=Known(), http_options=options)
    contents = [types.Content(role=role, parts=[types.Part(text=text)]) for role, text in TURNS]
    for model, config in CALLS.values():
        settings = types.GenerateContentConfig(system_instruction="Be brief.", **config)
        client.models.generate_content(model=model, contents=contents, config=settings)
    list(client.models.list())
    express = genai.Client(vertexai=True, api_key="k", http_options=options)
    settings = types.GenerateContentConfig(system_instruction="Be brief.")
    express.models.generate_content(model="gemini-2.5-flash", contents=contents, config=settings)
    claude = anthropic.AnthropicVertex(
        base_url=f"{url}/v1", project_id="p-1", region="us-central1", credentials=Known(), max_retries=0
    )
    turns = [{"role": {"model": "assistant"}.get(role, role), "content": text} for role, text in TURNS]
    claude.messages.create(model="claude-haiku-4-5@20251001", max_tokens=100, system="Be brief.", messages=turns)
    sent = dict(zip([*CALLS, "models", "express", "claude"], Echo.seen, strict=True))
    out = Path(__file__).with_suffix(".json")
    packages = [f"google-genai {genai.__version__}", f"anthropic {anthropic.__version__}"]
    out.write_text(json.dumps({"packages": packages, "sent": sent}, indent=1) + "\n")


if __name__ == "__main__":
    main()
