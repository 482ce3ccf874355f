"""How calls are searched in a journal's file, read from it and deleted there.

Design note. A search gives digests and ids, and a call is read when it is looked at: a file may hold millions, with
their prompts. `CONDITIONS` is the one table of what calls can be searched by; the options of the command line are made
from it too. `Journal.calls` names its conditions once more, as arguments with a type and a description.
"""

import datetime
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ...providers.base import Message
from .calls import answer_digests, lane_index
from .columns import MODEL, READ, CallRecord, lane_words

_CALL = f"select {', '.join(column.select or column.name for column in READ)} from calls where id = ?"
_MESSAGES = "select role, words from messages join texts on texts.id = text where call = ? order by position"


# -- searching -------------------------------------------------------------------------------------------------------


class Condition(NamedTuple):
    """One thing that calls can be searched by.

    **Fields:**

    - `name`: of the argument of `Journal.calls`, and of the option.
    - `sql`: is true of the rows that are meant. It has the value as a parameter of the condition's name.
    - `value`: makes the parameter from the argument. `None` if it is the argument.
    - `option`: what the command line says of its option; empty if there is none.
    """

    name: str
    sql: str
    value: Callable[[Any], Any] | None = None
    option: str = ""


def _answers(answer: Any) -> str:
    return json.dumps([digest.hex() for digest in answer_digests(answer)])


def _seconds(since: datetime.datetime | str) -> float:
    moment = datetime.datetime.fromisoformat(since) if isinstance(since, str) else since
    return moment.astimezone().timestamp()


# In the order of the command line's options.
CONDITIONS = (
    Condition("answer", "lower(hex(answer_digest)) in (select value from json_each(:answer))", _answers),
    Condition("model", f"{MODEL} = :model", option="only of this model, as provider/model"),
    Condition(
        "since",
        "ended >= :since",
        _seconds,
        option="only answered since this date: 2026-01-31, or with a time",
    ),
    Condition("before", "ended < :before", _seconds),
    # The words may be in the answer, or in a message.
    Condition(
        "contains",
        """(instr(answer, :contains) or id in
        (select call from messages join texts on texts.id = text where instr(words, :contains)))""",
        option="only with these words in the prompt or the answer",
    ),
    Condition(
        "op", "instr('/' || scope || '/', '/' || :op || '/')", option="only asked by this operator, or by one in it"
    ),
    # One of the two lanes is the beginning of the other.
    Condition(
        "lane",
        "(substr(lane, 1, length(:lane)) = :lane or substr(:lane, 1, length(lane)) = lane)",
        lambda lane: lane_words(lane_index(lane)),
        option="only asked by this lane: 3, or 3,7",
    ),
    Condition("failed", "(error != '') = :failed", option="only of no use (yes), or only of use (no)"),
    Condition(
        "digest",
        "substr(lower(hex(digest)), 1, length(:digest)) = :digest",
        str.lower,
        option="only with these first digits, as listed",
    ),
)


def conditions(asked: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A condition on rows, in SQL, and its parameters. Of `asked`, what is `None` asks for nothing.

    **Raises:** `TypeError` or `ValueError` for an argument that cannot be read.
    """
    given = [condition for condition in CONDITIONS if asked[condition.name] is not None]
    values = {c.name: asked[c.name] if c.value is None else c.value(asked[c.name]) for c in given}
    return " and ".join(condition.sql for condition in given) or "true", values


def find(connection: sqlite3.Connection, where: str, values: Mapping[str, Any]) -> list[tuple[bytes, int]]:
    """The digests and ids of the calls that `conditions` are true of, oldest first."""
    return connection.execute(f"select digest, id from calls where {where} order by id", values).fetchall()


# -- reading and deleting --------------------------------------------------------------------------------------------


def read(connection: sqlite3.Connection, ids: Iterable[int]) -> Iterator[CallRecord]:
    """Calls by their ids; one that was deleted is left out."""
    for i in ids:
        row = connection.execute(_CALL, (i,)).fetchone()
        if row is not None:  # else another process, or `forget`, has deleted it since it was found
            known = {c.name: v if c.read is None else c.read(v) for c, v in zip(READ, row, strict=True)}
            messages = tuple(Message.kept(*message) for message in connection.execute(_MESSAGES, (i,)))
            yield CallRecord(messages=messages, how="failed" if known["error"] else "answered", **known)


def delete(connection: sqlite3.Connection, digests: Iterable[bytes]) -> int:
    """Deletes calls, with the words that are then no other call's; says how many there were. Within a transaction."""
    count = connection.executemany("delete from calls where digest = ?", [(d,) for d in digests]).rowcount
    if count > 0:
        connection.execute("delete from messages where call not in (select id from calls)")
        connection.execute("delete from texts where id not in (select text from messages)")
    return max(0, count)
