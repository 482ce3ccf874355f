"""A server on this machine that answers in turn what a test gives it, whatever is asked, and keeps what was."""

import http.server
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Reply:
    """One answer; a body that is no bytes is sent as JSON. With `hang_up`, half of it."""

    body: Any = field(default_factory=dict)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hang_up: bool = False


class Asked(NamedTuple):
    """One request as it came, its headers by their names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    raw: bytes = b""


class Replies:
    """The server, while the `with` block lasts; the last of the replies is given for ever. A function makes one of the
    body that was asked."""

    def __init__(self, *replies: Reply | Callable[[Any], Reply]):
        self.asked: list[Asked] = []
        replies_left = list(replies)
        asked = self.asked

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                raw = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                one = Asked(self.command, self.path, headers, json.loads(raw) if raw else None, raw)
                asked.append(one)
                given = replies_left.pop(0) if len(replies_left) > 1 else replies_left[0]
                reply = given if isinstance(given, Reply) else given(one.body)
                body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                self.send_response(reply.status)
                for name, value in {"content-type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if reply.hang_up else body)
                self.close_connection = True

            do_GET = do_POST

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Replies":
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
