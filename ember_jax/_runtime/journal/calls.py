"""Calls as a user looks at them afterwards: what was asked, by whom, how it went, what was answered.

They are found in a session's log or in a journal's file, and read from there when they are looked at.
"""

import dataclasses
import datetime
import json
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, SupportsIndex, TypeAlias, overload

import numpy as np

from ..._providers.base import Message
from ..._text import store


class _Text(Protocol):
    """What is needed of a Text: a process that only reads a journal does without JAX."""

    digests: Any


Lane: TypeAlias = SupportsIndex | Iterable[SupportsIndex]
Answer: TypeAlias = str | _Text


class Tried(NamedTuple):
    """One request that was sent for a call, from when to when, in seconds since 1970; and the error, if it failed."""

    began: float
    ended: float
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Call:
    """One call that was asked for.

    **Fields:**

    - `digest`: of what was asked; equal for equal calls.
    - `model`: as `provider/model`.
    - `messages`, `parameters`: what was asked; `sample` is the key's bits in hex, `None` without a key.
    - `answer`: what the model said, whole, or `None` if the call failed.
    - `how`: `answered` by a service, `replayed` by the journal, `merged` with an equal call in flight, or `failed`.
    - `error`: why it failed; empty if it did not.
    - `lane`: who has asked, the outermost `vmap` first; of a call that was made once for many lanes what they share.
    - `scope`: the operators it stands in, outermost first, joined by `/`.
    - `stands_for`: of how many equal calls of the program it was made as one.
    - `attempts`: how many requests were sent for it, and `tried` those that are known one by one.
    - `began`, `ended`: in seconds since 1970: when it was asked for and when that was; of a journal's file, when its
        first request was sent and when the answer came.
    - `input_tokens`, `output_tokens`, `cost`, `logprob`, `alternatives`: as in a `Response`; the last is known of a
        journal's file alone.
    - `answered_by`, `request_id`: the model and the request by the provider's own names.
    - `endpoint`: where it was asked, if a journal's file says so.
    """

    digest: bytes
    model: str
    messages: tuple[Message, ...]
    parameters: Mapping[str, Any]
    sample: str | None
    answer: str | None
    how: str
    error: str = ""
    lane: tuple[int, ...] = ()
    scope: str = ""
    stands_for: int = 1
    attempts: int = 0
    tried: tuple[Tried, ...] = ()
    began: float = math.nan
    ended: float = math.nan
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = math.nan
    logprob: float = math.nan
    alternatives: tuple[tuple[str, float], ...] = ()
    answered_by: str = ""
    request_id: str = ""
    endpoint: str = ""

    def __repr__(self) -> str:
        where = ", ".join(filter(None, (self.scope, f"lane {list(self.lane)}" if self.lane else "")))
        return f"<Call {self.digest.hex()[:12]}: {f'{where}: ' if where else ''}{self.model}, {self.how}>"

    def __str__(self) -> str:
        lines = [f"{name.replace('_', ' '):<13} {value}" for name, value in self._facts() if value]
        lines += [f"{f'attempt {i}':<13} {_tried(tried)}" for i, tried in enumerate(self.tried, 1)]
        turns = [(m.role, m.content) for m in self.messages]
        turns += [("answer", self.answer)] if self.answer is not None else []
        return "\n".join([*lines, *(f"\n-- {role}\n{words}" for role, words in turns)])

    def _facts(self) -> Iterator[tuple[str, str]]:
        """What is said of a call in a line each; empty if there is nothing to say."""
        yield "scope", self.scope
        yield "lane", str(list(self.lane)) if self.lane else ""
        yield "digest", self.digest.hex()
        yield "model", self.model
        yield "endpoint", self.endpoint
        yield "parameters", json.dumps(dict(self.parameters)) if self.parameters else ""
        yield "sample", self.sample or ""
        yield "outcome", self.how + (f", for {self.stands_for:,} equal calls" if self.stands_for > 1 else "")
        yield "error", self.error
        yield "began", moment(self.began)
        yield "ended", f"{moment(self.ended)}, after {self.ended - self.began:.3f} s"
        yield "attempts", str(self.attempts) if self.attempts else ""
        yield "tokens", f"{self.input_tokens:,} + {self.output_tokens:,}" if self.answer is not None else ""
        yield "cost", "" if math.isnan(self.cost) else f"${self.cost:.6f}"
        yield "logprob", "" if math.isnan(self.logprob) else f"{self.logprob:.4f}"
        yield "answered by", self.answered_by
        yield "request id", self.request_id

    def row(self) -> dict[str, Any]:
        """The call as plain values, those of JSON."""
        return {
            "lane": list(self.lane),
            "scope": self.scope,
            "digest": self.digest.hex(),
            "model": self.model,
            "endpoint": self.endpoint,
            "messages": [m._asdict() for m in self.messages],
            "parameters": dict(self.parameters),
            "sample": self.sample,
            "answer": self.answer,
            "how": self.how,
            "error": self.error,
            "answered_by": self.answered_by,
            "request_id": self.request_id,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost_usd": None if math.isnan(self.cost) else self.cost,
            "logprob": None if math.isnan(self.logprob) else self.logprob,
            "alternatives": [list(pair) for pair in self.alternatives],
            "began": self.began,
            "ended": self.ended,
            "attempts": self.attempts,
            "stands_for": self.stands_for,
        }


def _tried(tried: Tried) -> str:
    return f"{tried.ended - tried.began:.3f} s{f', {tried.error}' if tried.error else ''}"


def moment(seconds: float) -> str:
    """Seconds since 1970 as local date and time."""
    if math.isnan(seconds):
        return "never"
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


class Calls(Sequence[Call]):
    """Calls that were found, in the order in which they ended; each is read when it is looked at.

    ```python
    run.calls(answer=answers[3]).show()
    run.calls(op="Judge", failed=True).to_pandas()
    run.forget(run.calls(lane=3))
    ```

    An index gives a `Call`, a slice `Calls`. `str` is what `show` prints; `repr` holds no prompt and no answer.

    **Arguments:**

    - `found`: the digest of each call, and what `read` knows it by.
    - `read`: gives calls.
    - `note`: what whoever looks at them should know.
    """

    def __init__(
        self, found: Sequence[tuple[bytes, Any]], read: Callable[[Sequence[Any]], Iterator[Call]], note: str = ""
    ):
        self._found = found
        self._read = read
        self._note = note

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Call]:
        return self._read([key for _, key in self._found])

    @overload
    def __getitem__(self, index: int) -> Call: ...
    @overload
    def __getitem__(self, index: slice) -> "Calls": ...
    def __getitem__(self, index: int | slice) -> "Call | Calls":
        if isinstance(index, slice):
            return Calls(self._found[index], self._read, self._note)
        _, key = self._found[index]
        for call in self._read([key]):
            return call
        raise IndexError("this call was deleted from the journal after it was found.")

    def digests(self) -> list[bytes]:
        """What was asked."""
        return [digest for digest, _ in self._found]

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

        columns = [*Call(b"", "", (), {}, None, None, "").row()]
        return pandas.DataFrame([call.row() | {"lane": call.lane} for call in self], columns=columns)

    def _words(self, most: int) -> str:
        blocks = [f"call {i} of {len(self):,}\n{call}" for i, call in enumerate(self[:most], 1)]
        left = len(self) - len(blocks)
        blocks += [f"{left:,} more: show({len(self)})"] if left > 0 else []
        return "\n\n".join([*(blocks or ["no calls"]), *([self._note] if self._note else [])])


# How many calls `str` tells, as `show` does; and how many a `repr` reads, which takes 20 us for each.
_SHOWN = 10
_COUNTED = 1000


def digests(calls: Call | Iterable[Call]) -> list[bytes]:
    """What was asked by some calls, each once, for those who `forget` it.

    **Raises:** `TypeError` for what is no call.
    """
    if isinstance(calls, Calls):
        return list(dict.fromkeys(calls.digests()))
    found = [calls] if isinstance(calls, Call) else list(calls)
    for call in found:
        if not isinstance(call, Call):
            raise TypeError(f"forget(calls) takes what `calls(…)` gives, or some of it, not {type(call).__name__}.")
    return list(dict.fromkeys(call.digest for call in found))


# -- what calls are looked for by ------------------------------------------------------------------------------------


def lane_index(lane: Lane) -> tuple[int, ...]:
    """A lane as a tuple, the outermost `vmap` first.

    **Raises:** `TypeError` for what is no whole number, nor a sequence of them.
    """
    try:
        return tuple(map(operator.index, lane if isinstance(lane, Iterable) else (lane,)))
    except TypeError:
        raise TypeError(f"calls(lane={lane!r}) takes a lane's index: 3, or (3, 7), the outermost vmap first.") from None


def answer_digests(answer: Answer) -> set[bytes]:
    """The digests of words, in the text store's sense.

    **Raises:** `TypeError` for what is neither a `str` nor a Text.
    """
    if isinstance(answer, str):
        return {store.digest_of(answer)}
    try:
        raw = np.ascontiguousarray(answer.digests, np.uint32).tobytes()
    except AttributeError:
        raise TypeError(f"calls(answer=…) takes a str or a Text, not {type(answer).__name__}.") from None
    return {raw[i : i + store.DIGEST_BYTES] for i in range(0, len(raw), store.DIGEST_BYTES)}
