"""Writes `cohere.json`: what Cohere's own package sends for the calls that `test_cohere.py` makes.

It needs cohere, in an environment of its own: `pip install cohere==7.3.1 && python tests/sdk/cohere.py`.
"""

import importlib.metadata
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.pop(0)  # where this file itself has the package's name
import cohere

HIDDEN = ("host", "user-agent", "content-length", "accept", "accept-encoding", "connection")
TEXTS = ["a cat", "two dogs"]
CALLS = {
    "vectors": lambda client: client.embed(
        model="embed-v4.0", input_type="search_document", texts=TEXTS, embedding_types=["float"]
    ),
    "short vectors": lambda client: client.embed(
        model="embed-v4.0",
        input_type="search_query",
        texts=TEXTS,
        embedding_types=["float"],
        output_dimension=256,
        truncate="NONE",
        max_tokens=512,
        priority=3,
    ),
    "scores": lambda client: client.rerank(model="rerank-v3.5", query="a dog", documents=TEXTS),
    "scores of the beginning": lambda client: client.rerank(
        model="rerank-v3.5", query="a dog", documents=TEXTS, max_tokens_per_doc=100, priority=3
    ),
    "models": lambda client: client.models.list(page_size=1000),
}
ANSWER = {"id": "1", "embeddings": {"float": [[0.5]] * len(TEXTS)}, "results": [], "models": []}


class Echo(BaseHTTPRequestHandler):
    """Keeps each request, and answers it."""

    seen: list = []  # noqa: RUF012

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {k.lower(): v for k, v in self.headers.items() if k.lower() not in HIDDEN}
        headers = {k: v for k, v in headers.items() if not k.startswith("x-fern-")}
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
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = cohere.ClientV2(api_key="k", base_url=f"http://127.0.0.1:{server.server_port}")
    for call in CALLS.values():
        call(client)
    sent = dict(zip(CALLS, Echo.seen, strict=True))
    out = Path(__file__).with_suffix(".json")
    package = f"cohere {importlib.metadata.version('cohere')}"
    out.write_text(json.dumps({"package": package, "sent": sent}, indent=1) + "\n")


if __name__ == "__main__":
    main()
