"""What every journal does: it knows what was answered, by the digest of what was asked."""

import abc
from collections.abc import Iterable
from typing import NamedTuple

from ..._providers.base import Request, Response


class Entry(NamedTuple):
    """An answer, with what is needed to audit it.

    **Fields:**

    - `request`, `response`: what was asked and what was answered.
    - `endpoint`: the provider's address, such as a base URL.
    - `began`, `ended`: when the first request was sent and when the answer had come, in seconds since 1970.
    - `attempts`: how many requests were sent until one was answered.
    - `lane`, `scope`: the lane and the operators that asked first, outermost first.
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
    """Answers by the digest of what was asked. `get`, `ready` and `put` are used from the event loop only."""

    @abc.abstractmethod
    def get(self, digest: bytes) -> Response | None:
        """The answer of a digest, or `None`. Raises `JournalError` if the journal cannot be read."""

    @abc.abstractmethod
    async def ready(self, digest: bytes) -> Response | None:
        """Is to be awaited before a request is sent, so that no answer is paid for that cannot be kept.

        Returns the answer if `get` did not find it and the journal has it after all, else `None`.

        **Raises:** `JournalError` if the journal cannot keep answers now.
        """

    @abc.abstractmethod
    async def put(self, digest: bytes, entry: Entry) -> Response:
        """Keeps an answer. When it returns, the answer is as safe as this journal can make it.

        Returns the answer that is kept. That is another one if another process was answered the same question first.

        **Raises:** `JournalError` if the answer cannot be kept.
        """

    @abc.abstractmethod
    def drop(self, digests: Iterable[bytes]) -> int:
        """Forgets the answers of digests, each given once; returns how many answers there were. From any thread."""

    @abc.abstractmethod
    def close(self) -> None:
        """Waits until what was put is safe, and frees files and threads. The journal may be used again afterwards."""
