"""What a session tells those who watch it: how each call went, once, when it has ended."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

from .._errors import ProviderError
from .._providers.base import Request, Response, Tokens

How = Literal["answered", "replayed", "merged", "failed"]


class Attempt(NamedTuple):
    """One request that was sent, from when to when, in seconds since 1970; and what came instead of an answer."""

    began: float
    ended: float
    error: ProviderError | None = None


class CallEnded(NamedTuple):
    """One call that a lane has asked for and got an answer to, or an error.

    **Fields:**

    - `digest`: of what was asked; equal for equal calls.
    - `request`: what was asked.
    - `lane`, `scope`: who has asked, outermost first.
    - `how`: `answered` by a service, `replayed` by the journal, `merged` with an equal call in flight, or `failed`.
    - `began`, `ended`: when it was asked for and when that was, in seconds since 1970.
    - `response`: the answer, or `None` if it failed.
    - `error`: why it failed, or `None`.
    - `attempts`: the requests that were sent for it; none if an equal call's were.
    - `stands_for`: of how many equal calls of the program it was made as one.
    """

    digest: bytes
    request: Request
    lane: tuple[int, ...]
    scope: str
    how: How
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
