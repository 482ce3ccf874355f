"""A simulated server in a process of its own, so that a benchmark's CPU time is its client's alone."""

import contextlib
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ember_jax import testing


@contextlib.contextmanager
def serving(latency: float, certificate: Path | None = None) -> Iterator[str]:
    """Runs a server that takes so many seconds for each answer, over TLS if it has a certificate; gives its URL."""
    command = [sys.executable, __file__, str(latency), *([] if certificate is None else [str(certificate)])]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()  # which tells it to end
        process.wait()
        process.stdout.close()


def certify(folder: Path) -> Path:
    """Makes a certificate for this machine's own address, with its key, as one file in a folder."""
    file = folder / "own.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*request, *names, "-keyout", file, "-out", folder / "cert.pem"], check=True, capture_output=True)
    file.write_text(file.read_text() + (folder / "cert.pem").read_text())
    return file


def _context(certificate: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


if __name__ == "__main__":
    tls = _context(sys.argv[2]) if sys.argv[2:] else None
    model = testing.SimModel(accuracy=1.0)
    # An older server has no argument `tls`, and is not asked for one.
    given = {} if tls is None else {"tls": tls}
    with testing.ChatServer(model, latency=float(sys.argv[1]), **given) as server:
        print(server.base_url, flush=True)
        sys.stdin.read()
