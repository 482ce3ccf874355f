"""What a session tells those who watch it: how each call went, once, when it has ended."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

from ..errors import ProviderError
from ..providers.base import Request, Response, Tokens

Ending = Literal["answered", "replayed", "merged", "failed"]


class Attempt(NamedTuple):
    """One request that was sent: when it began and ended, in seconds since 1970, and its error if it failed."""

    began: float
    ended: float
    error: ProviderError | None = None


class CallEnded(NamedTuple):
    """One call that a lane has asked for, with its answer or its error.

    **Fields:**

    - `digest`: the digest of what was asked; equal for equal calls.
    - `request`: what was asked.
    - `lane`, `scope`: the lane and the operators that asked, outermost first.
    - `how`: `answered` by a service, `replayed` by the journal, `merged` with an equal call in flight, or `failed`.
        It is `failed` only if there is no answer: one that is of no use came from somewhere.
    - `began`, `ended`: when the lane asked, and when it had its answer or error, in seconds since 1970.
    - `response`: the answer, or `None` if there is none.
    - `error`: why the call failed, or `None`.
    - `attempts`: the requests that were sent for this call. There are none if the journal answered it, or if it shared
        the requests of an equal call.
    - `stands_for`: how many equal calls of the program a plan has made into this one.
    """

    digest: bytes
    request: Request
    lane: tuple[int, ...]
    scope: str
    how: Ending
    began: float
    ended: float
    response: Response | None
    error: BaseException | None
    attempts: Sequence[Attempt]
    stands_for: int


class Meter(Protocol):
    """Counts what calls use."""

    def add(self, response: Response) -> None:
        """Counts an answer."""

    def bill(self, tokens: Tokens, cost: float) -> None:
        """Counts what was billed for a request that gave no answer; the cost is in US dollars."""


Watcher = Callable[[CallEnded], None]
