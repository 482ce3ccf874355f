"""What a session remembers of its calls, so that each can be looked at afterwards.

Design note. A call is noted when it has ended, on the event loop, so noting it has to be cheap, in time and in memory:
what is special to a call is packed into bytes, words are told by their digests and lie in the text store (most do
anyway: a prompt is what a lane's Text stands for), and what many calls share (operators, model, parameters) is there
once. That is about 300 bytes for a call, and 4 us; packed rows hold no objects for the garbage collector to walk over.
A log that held the requests and responses themselves would take two to three kilobytes. Beyond a bound the oldest calls
are dropped, and the `Calls` that are found say how many.
"""

import functools
import operator
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .._errors import TextError
from .._providers.base import Message
from .._text import store
from .events import CallEnded
from .journal.calls import Answer, Calls, LaneIndex, answer_digests, lane_index
from .journal.columns import COLUMNS, CallRecord, Tried

# Calls that are remembered: 80 MB of them at most.
MOST = 1 << 18
# Kinds of calls that are looked for when there is another one of them: a sweep has few.
_MOST_KINDS = 4096

# What is noted of an answer besides its words: fields of `CallRecord`, and the fields of `Response` that they are read
# from.
_LOGGED = {column.name: column.source.removeprefix("response.") for column in COLUMNS if column.is_logged}
_facts_of = operator.attrgetter(*_LOGGED.values())

_LogRow = tuple[bytes, bytes]


class Log:
    """The calls of a session, the last `most` of them."""

    def __init__(self, most: int = MOST):
        self._rows: deque[_LogRow] = deque(maxlen=most)
        self._kinds: dict[bytes, bytes] = {}
        self._noted = 0

    def note(self, ended: CallEnded) -> None:
        """Remembers a call."""
        request, response = ended.request, ended.response
        roles = [message.role for message in request.messages]
        kind = _pack((ended.scope, request.provider, request.model, dict(request.parameters), roles))
        if len(self._kinds) >= _MOST_KINDS:
            self._kinds.clear()  # rows hold their kinds themselves; later ones share new copies
        kind = self._kinds.setdefault(kind, kind)
        words = [_put(message.content) for message in request.messages]
        facts = None
        if response is not None:
            words.append(_put(response.text))
            facts = _facts_of(response)
        row = (
            ended.digest,
            ended.lane,
            ended.how,
            ended.began,
            ended.ended,
            ended.stands_for,
            request.sample,
            b"".join(words),
            facts,
            _told(ended.error),
            [(a.began, a.ended, _told(a.error)) for a in ended.attempts],
        )
        self._rows.append((kind, _pack(row)))
        self._noted += 1

    def calls(
        self,
        lane: LaneIndex | None = None,
        op: str | None = None,
        answer: Answer | None = None,
        failed: bool | None = None,
    ) -> Calls:
        """The calls that all that is given is true of."""
        # `_noted` is read before the rows, as calls may end meanwhile: `note` adds a row before it counts it, so no row
        # that is there is taken for one that was dropped.
        noted = self._noted
        rows = list(self._rows)
        dropped = max(0, noted - len(rows))
        at = () if lane is None else lane_index(lane)
        answers = None if answer is None else answer_digests(answer)
        named = {kind for kind in {kind for kind, _ in rows} if op is None or _stands_in(op, _unpack(kind)[0])}

        found: list[tuple[bytes, _LogRow]] = []
        for row in rows:
            if row[0] in named:
                digest, index, how, *_, words, facts, _, _ = _unpack(row[1])
                is_there = all(i == j for i, j in zip(at, index, strict=False))
                is_said = answers is None or (facts is not None and words[-store.DIGEST_BYTES :] in answers)
                if is_there and is_said and failed in (None, how == "failed"):
                    found.append((digest, row))
        note = f"{dropped:,} earlier calls of the session are no longer remembered" if dropped else ""
        return Calls(found, _read, note)


def _stands_in(op: str, scope: str) -> bool:
    return f"/{op}/" in f"/{scope}/"


def _pack(values: tuple[Any, ...]) -> bytes:
    try:
        return _msgpack()[0](values)
    except (TypeError, ValueError, OverflowError):  # MessagePack has no large integers and no lone surrogates
        return pickle.dumps(values)


def _unpack(raw: bytes) -> Any:
    # The first byte tells a pickle from an array of MessagePack.
    return pickle.loads(raw) if raw[0] == pickle.PROTO[0] else _msgpack()[1](raw)


@functools.cache
def _msgpack() -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    # Imported at the first call: `import ember_jax` is to load little.
    import msgspec

    return msgspec.msgpack.Encoder().encode, msgspec.msgpack.decode


def _put(words: str) -> bytes:
    try:
        return store.put(words)
    except TextError:  # words of a service that are no Unicode; a Text cannot hold them
        return store.put(_unicode(words))


def _told(error: BaseException | None) -> bytes:
    return b"" if error is None else store.put(_unicode(f"{type(error).__name__}: {error}"))


def _unicode(words: str) -> str:
    return words.encode("utf-8", "replace").decode()


def _words(digest: bytes) -> str:
    return store.get(digest) if digest else ""


def _read(rows: Sequence[_LogRow]) -> Iterator[CallRecord]:
    for kind, row in rows:
        yield _call(_unpack(kind), _unpack(row))


def _call(kind: Any, row: Any) -> CallRecord:
    scope, provider, model, parameters, roles = kind
    digest, lane, how, began, ended, stands_for, sample, words, facts, error, tried = row
    size = store.DIGEST_BYTES
    texts = [store.get(words[i : i + size]) for i in range(0, len(words), size)]
    known: dict[str, Any] = {} if facts is None else dict(zip(_LOGGED, facts, strict=True))
    return CallRecord(
        digest=digest,
        model=f"{provider}/{model}",
        messages=tuple(Message(role, content) for role, content in zip(roles, texts, strict=False)),
        parameters=parameters,
        sample=sample,
        answer=None if facts is None else texts[-1],
        how=how,
        error=_words(error),
        lane=tuple(lane),
        scope=scope,
        stands_for=stands_for,
        attempts=len(tried),
        tried=tuple(Tried(b, e, _words(why)) for b, e, why in tried),
        began=began,
        ended=ended,
        **known,
    )
