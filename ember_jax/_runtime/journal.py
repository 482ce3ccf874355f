"""The journal: what was answered, by the digest of what was asked.

The interface is what a durable journal needs: bytes by digest, and a `put` that returns only when the answer is safe.
"""

import abc
from collections import OrderedDict
from typing import Any


class Journal(abc.ABC):
    """Answers by digest. Used from the event loop only."""

    @abc.abstractmethod
    def get(self, digest: bytes) -> bytes | None:
        """The row of a digest, or `None`."""

    @abc.abstractmethod
    async def put(self, digest: bytes, row: bytes) -> None:
        """Keeps a row; when it returns the row is as safe as this journal can make it."""


class MemoryJournal(Journal):
    """Keeps rows for the life of the process."""

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes] = {}

    def get(self, digest: bytes) -> bytes | None:
        return self._rows.get(digest)

    async def put(self, digest: bytes, row: bytes) -> None:
        self._rows[digest] = row

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"MemoryJournal({len(self._rows)} rows)"


class NoJournal(Journal):
    """Keeps nothing."""

    def get(self, digest: bytes) -> bytes | None:
        return None

    async def put(self, digest: bytes, row: bytes) -> None:
        return None


class Memo:
    """Results of pure host functions, the most recent ones, within a bound on their bytes.

    JAX may run a program's host side twice: `jax.checkpoint` does in the backward pass, and a derivative rule may
    call its function again. A pure function's result is then given from here instead of asked for again. It is not a
    journal: what is old is dropped.
    """

    def __init__(self, most_bytes: int = 64 << 20):
        self._most = most_bytes
        self._bytes = 0
        self._rows: OrderedDict[Any, tuple[Any, int]] = OrderedDict()

    def get(self, key: Any) -> Any:
        """The result of a key, or `None`."""
        row = self._rows.get(key)
        if row is None:
            return None
        self._rows.move_to_end(key)
        return row[0]

    def put(self, key: Any, result: Any, size: int) -> None:
        """Keeps a result of `size` bytes, dropping the least recently used ones beyond the bound."""
        _, replaced = self._rows.pop(key, (None, 0))
        self._bytes -= replaced
        # a key costs about as much as a small result
        self._rows[key] = (result, size + 256)
        self._bytes += size + 256
        while self._bytes > self._most:
            _, (_, dropped) = self._rows.popitem(last=False)
            self._bytes -= dropped
