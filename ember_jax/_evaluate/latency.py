"""How long the calls of a row took, from the first that was asked for to the last that was answered."""

import dataclasses
import math
from types import TracebackType
from typing import Self

import numpy as np

from .._runtime.events import CallEnded
from .._runtime.session import Session


@dataclasses.dataclass
class _Span:
    """When a row's first call began and its last one ended, in seconds since 1970.

    `asked` are the digests of its calls. `whole` says that no answer was in the journal before the row asked for it.
    """

    began: float = math.inf
    ended: float = -math.inf
    whole: bool = True
    asked: set[bytes] = dataclasses.field(default_factory=set)


class Spans:
    """While its context lasts, watches the calls of a session that stand in a scope.

    A call that the journal answers takes no time. A row with such a call has no latency, as its time would be too
    short; unless the row itself asked for the same before, as it then took its time within the row.
    """

    def __init__(self, session: Session, scope: str):
        self._session = session
        self._scope = f"{scope}/"
        self._spans: dict[tuple[str, int], _Span] = {}

    def __enter__(self) -> Self:
        # The list is replaced and not changed, as the event loop may be going through it.
        self._session.watchers = [*self._session.watchers, self.saw]
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._session.watchers = [watch for watch in self._session.watchers if watch != self.saw]

    def saw(self, call: CallEnded) -> None:
        """Takes note of a call that has ended. Called on the event loop."""
        if not call.lane or not call.scope.startswith(self._scope):
            return
        part = call.scope[len(self._scope) :].partition("/")[0]
        span = self._spans.setdefault((part, call.lane[0]), _Span())
        span.began, span.ended = min(span.began, call.began), max(span.ended, call.ended)
        if call.how == "replayed":
            span.whole &= call.digest in span.asked
        span.asked.add(call.digest)

    def seconds(self, part: str, rows: int) -> np.ndarray:
        """The seconds of each row in a part of the scope, as `float64[rows]`.

        NaN for a row without calls, and for one with an answer that was in the journal before.
        """
        spans = [self._spans.get((part, row), _Span(whole=False)) for row in range(rows)]
        return np.array([span.ended - span.began if span.whole else math.nan for span in spans])
