"""Calls as a user looks at them afterwards: what was asked, by whom, how it went, what was answered.

A search in a session's log or in a journal's file finds calls without reading them. Each call is read from there when
the user looks at it, as a file may hold millions, with their prompts.
"""

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, SupportsIndex, TypeAlias, overload

import numpy as np

from ..._text import store
from .base import all_digests
from .columns import EXPORTED, CallRecord


class _HasDigests(Protocol):
    """What is needed of a Text. Its class is not imported: a process that only reads a journal does without JAX."""

    digests: Any


LaneIndex: TypeAlias = SupportsIndex | Iterable[SupportsIndex]
Answer: TypeAlias = str | _HasDigests


class Calls(Sequence[CallRecord]):
    """Calls that were found, in the order in which they ended; each is read when it is looked at.

    ```python
    run.calls(answer=answers[3]).show()
    run.calls(op="Judge", failed=True).to_pandas()
    run.forget(run.calls(lane=3))
    ```

    An index gives a `CallRecord`, a slice `Calls`. `str` is what `show` prints; `repr` holds no prompt and no answer.

    **Arguments:**

    - `found`: for each call its digest, and a key by which `read` finds it: an id in a file, or a log's row.
    - `read`: gives the calls of some keys.
    - `note`: is printed below the calls: that some of a session's are no longer there.
    """

    def __init__(
        self, found: Sequence[tuple[bytes, Any]], read: Callable[[Sequence[Any]], Iterator[CallRecord]], note: str = ""
    ):
        self._found = found
        self._read = read
        self._note = note

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[CallRecord]:
        return self._read([key for _, key in self._found])

    @overload
    def __getitem__(self, index: int) -> CallRecord: ...
    @overload
    def __getitem__(self, index: slice) -> "Calls": ...
    def __getitem__(self, index: int | slice) -> "CallRecord | Calls":
        if isinstance(index, slice):
            return Calls(self._found[index], self._read, self._note)
        _, key = self._found[index]
        for call in self._read([key]):
            return call
        raise IndexError("this call was deleted from the journal after it was found.")

    def digests(self) -> list[bytes]:
        """The digest of what each call asked, in order."""
        return [digest for digest, _ in self._found]

    # What is found is a row of this process's log or of a file, which another process does not have.
    def __reduce__(self) -> tuple[Any, ...]:
        return Calls, ([(call.digest, call) for call in self], iter, self._note)

    def __repr__(self) -> str:
        few = self if len(self) <= _COUNTED else ()
        counts = Counter(call.how for call in few) + Counter(call.model for call in few)
        told = "".join(f", {count:,} {name}" for name, count in counts.items())
        return f"<Calls: {len(self):,}{told}{f'; {self._note}' if self._note else ''}>"

    def __str__(self) -> str:
        return self._words(_SHOWN)

    def show(self, most: int = 10) -> None:
        """Prints the calls in full, the first `most` of them: who asked, what was asked, how it went, the answer."""
        print(self._words(most))  # noqa: T201  (what it is for)

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with one row for each call."""
        import pandas  # an optional package, which takes a second

        return pandas.DataFrame([call.row() | {"lane": call.lane} for call in self], columns=[*EXPORTED])

    def _words(self, most: int) -> str:
        blocks = [f"call {i} of {len(self):,}\n{call}" for i, call in enumerate(self[:most], 1)]
        left = len(self) - len(blocks)
        blocks += [f"{left:,} more: show({len(self)})"] if left > 0 else []
        return "\n\n".join([*(blocks or ["no calls"]), *([self._note] if self._note else [])])


# How many calls `str` prints, as `show` does by default; and up to how many a `repr` reads to count their kinds, which
# takes 20 us for each.
_SHOWN = 10
_COUNTED = 1000


def digests(calls: CallRecord | Iterable[CallRecord]) -> list[bytes]:
    """The digests that answers of some calls are kept under, each once, for those who are told to `forget` them.

    **Raises:** `TypeError` for what is no call.
    """
    if isinstance(calls, Calls):
        return _all(calls.digests())
    found = [calls] if isinstance(calls, CallRecord) else list(calls)
    for call in found:
        if not isinstance(call, CallRecord):
            raise TypeError(f"forget(calls) takes what `calls(…)` gives, or some of it, not {type(call).__name__}.")
    return _all(call.digest for call in found)


def _all(digests: Iterable[bytes]) -> list[bytes]:
    return list(dict.fromkeys(place for digest in digests for place in all_digests(digest)))


# -- what calls are looked for by ------------------------------------------------------------------------------------


def lane_index(lane: LaneIndex) -> tuple[int, ...]:
    """A lane as a tuple, the outermost `vmap` first.

    **Raises:** `TypeError` for what is no whole number, nor a sequence of them.
    """
    try:
        return tuple(map(operator.index, lane if isinstance(lane, Iterable) else (lane,)))
    except TypeError:
        raise TypeError(f"calls(lane={lane!r}) takes a lane's index: 3, or (3, 7), the outermost vmap first.") from None


def answer_digests(answer: Answer) -> set[bytes]:
    """The digests by which the text store knows the words of an answer; of a Text, those of all its strings.

    **Raises:** `TypeError` for what is neither a `str` nor a Text.
    """
    if isinstance(answer, str):
        return {store.digest_of(answer)}
    try:
        raw = np.ascontiguousarray(answer.digests, np.uint32).tobytes()
    except AttributeError:
        raise TypeError(f"calls(answer=…) takes a str or a Text, not {type(answer).__name__}.") from None
    return {raw[i : i + store.DIGEST_BYTES] for i in range(0, len(raw), store.DIGEST_BYTES)}
