"""Writes `gemini.json`: what Google's own package sends for the calls that `test_gemini.py` makes.

It needs google-genai, in an environment of its own: `pip install google-genai==3.6.1 && python tests/sdk/gemini.py`.
"""

import http.server
import json
import threading
from pathlib import Path

from google import genai
from google.genai import types

HIDDEN = ("host", "user-agent", "x-goog-api-client", "content-length", "accept", "accept-encoding", "connection")
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
TURNS = [("user", "What is 2 + 2?"), ("model", "4"), ("user", "And 3 + 3?")]
CALLS = {
    "plain": ("gemini-2.5-flash", {}),
    "sampled": (
        "gemini-2.5-flash",
        {
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 40,
            "max_output_tokens": 100,
            "stop_sequences": ["END"],
            "seed": 7,
            "presence_penalty": 0.1,
            "frequency_penalty": 0.2,
        },
    ),
    "log-probabilities": ("gemini-2.5-flash", {"response_logprobs": True, "logprobs": 5}),
    "structured": ("gemini-3-pro", {"response_mime_type": "application/json", "response_json_schema": SCHEMA}),
    "budget": ("gemini-2.5-flash", {"thinking_config": {"thinking_budget": 1024, "include_thoughts": True}}),
    "level": ("gemini-3-pro", {"thinking_config": {"thinking_level": "low"}}),
    "its own": (
        "tunedModels/mine",
        {
            "safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
            "cached_content": "cachedContents/x",
            "service_tier": "flex",
            "labels": {"a": "b"},
        },
    ),
}
# Vectors of three texts. A list of strings would be one content, and so one vector, for the second of the models.
TEXTS = ["a cat", "", "two dogs"]
VECTORS = {
    "vectors": ("gemini-embedding-001", {}),
    "short vectors": ("gemini-embedding-2", {"output_dimensionality": 256, "task_type": "RETRIEVAL_DOCUMENT"}),
    "titled vectors": ("gemini-embedding-001", {"task_type": "RETRIEVAL_DOCUMENT", "title": "Animals"}),
}
ANSWER = {
    "candidates": [{"content": {"parts": [{"text": "6"}], "role": "model"}, "finishReason": "STOP"}],
    "embeddings": [{"values": [0.5]}] * len(TEXTS),
}


class Echo(http.server.BaseHTTPRequestHandler):
    """Keeps each request, and answers it."""

    seen: list = []  # noqa: RUF012

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {k.lower(): v for k, v in self.headers.items() if k.lower() not in HIDDEN}
        sent = {"method": self.command, "path": self.path, "headers": headers, "body": json.loads(body or b"null")}
        self.seen.append(sent)
        answer = json.dumps(ANSWER).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST

    def log_message(self, *_):
        pass


def main():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = types.HttpOptions(base_url=f"http://127.0.0.1:{server.server_port}")
    client = genai.Client(api_key="k", http_options=options)
    contents = [types.Content(role=role, parts=[types.Part(text=text)]) for role, text in TURNS]
    for model, config in CALLS.values():
        settings = types.GenerateContentConfig(system_instruction="Be brief.", **config)
        client.models.generate_content(model=model, contents=contents, config=settings)
    list(client.models.list())
    texts = [types.Content(parts=[types.Part(text=text)]) for text in TEXTS]
    for model, config in VECTORS.values():
        client.models.embed_content(model=model, contents=texts, config=types.EmbedContentConfig(**config))
    sent = dict(zip([*CALLS, "models", *VECTORS], Echo.seen, strict=True))
    out = Path(__file__).with_suffix(".json")
    out.write_text(json.dumps({"package": f"google-genai {genai.__version__}", "sent": sent}, indent=1) + "\n")


if __name__ == "__main__":
    main()
