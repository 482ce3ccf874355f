"""Notices samples that were meant to be independent and are not.

Without a key a call is "sample 0": equal calls without a key are one call. A program wants this for a question that it
asks in every epoch. It does not want it for five votes. So there is a warning, of the line of the program that asks,
when one lane asks for the same sample twice, and when all lanes of several ask for one and the same. That holds in
every mode:

- In a sweep of an operator `Repeats` watches all lanes.
- A call in a JAX program outside every operator is made for a batch of lanes, or for one; `of_batch` looks at it. Such
  a program has no lane that could be watched across its calls, so equal ones are told by their operands when they are
  traced (`asked_before`).
- Line by line a lane is a run of an operator (`one_lane`), or, outside operators, a line that asks again and again.
"""

import contextlib
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from .._jax import source
from .._jax.source import SourceLine
from ..errors import RepeatedSampleWarning
from . import failures

_FIX = (
    "Equal calls without a key are one sample, asked once. For independent samples split a key and pass it: "
    "`llm(prompt, key)`. If one sample is meant, pass equal calls one key, or set temperature=0."
)


class Repeated(NamedTuple):
    """Samples that are one and the same: what is to be told of them, and the line that asks for them."""

    words: str
    line: SourceLine | None

    def warn(self) -> None:
        """Warns; where the user makes warnings errors, raises what may go through JAX and keep its type."""
        try:
            source.warn(self.words, RepeatedSampleWarning, self.line)
        except RepeatedSampleWarning as error:
            raise failures.raised(error) from None


class PlanCall(Protocol):
    """A call of a plan: where it stands, for how many equal ones and for how many lanes it is made."""

    @property
    def scope(self) -> str: ...
    @property
    def asked(self) -> int: ...
    @property
    def lanes(self) -> int: ...
    @property
    def warns(self) -> bool: ...
    @property
    def line(self) -> SourceLine | None: ...


class Repeats:
    """The samples without a key that a sweep has drawn. Used from the event loop.

    **Arguments:**

    - `operator`: what is run, named in warnings where a call stands in no operator of its own.
    """

    def __init__(self, operator: str):
        self._operator = operator
        # By lane that has not ended: the digests of its requests.
        self._by_lane: dict[Any, set[bytes]] = {}
        # By call of the plan: the digest of its requests, or `None` if they differ; and how often it was made. That is
        # once for each lane, or there are two equal ones in a lane, and `_twice` is warned of before this.
        self._by_call: dict[PlanCall, tuple[bytes | None, int]] = {}
        # What asked for the same sample twice in a lane.
        self._twice: PlanCall | None = None
        # What the plan itself makes once for several lanes.
        self._everywhere: PlanCall | None = None

    def saw(self, lane: Any, step: PlanCall, digest: bytes) -> None:
        """Notes that a lane made a call without a key that draws a sample, and the digest of its request."""
        if not step.warns:
            return
        seen = self._by_lane.setdefault(lane, set())
        if (digest in seen or step.asked > 1) and self._twice is None:
            self._twice = step
        if step.lanes > 1 and self._everywhere is None:
            self._everywhere = step
        seen.add(digest)
        first, calls = self._by_call.get(step, (digest, 0))
        self._by_call[step] = digest if digest == first else None, calls + 1

    def ended(self, lane: Any) -> None:
        """Forgets a lane that makes no further call."""
        self._by_lane.pop(lane, None)

    def found(self, lanes: int) -> Repeated | None:
        """What to warn of, if anything, after a sweep of so many lanes."""
        if self._twice is not None:
            return _twice(self._name(self._twice), self._twice.line)
        if self._everywhere is not None:
            return _everywhere(self._name(self._everywhere), self._everywhere.lanes, self._everywhere.line)
        for step, (digest, calls) in self._by_call.items():
            if lanes > 1 and calls == lanes and digest is not None:
                return _everywhere(self._name(step), lanes, step.line)
        return None

    def _name(self, step: PlanCall) -> str:
        return step.scope or self._operator


def _twice(name: str, line: SourceLine | None) -> Repeated:
    return Repeated(f"{name} asks the same sample more than once in one lane. {_FIX}", line)


def _everywhere(name: str, lanes: int, line: SourceLine | None) -> Repeated:
    return Repeated(f"{name} asks one and the same sample in all {lanes} lanes. {_FIX}", line)


# -- calls outside every operator ------------------------------------------------------------------------------------


def of_batch(name: str, line: SourceLine | None, digests: Sequence[bytes], asked_before: bool) -> Repeated | None:
    """What to warn of when a call of a JAX program has drawn samples without a key: one for each lane of its batch."""
    if digests and asked_before:
        return _twice(name, line)
    if len(digests) > 1 and len(set(digests)) == 1:
        return _everywhere(name, len(digests), line)
    return None


class _ThisThread(threading.local):
    """What a thread has asked last.

    **Attributes:**

    - `traced`: of the call that was traced last, its line and what it calls, and its operands, weakly.
    - `drawn`: of the sample that was drawn last, line by line: in which session, by which line, and its digest.
    - `lane`: in a run of an operator line by line, the digests of what it has drawn; else `None`.
    """

    traced: tuple[Any, tuple[weakref.ref[Any], ...]] = (None, ())
    drawn: tuple[weakref.ref[Any] | None, SourceLine | None, bytes] = (None, None, b"")
    lane: set[bytes] | None = None


_this_thread = _ThisThread()


def asked_before(line: SourceLine | None, call: Any, operands: Sequence[Any]) -> bool:
    """Whether the call that this thread has traced just before is the same, on the same operands: a sample once more.

    That is so in `ember.stack([llm(q) for _ in range(5)])`, and in no other program on the same values.
    """
    before, known = _this_thread.traced
    _this_thread.traced = (line, call), tuple(map(weakref.ref, operands))
    return before == (line, call) and all(a is b() for a, b in zip(operands, known, strict=True))


@contextlib.contextmanager
def one_lane() -> Iterator[None]:
    """A run of an operator line by line; of operators in one another, the outermost is the lane."""
    if _this_thread.lane is not None:
        yield
        return
    _this_thread.lane = set()
    try:
        yield
    finally:
        _this_thread.lane = None


def of_line(name: str, session: object, digest: bytes) -> Repeated | None:
    """What to warn of when the line that runs has drawn a sample without a key."""
    line, lane = source.of_caller(), _this_thread.lane
    of, before, last = _this_thread.drawn
    _this_thread.drawn = weakref.ref(session), line, digest
    if lane is not None:
        is_again = digest in lane
        lane.add(digest)
        return _twice(name, line) if is_again else None
    if of is not None and of() is session and (before, last) == (line, digest):
        return Repeated(f"{name} asks the same sample twice in a row. {_FIX}", line)
    return None
