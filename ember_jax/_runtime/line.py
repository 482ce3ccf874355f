"""The calls that wait at a gate, in the order of their turns."""

import asyncio
import heapq
import math
from collections.abc import Callable

from .allowed import Sent


class TooLong(Exception):
    """A service holds a call back for longer than the call may wait.

    **Attributes:**

    - `seconds`: until the service lets calls through.
    - `by`: what holds it, in words.
    - `patience`: how many seconds it may wait.
    """

    def __init__(self, seconds: float, by: str, patience: float):
        super().__init__(seconds, by, patience)
        self.seconds, self.by, self.patience = seconds, by, patience


class Admission:
    """A call on its way through a gate.

    **Attributes:**

    - `turn`: its place in the queue: its priority, then the number of its arrival.
    - `cost`: the tokens that it is estimated to use.
    - `came`: when it came.
    - `patience`: for how many seconds a service may hold it back.
    - `refused`: tells why it is not to begin any more, or `None`.
    - `sent`: what is remembered of its admission.
    """

    __slots__ = ("came", "cost", "patience", "refused", "sent", "turn")

    def __init__(
        self,
        turn: tuple[float, int],
        cost: float,
        came: float,
        patience: float,
        refused: Callable[[], Exception | None] = lambda: None,
    ):
        self.turn = turn
        self.cost = cost
        self.came = came
        self.patience = patience
        self.refused = refused
        self.sent = _NOT_SENT


_NOT_SENT = Sent(-math.inf, 0, 0.0, (0.0, 0.0))


class Line:
    """The calls that wait at a gate, by their turns."""

    def __init__(self) -> None:
        # A heap, of calls and what is done when they may begin. A call that was cancelled or dismissed stays in it
        # until it comes to the top.
        self._heap: list[tuple[tuple[float, int], Admission, asyncio.Future[None]]] = []
        self.waiting = 0

    def join(self, admission: Admission, admitted: "asyncio.Future[None]") -> None:
        """A call waits from now on, until `admitted` is done."""
        heapq.heappush(self._heap, (admission.turn, admission, admitted))
        self.waiting += 1

    def first(self) -> Admission | None:
        """The call whose turn it is."""
        while self._heap and self._heap[0][2].done():
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def call(self) -> Admission:
        """Lets the call whose turn it is begin."""
        self.waiting -= 1
        _, admission, admitted = heapq.heappop(self._heap)
        admitted.set_result(None)
        return admission

    def seen(self) -> Admission | None:
        """A call that may be the first, without a change. From any thread."""
        first = self._heap[:1]
        return first[0][1] if first and self.waiting else None

    def dismiss(self, fault: Callable[[Admission], Exception | None]) -> None:
        """Ends the wait of those calls that have a fault."""
        for _, admission, admitted in self._heap:
            if not admitted.done() and (error := fault(admission)) is not None:
                admitted.set_exception(error)
                self.waiting -= 1
