"""What is kept of a call: the one table of columns, and the `CallRecord` that users look at.

Design note. All that knows the columns of a call is made from `COLUMNS`, once, at import: the table in the file
(`tables`), the statement and the values that write a row (`writer`), what a replay reads (`reader`), what a
`CallRecord` is read from (`queries`), its export and its lines (here), and what a session's log notes of an answer
(`call_log`). So a new column is a line in `COLUMNS` and a field of `CallRecord`, and one of `Response` if the provider
tells it.

`CallRecord` stands in this file so that the two edits are beside each other. Its fields could be made from the table
too, but then neither an editor nor a type checker would know them.
"""

import dataclasses
import datetime
import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ..._text.store import digest_of
from ..._text.turns import Part
from ...providers.base import EMBED, Finish, Message
from ...providers.vectors import shown

# The version of the tables, which the file's header names: one more for a change of `COLUMNS`, or of another table.
# Files of an earlier version, down to the oldest that is read, get the columns that they lack when they are opened.
VERSION = 5
OLDEST = 2


# -- the columns -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Column:
    """One thing that is kept of a call.

    **Fields:**

    - `name`: the column's name. It is also that of the field of `CallRecord` that the column is read into.
    - `type`: its type in SQL.
    - `source`: where an `Entry` has the value: attributes, joined by dots. What the `response` has is read back into
        the response of a replay. Empty for the digest of what was asked, which is given beside the entry.
    - `write`, `read`: make what SQLite stores of the value, and the value of what SQLite has stored. `None` if both are
        the same.
    - `is_read`: whether a `CallRecord` and a replay have it. If not, it serves conditions and checks alone.
    - `select`: the SQL expression that `CallRecord` has it from, if that is not the column alone.
    - `is_logged`: whether a session's log notes it too, from the response. It is for what is short.
    - `exported`: its name in an export, if that is another one.
    - `export`: makes a value of JSON from the field of `CallRecord`. `None` if it is one.
    - `label`: if not empty, the printed call has a line of its own for it, which begins with these words.
    - `since`: the first version of the file that has it.
    - `default`: what it is, in SQL, of the calls of a file that was made before. A later column needs one.
    """

    name: str
    type: str
    source: str
    write: Callable[[Any], Any] | None = None
    read: Callable[[Any], Any] | None = None
    is_read: bool = True
    select: str = ""
    is_logged: bool = False
    exported: str = ""
    export: Callable[[Any], Any] | None = None
    label: str = ""
    since: int = OLDEST
    default: str = ""

    @property
    def definition(self) -> str:
        """The column in SQL."""
        return f"{self.name} {self.type}{f' default {self.default}' if self.default else ''}"


# An encoder is kept, as `json.dumps` would make one for each call.
_encode = json.JSONEncoder(sort_keys=True).encode


def _json_object(values: Mapping[str, Any]) -> str:
    return _encode(dict(values)) if values else "{}"


def _json_list(values: tuple[Any, ...]) -> str:
    return _encode(values) if values else ""


def _pairs(words: str) -> tuple[tuple[str, float], ...]:
    return tuple((token, x) for token, x in json.loads(words)) if words else ()


def _calls(words: str) -> tuple[Part, ...]:
    return tuple(Part(*part) for part in json.loads(words)) if words else ()


def _unicode(words: str) -> str:
    """Words that a service has made up, which may be no Unicode, as SQLite can hold them."""
    return words if words.isascii() else words.encode("utf-8", "replace").decode()


def _whole(number: int) -> int:
    """A count as SQLite can hold it. A larger one is cut, as an error would undo the whole transaction it is in."""
    number = int(number)
    # Compared first, as nearly every count fits: `min` and `max` of each take three times as long.
    return number if -(2**63) <= number < 2**63 else max(-(2**63), min(number, 2**63 - 1))


def _nan_if_null(number: float | None) -> float:
    return math.nan if number is None else number


def _none_if_nan(number: float) -> float | None:
    return None if math.isnan(number) else number


def lane_words(lane: Iterable[int]) -> str:
    """A lane's index as the file has it: the beginning of a lane is the beginning of its words."""
    return "".join([f"{i}," for i in lane])


def _lane_of(words: str) -> tuple[int, ...]:
    return tuple(map(int, words.split(",")[:-1]))


# A model's id, as users write it.
MODEL = "provider || '/' || model"

_count = functools.partial(Column, type="integer not null", write=_whole, is_logged=True, since=3, default="0")
_words = functools.partial(Column, type="text not null", write=_unicode, since=3, default="''")

# Columns that were added later. They are the last ones in every file: SQLite adds a column at the end.
_LATER = (
    _count("finish", source="response.finish", write=int, export=lambda finish: Finish(finish).name.lower()),
    _words("reasoning", source="response.reasoning"),
    _count("cached_tokens", source="response.cached_tokens"),
    _count("cache_write_tokens", source="response.cache_write_tokens"),
    _count("reasoning_tokens", source="response.reasoning_tokens"),
    _words("service_tier", source="response.service_tier", is_logged=True, label="service tier"),
    _words("fingerprint", source="response.fingerprint", is_logged=True, label="fingerprint"),
    # Why the answer is of no use. A session's log has it from the error that the call failed with.
    _words("error", source="response.fault"),
    Column("superseded", "integer not null", "superseded", write=int, read=bool, since=3, default="0"),
    Column(
        "tool_calls",
        "text not null",
        "response.tool_calls",
        write=_json_list,
        read=_calls,
        export=lambda calls: [call._asdict() for call in calls],
        since=5,
        default="''",
    ),
)
# In the order of the table in the file.
COLUMNS = (
    Column("digest", "blob not null unique", "", export=bytes.hex),
    Column("provider", "text not null", "request.provider", is_read=False),
    Column("endpoint", "text not null", "endpoint"),
    Column("model", "text not null", "request.model", select=MODEL),
    Column("parameters", "text not null", "request.parameters", write=_json_object, read=json.loads, export=dict),
    # The key's bits in hex; null for the one sample of a call without a key.
    Column("sample", "text", "request.sample"),
    Column("answer", "text not null", "response.text"),
    # Calls are searched by it, and an answer is checked against it when it is read.
    Column("answer_digest", "blob not null", "response.text", write=digest_of, is_read=False),
    # The model and the request as the service names them.
    Column("answered_by", "text not null", "response.model", write=_unicode, is_logged=True, label="answered by"),
    Column("request_id", "text not null", "response.request_id", write=_unicode, is_logged=True, label="request id"),
    Column("input_tokens", "integer not null", "response.input_tokens", write=_whole, is_logged=True),
    Column("output_tokens", "integer not null", "response.output_tokens", write=_whole, is_logged=True),
    # NaN stands for a cost or a log-probability that is not known. SQLite stores NaN as null, so no `write` does.
    Column(
        "cost",
        "real",
        "response.cost",
        write=float,
        read=_nan_if_null,
        is_logged=True,
        exported="cost_usd",
        export=_none_if_nan,
    ),
    Column("logprob", "real", "response.logprob", write=float, read=_nan_if_null, is_logged=True, export=_none_if_nan),
    Column(
        "alternatives",
        "text not null",
        "response.alternatives",
        write=_json_list,
        read=_pairs,
        export=lambda pairs: [list(pair) for pair in pairs],
    ),
    # In seconds since 1970.
    Column("began", "real not null", "began"),
    Column("ended", "real not null", "ended"),
    Column("attempts", "integer not null", "attempts"),
    # The lane and the operators that asked first: equal calls, which ask later, have no row of their own.
    Column("lane", "text not null", "lane", write=lane_words, read=_lane_of, export=list),
    Column("scope", "text not null", "scope"),
    *_LATER,
)
READ = tuple(column for column in COLUMNS if column.is_read)


# -- the call --------------------------------------------------------------------------------------------------------


class Tried(NamedTuple):
    """One request that was sent for a call.

    **Fields:**

    - `began`, `ended`: when, in seconds since 1970.
    - `error`: the error's type and message if it failed, else empty.
    """

    began: float
    ended: float
    error: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CallRecord:
    """One call that was asked for. An export has its fields in this order, without `tried`.

    **Fields:**

    - `lane`: the index of the lane that asked, the outermost `vmap` first. If the call was made once for many lanes, it
        is the beginning that their indices share.
    - `scope`: the operators it stands in, outermost first, joined by `/`. A call that had a model mend its answer, see
        `LLM.structured`, has `repair` at its end.
    - `digest`: the digest of what was asked; equal for equal calls.
    - `model`: as `provider/model`.
    - `endpoint`: the provider's address, if the call was read from a journal's file; else empty.
    - `messages`, `parameters`: what was asked.
    - `sample`: the bits of the key in hex, `None` without a key.
    - `answer`: the model's whole answer, or `None` if there is none. A call that failed has one if it is of no use,
        such as a structured answer that does not fit its schema.
    - `how`: `answered` by a service, `replayed` by the journal, `merged` with an equal call in flight, or `failed`.
    - `error`: why it failed; empty if it did not.
    - `superseded`: whether the call has failed, and was asked again by another session. Its digest is then another than
        that of what was asked. A session's own calls are not.
    - `answered_by`, `request_id`: the model and the request by the provider's own names.
    - `input_tokens`, `output_tokens`, `cost`, `logprob`: as in a `Response`.
    - `alternatives`, `reasoning`, `tool_calls`: as in a `Response`, if the call was read from a journal's file; else
        empty.
    - `finish`: how the answer ended, a `Finish`.
    - `cached_tokens`, `cache_write_tokens`, `reasoning_tokens`, `service_tier`, `fingerprint`: as in a `Response`.
    - `began`, `ended`: in seconds since 1970. In a session they are when the lane asked and when it had its answer. In
        a journal's file they are when the first request was sent and when the answer came.
    - `attempts`: how many requests were sent for it.
    - `tried`: these requests one by one, if a session remembers them; a journal's file does not.
    - `stands_for`: how many equal calls of the program a plan has made into this one.
    """

    lane: tuple[int, ...] = ()
    scope: str = ""
    digest: bytes
    model: str
    endpoint: str = ""
    messages: tuple[Message, ...]
    parameters: Mapping[str, Any]
    sample: str | None
    answer: str | None
    how: str
    error: str = ""
    superseded: bool = False
    answered_by: str = ""
    request_id: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = math.nan
    logprob: float = math.nan
    alternatives: tuple[tuple[str, float], ...] = ()
    finish: int = Finish.OTHER
    reasoning: str = ""
    tool_calls: tuple[Part, ...] = ()
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    service_tier: str = ""
    fingerprint: str = ""
    began: float = math.nan
    ended: float = math.nan
    attempts: int = 0
    tried: tuple[Tried, ...] = ()
    stands_for: int = 1

    def __repr__(self) -> str:
        where = ", ".join(filter(None, (self.scope, f"lane {list(self.lane)}" if self.lane else "")))
        return f"<Call {self.digest.hex()[:12]}: {f'{where}: ' if where else ''}{self.model}, {self.how}>"

    def __str__(self) -> str:
        lines = [f"{name.replace('_', ' '):<13} {value}" for name, value in self._facts() if value]
        lines += [f"{f'attempt {i}':<13} {_tried(tried)}" for i, tried in enumerate(self.tried, 1)]
        turns = [(m.role, m.shown()) for m in self.messages]
        if self.answer is not None:
            answer = shown(self.answer) if self.messages and self.messages[0].role == EMBED else self.answer
            turns.append(("answer", Message.of("", [Part("text", answer), *self.tool_calls]).shown()))
        return "\n".join([*lines, *(f"\n-- {role}\n{words}" for role, words in turns)])

    def _facts(self) -> Iterator[tuple[str, str]]:
        """The lines that a call is printed in: their names and their words, which are empty if there is nothing to say.

        Lines that tell several fields, or tell one in words of its own, are written out here. Columns with a `label`
        follow.
        """
        yield "scope", self.scope
        yield "lane", str(list(self.lane)) if self.lane else ""
        yield "digest", self.digest.hex()
        yield "model", self.model
        yield "endpoint", self.endpoint
        yield "parameters", json.dumps(dict(self.parameters)) if self.parameters else ""
        yield "sample", self.sample or ""
        many = f", for {self.stands_for:,} equal calls" if self.stands_for > 1 else ""
        yield "outcome", self.how + many + (", asked again since" if self.superseded else "")
        yield "error", self.error
        yield "began", moment(self.began)
        yield "ended", f"{moment(self.ended)}, after {self.ended - self.began:.3f} s"
        yield "attempts", str(self.attempts) if self.attempts else ""
        yield "tokens", f"{self.input_tokens:,} + {self.output_tokens:,}" if self.answer is not None else ""
        yield "cost", "" if math.isnan(self.cost) else f"${self.cost:.6f}"
        yield "of which", self._details()
        yield "finish", "" if self.answer is None or self.finish == Finish.STOP else Finish(self.finish).name.lower()
        yield "logprob", "" if math.isnan(self.logprob) else f"{self.logprob:.4f}"
        for column in COLUMNS:
            if column.label:
                yield column.label, str(getattr(self, column.name))

    def _details(self) -> str:
        """The tokens that are priced otherwise, in words."""
        counts = {
            "cached": self.cached_tokens,
            "written to a cache": self.cache_write_tokens,
            "reasoning": self.reasoning_tokens,
        }
        return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)

    def row(self) -> dict[str, Any]:
        """The call as a dictionary of values of JSON, by their exported names."""
        return {
            name: getattr(self, field) if export is None else export(getattr(self, field))
            for name, (field, export) in EXPORTED.items()
        }


def _tried(tried: Tried) -> str:
    return f"{tried.ended - tried.began:.3f} s{f', {tried.error}' if tried.error else ''}"


def moment(seconds: float) -> str:
    """Seconds since 1970 as local date and time in words; NaN is `never`."""
    if math.isnan(seconds):
        return "never"
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def _exported() -> Iterator[tuple[str, tuple[str, Callable[[Any], Any] | None]]]:
    columns = {column.name: column for column in READ}
    for field in (field.name for field in dataclasses.fields(CallRecord)):
        if field in columns:
            yield columns[field].exported or field, (field, columns[field].export)
        elif field == "messages":  # they have a table of their own in the file, and so no column
            yield field, (field, _messages)
        elif field != "tried":  # the other fields without a column are known by a session only
            yield field, (field, None)


def _messages(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    return [
        {"role": m.role, "content": m.content, **({"parts": [part._asdict() for part in m.parts]} if m.parts else {})}
        for m in messages
    ]


# The names of an export, in order; for each the field of `CallRecord`, and what makes a value of JSON from it.
EXPORTED = dict(_exported())
