"""A simulated server in a process of its own, so that a benchmark's CPU time is its client's alone."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from ember_jax import testing


@contextlib.contextmanager
def serving(latency: float) -> Iterator[str]:
    """Runs a server that takes so many seconds for each answer; gives its base URL."""
    command = [sys.executable, __file__, str(latency)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()  # which tells it to end
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    with testing.ChatServer(testing.SimModel(accuracy=1.0), latency=float(sys.argv[1])) as server:
        print(server.base_url, flush=True)
        sys.stdin.read()
