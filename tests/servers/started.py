"""Servers that nobody here wrote, each in a process and an environment of its own, while a test needs them."""

import contextlib
import select
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest


@contextlib.contextmanager
def started(name: str, command: Sequence[Any], log: Path, patience: float) -> Iterator[str]:
    """Starts a server that prints its address when it answers, and ends with its standard input; gives the address.

    A server that does not come up in `patience` seconds, or ends before it should, fails the test with the end of what
    it has told in `log`.
    """
    with open(log, "wb") as told:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=told)
    assert process.stdin is not None and process.stdout is not None
    try:
        # It prints its address, or nothing if it ends.
        is_ready, _, _ = select.select([process.stdout], [], [], patience)
        address = process.stdout.readline().decode().strip() if is_ready else ""
        if not address.startswith("http"):
            pytest.fail(f"{name} did not come up:\n{_end_of(log)}")
        yield address
        assert process.poll() is None, f"{name} has ended before the tests did:\n{_end_of(log)}"
    finally:
        process.stdin.close()  # it ends with its input
        process.stdout.close()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
