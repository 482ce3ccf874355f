"""The journal: what was answered, by the digest of what was asked.

A durable one is `sqlite.Journal`, which users know as `ember.Journal`; here are the interface and what dies with the
process.
"""

import abc
import os
import pickle
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, NamedTuple

from .._providers.base import Request, Response
from .._spilling import Spilling


class Entry(NamedTuple):
    """An answer, with what is needed to audit it.

    **Fields:**

    - `request`, `response`: what was asked and what was answered.
    - `endpoint`: where it was asked.
    - `began`, `ended`: when the first request was sent and when the answer had come, in seconds since 1970.
    - `attempts`: the requests it took.
    - `lane`, `scope`: who has asked first.
    """

    request: Request
    response: Response
    endpoint: str = ""
    began: float = 0.0
    ended: float = 0.0
    attempts: int = 1
    lane: tuple[int, ...] = ()
    scope: str = ""


# What is kept in memory is used on the event loop, and forgotten from any thread. One lock for all, as it is held for a
# moment, and over a fork, so that a forked process finds nothing half changed. The same thread may enter again: a
# garbage collection within may run anybody's code.
_lock = threading.RLock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class AbstractJournal(abc.ABC):
    """Answers by digest. `get`, `ready` and `put` are used from the event loop only."""

    @abc.abstractmethod
    def get(self, digest: bytes) -> Response | None:
        """The answer of a digest, or `None`."""

    @abc.abstractmethod
    async def ready(self, digest: bytes) -> Response | None:
        """Asked before a call is paid for: raises `JournalError` if its answer could not be kept.

        Returns the answer where it has come to light in trying, else `None`.
        """

    @abc.abstractmethod
    async def put(self, digest: bytes, entry: Entry) -> Response:
        """Keeps an answer; when it returns the answer is as safe as this journal can make it.

        Returns the answer that is kept: the first one, if another process was answered the same question before.
        """

    @abc.abstractmethod
    def drop(self, digests: Iterable[bytes]) -> int:
        """Forgets answers by what was asked, which differs; returns how many there were. From any thread."""

    @abc.abstractmethod
    def close(self) -> None:
        """Frees what it holds, after what was put is safe. The journal may be used again afterwards."""


def _size(response: Response) -> int:
    """The bytes of an answer in memory: of the object and its numbers, its words, and each alternative."""
    return 550 + len(response.text) * (1 if response.text.isascii() else 4) + 150 * len(response.alternatives)


def _encode(response: Response) -> bytes:
    return pickle.dumps(tuple(response))  # a third of the response's own pickle, in half of the time


def _decode(data: bytes) -> Response:
    return Response(*pickle.loads(data))


class MemoryJournal(AbstractJournal):
    """Keeps answers for the life of the process: so many bytes in memory, the others in a temporary file."""

    def __init__(self, most_bytes: int = 64 << 20) -> None:
        self._answers = Spilling(most_bytes, _size, _encode, _decode)
        self._later: dict[bytes, Response | None] = {}  # what was forgotten, and perhaps answered again
        self._count = 0

    def get(self, digest: bytes) -> Response | None:
        return self._later[digest] if digest in self._later else self._answers.get(digest)

    async def ready(self, digest: bytes) -> Response | None:
        return None

    async def put(self, digest: bytes, entry: Entry) -> Response:
        with _lock:
            known = self.get(digest)
            if known is not None:
                return known
            if digest in self._later:
                self._later[digest] = entry.response
            else:
                self._answers.put(digest, entry.response)
            self._count += 1
            return entry.response

    def drop(self, digests: Iterable[bytes]) -> int:
        with _lock:
            known = [digest for digest in set(digests) if self.get(digest) is not None]
            self._later.update(dict.fromkeys(known))
            self._count -= len(known)
            return len(known)

    def close(self) -> None:
        """There is nothing to free."""

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"MemoryJournal({len(self)} answers)"


class NoJournal(AbstractJournal):
    """Keeps nothing."""

    def get(self, digest: bytes) -> Response | None:
        return None

    async def ready(self, digest: bytes) -> Response | None:
        return None

    async def put(self, digest: bytes, entry: Entry) -> Response:
        return entry.response

    def drop(self, digests: Iterable[bytes]) -> int:
        return 0

    def close(self) -> None:
        """There is nothing to free."""


class Memo:
    """Results of pure host functions, the most recent ones, within a bound on their bytes.

    JAX may run a program's host side twice: `jax.checkpoint` does in the backward pass, and a derivative rule may
    call its function again. A pure function's result is then given from here instead of asked for again. It is not a
    journal: what is old is dropped. Used from any thread.

    **Attributes:**

    - `cleared`: how often all was dropped.
    """

    def __init__(self, most_bytes: int = 64 << 20):
        self._most = most_bytes
        self._bytes = 0
        self._rows: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self.cleared = 0

    def get(self, key: Any) -> Any:
        """The result of a key, or `None`."""
        with _lock:
            row = self._rows.get(key)
            if row is None:
                return None
            self._rows.move_to_end(key)
            return row[0]

    def put(self, key: Any, result: Any, size: int, since: int | None = None) -> None:
        """Keeps a result of `size` bytes, dropping the least recently used ones beyond the bound.

        Not if all was dropped after `cleared` was `since`, as it was when the work on it began: it may be made of what
        was to be forgotten.
        """
        with _lock:
            if since is not None and self.cleared != since:
                return
            _, replaced = self._rows.pop(key, (None, 0))
            self._bytes -= replaced
            # a key costs about as much as a small result
            self._rows[key] = (result, size + 256)
            self._bytes += size + 256
            while self._bytes > self._most:
                _, (_, dropped) = self._rows.popitem(last=False)
                self._bytes -= dropped

    def clear(self) -> None:
        """Drops all."""
        with _lock:
            self._rows.clear()
            self._bytes = 0
            self.cleared += 1
