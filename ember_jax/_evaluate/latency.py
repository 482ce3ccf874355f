"""How long the calls of a row took, from the first that was asked for to the last that was answered."""

import dataclasses
import math
from types import TracebackType
from typing import Self

import numpy as np

from .._runtime.events import CallEnded
from .._runtime.session import Session


@dataclasses.dataclass
class _Elapsed:
    """When a row's calls began and ended, and what was asked; `whole` if no answer was there before."""

    began: float = math.inf
    ended: float = -math.inf
    whole: bool = True
    asked: set[bytes] = dataclasses.field(default_factory=set)


class Spans:
    """Watches a session's calls that stand in a scope, while the context lasts.

    A call that the journal answers takes no time, so a row with one has no latency; unless the row itself asked for it
    before.
    """

    def __init__(self, session: Session, scope: str):
        self._session = session
        self._scope = f"{scope}/"
        self._spans: dict[tuple[str, int], _Elapsed] = {}

    def __enter__(self) -> Self:
        self._session.watchers = [*self._session.watchers, self.saw]  # another list: the loop may be going through it
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._session.watchers = [watch for watch in self._session.watchers if watch != self.saw]

    def saw(self, call: CallEnded) -> None:
        """Takes note of a call; on the event loop."""
        if not call.lane or not call.scope.startswith(self._scope):
            return
        part = call.scope[len(self._scope) :].partition("/")[0]
        span = self._spans.setdefault((part, call.lane[0]), _Elapsed())
        span.began, span.ended = min(span.began, call.began), max(span.ended, call.ended)
        if call.how == "replayed":
            span.whole &= call.digest in span.asked
        span.asked.add(call.digest)

    def seconds(self, part: str, rows: int) -> np.ndarray:
        """`float64[rows]` of a part of the scope; NaN for a row without calls, or with answers from before."""
        spans = [self._spans.get((part, row), _Elapsed(whole=False)) for row in range(rows)]
        return np.array([span.ended - span.began if span.whole else math.nan for span in spans])
