"""What a session remembers of its calls, so that each can be looked at afterwards.

Design note. A call is noted when it has ended, on the event loop, so noting it has to be cheap in time and memory. A
call takes about 300 bytes and 4 us:

- What differs from call to call is packed into one `bytes` object. The garbage collector does not walk over it.
- Words are stored as digests, and lie in the text store. Most lie there anyway, as a prompt is what a lane's Text
  stands for.
- What many calls share (scope, model, parameters, roles), a call's *kind*, is packed once.

The alternative, a log that holds the requests and responses themselves, would take two to three kilobytes for a call.
Beyond a bound the oldest calls are dropped, and the `Calls` that a search returns say how many were.
"""

import functools
import operator
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .._text import store
from ..errors import TextError, told
from ..providers.base import Message
from .events import CallEnded
from .journal.calls import Answer, Calls, LaneIndex, answer_digests, lane_index
from .journal.columns import COLUMNS, CallRecord, Tried

# How many calls are remembered. At 300 bytes a call, they take 80 MB at most.
MOST = 1 << 18
# How many kinds are kept to share between calls. A sweep has few; a program that makes ever new ones (a parameter that
# differs in every call) must not fill the memory.
_MOST_KINDS = 4096

# What is noted of an answer besides its words: by the name of the field of `CallRecord`, the field of `Response` that
# it is read from.
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
        """Remembers a call. Called on the event loop."""
        request, response = ended.request, ended.response
        roles = [message.role for message in request.messages]
        kind = _pack((ended.scope, request.provider, request.model, dict(request.parameters), roles))
        if len(self._kinds) >= _MOST_KINDS:
            self._kinds.clear()  # rows that are there keep their own reference; later rows share new copies
        kind = self._kinds.setdefault(kind, kind)
        words = [_put(message.words) for message in request.messages]
        facts = None
        if response is not None:
            words.append(_put(response.text))
            facts = _facts_of(response)
        row = (
            ended.digest,
            ended.lane,
            "failed" if ended.error is not None else ended.how,  # an answer that is of no use came all the same
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
        """The calls that match all arguments that are not `None`, in the order in which they ended. From any thread.

        **Raises:** `TypeError` for a lane or an answer that is none.
        """
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
    except (TypeError, ValueError, OverflowError):
        # MessagePack has no integers beyond 64 bits and no lone surrogates, and a request may have either. Pickle has
        # both, but takes longer and more bytes, so it is the fallback and not the rule.
        return pickle.dumps(values)


def _unpack(raw: bytes) -> Any:
    # The first byte tells which it is: a pickle begins with its `PROTO` opcode, 0x80, and an array of MessagePack never
    # does.
    return pickle.loads(raw) if raw[0] == pickle.PROTO[0] else _msgpack()[1](raw)


@functools.cache
def _msgpack() -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    # Imported at the first call: `import ember_jax` is to load little.
    import msgspec

    return msgspec.msgpack.Encoder().encode, msgspec.msgpack.decode


def _put(words: str) -> bytes:
    try:
        return store.put(words)
    except TextError:
        # The text store holds valid Unicode only, and a service may answer with half of a surrogate pair. The log then
        # shows a `?` in its place; it must not fail the call.
        return store.put(_unicode(words))


def _told(error: BaseException | None) -> bytes:
    return b"" if error is None else store.put(_unicode(told(error)))


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
        messages=tuple(Message.kept(role, content) for role, content in zip(roles, texts, strict=False)),
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
