"""A server on this machine that keeps what is sent to it, for vendors' own SDKs and for ours.

A script `record_….py` beside this file sends one vendor's cases to it with that vendor's SDK, in an environment of its
own, and writes the fixture that a test compares ours with:

    python -m venv sdk && sdk/bin/pip install openai==3.57.0 && sdk/bin/python tests/sdk/record_openai.py

Run again with a newer SDK, it shows in version control what the vendor has changed. This needs Python alone.
"""

import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

KEY = "a-key-of-no-account"
# What structured answers are asked for by, in the calls of several vendors.
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
# What tells of the client and of the connection, and nothing of the protocol.
PASSED_OVER = (
    "accept-encoding",
    "connection",
    "content-length",
    "host",
    "user-agent",
    "x-fern-",
    "x-goog-api-client",
    "x-stainless-",
)


class Loopback:
    """The server at `url`; `seen` are the requests that have come, in order."""

    def __init__(self, url: str, seen: list[dict[str, Any]]):
        self.url = url
        self.seen = seen

    def sent(self, cases: Mapping[str, Callable[[], Any]]) -> dict[str, dict[str, Any]]:
        """The last request that each case makes."""
        last = {}
        for name, send in cases.items():
            before = len(self.seen)
            send()
            assert len(self.seen) > before, f"{name} has sent nothing"
            last[name] = self.seen[-1]
        return last


@contextlib.contextmanager
def listening(answer: Callable[[str, Any], Any]) -> Iterator[Loopback]:
    """A server whose `answer` is made of a request's path and body: a tree of JSON, or bytes as they are sent."""
    seen: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value.replace(KEY, "(key)") for name, value in self.headers.items()}
            kept = {name: value for name, value in sorted(headers.items()) if not name.startswith(PASSED_OVER)}
            body = json.loads(raw or b"null")
            seen.append({"method": self.command, "path": self.path, "headers": kept, "body": body})
            told = answer(self.path, body)
            content = told if isinstance(told, bytes) else json.dumps(told).encode()
            self.send_response(200)
            self.send_header("content-type", "text/event-stream" if isinstance(told, bytes) else "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield Loopback(f"http://127.0.0.1:{server.server_port}", seen)
        finally:
            server.shutdown()


def write(vendor: str, sdk: str, sent: Mapping[str, Any], **more: Any) -> None:
    """Writes the fixture of a vendor: the SDK with its version, what it has sent, and more that a test needs."""
    path = Path(__file__).with_name(f"{vendor}.json")
    path.write_text(json.dumps({"sdk": sdk, **more, "sent": sent}, indent=1) + "\n")


def read(vendor: str) -> dict[str, Any]:
    """What `write` has written."""
    return json.loads(Path(__file__).with_name(f"{vendor}.json").read_text())


# What stands where a field is in one of two trees alone.
NOT_SENT: Any = "(not sent)"


def different(one: Any, other: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Where two trees of JSON differ: what stands there in each."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = [*one, *(name for name in other if name not in one)]
        pairs = [(f"{path}.{name}", one.get(name, NOT_SENT), other.get(name, NOT_SENT)) for name in names]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = [(f"{path}[{i}]", *pair) for i, pair in enumerate(zip(one, other, strict=True))]
    else:
        return {} if type(one) is type(other) and one == other else {path.removeprefix("."): (one, other)}
    return {at: both for where, a, b in pairs for at, both in different(a, b, where).items()}


def plain(tree: Any, defined: Any = None) -> Any:
    """A schema without titles, and with what it defines in the place of what names it."""
    if isinstance(tree, list):
        return [plain(one, defined) for one in tree]
    if not isinstance(tree, dict):
        return tree
    defined = tree.get("$defs", defined)
    if "$ref" in tree:
        return plain(defined[tree["$ref"].removeprefix("#/$defs/")], defined)
    return {k: plain(v, defined) for k, v in tree.items() if k != "$defs" and not (k == "title" and isinstance(v, str))}
