"""What every journal does: it knows what was answered, by the digest of what was asked."""

import abc
import hashlib
from collections.abc import Iterable
from typing import ClassVar, NamedTuple

from ...errors import Keeping
from ...providers.base import Request, Response

# How many answers to one question are asked for in all, if each is of no use.
MOST_ANSWERS = 3


class Superseded(NamedTuple):
    """An answer that is of no use, and whose place another one takes.

    **Fields:**

    - `digest`: the digest that it is kept under from then on.
    - `response`: the answer; its `fault` says why it is of no use.
    """

    digest: bytes
    response: Response


class Entry(NamedTuple):
    """An answer, with what is needed to audit it.

    **Fields:**

    - `request`, `response`: what was asked and what was answered.
    - `endpoint`: the provider's address, such as a base URL.
    - `began`, `ended`: when the first request was sent and when the answer had come, in seconds since 1970.
    - `attempts`: how many requests were sent until one was answered.
    - `lane`, `scope`: the lane and the operators that asked first, outermost first.
    - `supersedes`: the answer whose place it takes, if it has one.
    - `superseded`: whether another answer has taken its place.
    """

    request: Request
    response: Response
    endpoint: str = ""
    began: float = 0.0
    ended: float = 0.0
    attempts: int = 1
    lane: tuple[int, ...] = ()
    scope: str = ""
    supersedes: Superseded | None = None
    superseded: bool = False


class Claimed(Exception):
    """Another process is asking the question."""


class AbstractJournal(abc.ABC):
    """Answers by the digest of what was asked. All but `drop` and `close` are used from the event loop only.

    **Attributes:**

    - `keeping`: for how long it keeps them.
    """

    keeping: ClassVar[Keeping] = "file"

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
    async def claim(self, digest: bytes, old: Response | None) -> Response | None:
        """Is to be awaited, instead of `ready`, before a request is sent that is paid for.

        Returns the answer if the journal has one other than `old`, which is of no use. Else the question is the
        caller's to ask, until it calls `put` or `release`.

        **Raises:** `Claimed` if it is another process's to ask; `JournalError` if the journal cannot keep answers now.
        """

    @abc.abstractmethod
    async def freed(self, digest: bytes) -> None:
        """Waits until a question that was claimed by another process is answered, or free to be asked."""

    @abc.abstractmethod
    def release(self, digest: bytes) -> None:
        """Ends a claim to a question that has got no answer."""

    @abc.abstractmethod
    async def put(self, digest: bytes, entry: Entry) -> Response:
        """Keeps an answer. When it returns, the answer is as safe as this journal can make it.

        Returns the answer that is kept. That is another one if another process was answered the same question first.
        An answer that the entry `supersedes` is kept too, under its new digest.

        **Raises:** `JournalError` if the answer cannot be kept.
        """

    @abc.abstractmethod
    def drop(self, digests: Iterable[bytes]) -> int:
        """Forgets the answers of digests, each given once; returns how many answers there were. From any thread."""

    @abc.abstractmethod
    def close(self) -> None:
        """Waits until what was put is safe, and frees files and threads. The journal may be used again afterwards."""


def is_other(response: Response, old: Response | None) -> bool:
    """Whether an answer is another one than `old`, which is of no use; `None` for none."""
    return old is None or response.text != old.text


def all_digests(digest: bytes) -> list[bytes]:
    """What the answers to one question are kept under: its digest, and those of answers that were superseded."""
    places = (hashlib.blake2b(digest + bytes([i]), digest_size=len(digest)) for i in range(1, MOST_ANSWERS))
    return [digest, *(place.digest() for place in places)]


def superseding(journal: AbstractJournal, digest: bytes, response: Response) -> Superseded | None:
    """How an answer is superseded; `None` if there were as many answers to its question as there may be."""
    free = (place for place in all_digests(digest) if journal.get(place) is None)
    place = next(free, None)
    return None if place is None else Superseded(place, response)
