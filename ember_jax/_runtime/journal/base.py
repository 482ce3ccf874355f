"""What every journal does: it knows what was answered, by the digest of what was asked."""

import abc
from collections.abc import Iterable
from typing import NamedTuple

from ..._providers.base import Request, Response


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


class AbstractJournal(abc.ABC):
    """Answers by digest. `get`, `ready` and `put` are used from the event loop only."""

    @abc.abstractmethod
    def get(self, digest: bytes) -> Response | None:
        """The answer of a digest, or `None`."""

    @abc.abstractmethod
    async def ready(self, digest: bytes) -> Response | None:
        """Is called before a request is sent; raises `JournalError` if the answer, once paid for, could not be kept.

        Returns the answer if `get` did not find it and the journal has it after all, else `None`.
        """

    @abc.abstractmethod
    async def put(self, digest: bytes, entry: Entry) -> Response:
        """Keeps an answer; when it returns the answer is as safe as this journal can make it.

        Returns the answer that is kept: the first one, if another process was answered the same question before.
        """

    @abc.abstractmethod
    def drop(self, digests: Iterable[bytes]) -> int:
        """Forgets the answers of different digests; returns how many there were. From any thread."""

    @abc.abstractmethod
    def close(self) -> None:
        """Frees what it holds, after what was put is safe. The journal may be used again afterwards."""
