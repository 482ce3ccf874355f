"""Journals without a file: one whose answers die with the process, and one that keeps none."""

import os
import pickle
import threading
from collections.abc import Iterable

from ..._spilling import Spilling
from ...providers.base import Response
from .base import AbstractJournal, Entry, is_other

# Answers in memory are used on the event loop, and forgotten from any thread. One lock serves all memory journals and
# memos, rather than one each: it is held for a moment only. It is also held over a fork, so that a forked process finds
# nothing half changed. It is reentrant, as a garbage collection while it is held may run code that takes it.
lock = threading.RLock()
os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)


def _size(response: Response) -> int:
    """About how many bytes an answer takes in memory: 650 for the object and numbers, words, alternatives."""
    return 650 + _bytes(response.text) + _bytes(response.reasoning) + 150 * len(response.alternatives)


def _bytes(words: str) -> int:
    """CPython stores a string in 1, 2 or 4 bytes a character. One that is not ASCII is counted as the largest."""
    return len(words) * (1 if words.isascii() else 4)


def _encode(response: Response) -> bytes:
    return pickle.dumps(tuple(response))  # a third of the response's own pickle, in half of the time


def _decode(data: bytes) -> Response:
    return Response(*pickle.loads(data))


class MemoryJournal(AbstractJournal):
    """Keeps answers for as long as it lives: up to `most_bytes` in memory, the others in a temporary file."""

    keeping = "session"

    def __init__(self, most_bytes: int = 64 << 20) -> None:
        self._answers = Spilling(most_bytes, _size, _encode, _decode)
        # Of answers that were forgotten or superseded: the new answer, or `None` until there is one. They are looked up
        # here first, as `Spilling` never deletes a value.
        self._later: dict[bytes, Response | None] = {}
        self._count = 0

    def get(self, digest: bytes) -> Response | None:
        return self._later[digest] if digest in self._later else self._answers.get(digest)

    async def ready(self, digest: bytes) -> Response | None:
        return None

    async def claim(self, digest: bytes, old: Response | None) -> Response | None:
        known = self.get(digest)
        return known if known is not None and is_other(known, old) else None

    async def freed(self, digest: bytes) -> None:
        """No other process has this journal."""

    def release(self, digest: bytes) -> None:
        """There are no claims."""

    async def put(self, digest: bytes, entry: Entry) -> Response:
        with lock:
            known, old = self.get(digest), entry.supersedes
            if known is not None and is_other(known, old and old.response):
                return known
            if known is not None and old is not None:
                self._keep(old.digest, old.response)
                self._later[digest] = None
                self._count -= 1
            self._keep(digest, entry.response)
            return entry.response

    def _keep(self, digest: bytes, response: Response) -> None:
        if digest in self._later:
            self._later[digest] = response
        else:
            self._answers.put(digest, response)
        self._count += 1

    def drop(self, digests: Iterable[bytes]) -> int:
        with lock:
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

    keeping = "nothing"

    def get(self, digest: bytes) -> Response | None:
        return None

    async def ready(self, digest: bytes) -> Response | None:
        return None

    async def claim(self, digest: bytes, old: Response | None) -> Response | None:
        return None

    async def freed(self, digest: bytes) -> None:
        """Nobody else has this journal."""

    def release(self, digest: bytes) -> None:
        """There are no claims."""

    async def put(self, digest: bytes, entry: Entry) -> Response:
        return entry.response

    def drop(self, digests: Iterable[bytes]) -> int:
        return 0

    def close(self) -> None:
        """There is nothing to free."""
