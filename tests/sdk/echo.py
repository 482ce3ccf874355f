"""A server on this machine that keeps what a vendor's package sends, and answers the same to all."""

import contextlib
import http.server
import json
import threading
from pathlib import Path
from typing import Any

# What tells of the client and of the connection, and nothing of the protocol.
HIDDEN = ("host", "user-agent", "x-goog-api-client", "content-length", "accept", "accept-encoding", "connection")


@contextlib.contextmanager
def echo(answer: Any):
    """The server's address, and the list of what was sent so far."""
    seen: list[dict[str, Any]] = []
    content = json.dumps(answer).encode()

    class Echo(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {k.lower(): v for k, v in self.headers.items()}
            kept = {k: v for k, v in headers.items() if k not in HIDDEN and not k.startswith("x-fern-")}
            seen.append(
                {"method": self.command, "path": self.path, "headers": kept, "body": json.loads(body or b"null")}
            )
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()


def write(name: str, package: str, sent: dict[str, Any]) -> None:
    """Writes what was sent, by the names of the calls, into a file beside this one."""
    path = Path(__file__).with_name(name)
    path.write_text(json.dumps({"package": package, "sent": sent}, indent=1) + "\n")
