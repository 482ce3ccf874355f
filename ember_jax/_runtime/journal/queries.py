"""Calls in a journal's file: how they are found, read and deleted there."""

import json
import math
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..._providers.base import Message
from .calls import Call

_MODEL = "provider || '/' || model"
_MESSAGES = "select role, words from messages join texts on texts.id = text where call = ? order by position"
_CALL = """select digest, provider, endpoint, model, parameters, sample, answer, answered_by, request_id,
    input_tokens, output_tokens, cost, logprob, alternatives, began, ended, attempts, lane, scope
    from calls where id = ?"""
# What calls are asked for by, as conditions on rows.
_CONDITIONS = {
    "digest": "substr(lower(hex(digest)), 1, length(:digest)) = :digest",
    "model": f"{_MODEL} = :model",
    "since": "ended >= :since",
    "before": "ended < :before",
    # an answer, or a message, that holds some words
    "contains": """(instr(answer, :contains) or id in
        (select call from messages join texts on texts.id = text where instr(words, :contains)))""",
    "answers": "lower(hex(answer_digest)) in (select value from json_each(:answers))",
    # one of the two is the beginning of the other
    "lane": "(substr(lane, 1, length(:lane)) = :lane or substr(:lane, 1, length(lane)) = lane)",
    "op": "instr('/' || scope || '/', '/' || :op || '/')",
}


def lane_words(lane: Iterable[int]) -> str:
    """A lane's index as the file has it: the beginning of a lane is the beginning of its words."""
    return "".join([f"{i}," for i in lane])


def find(connection: sqlite3.Connection, asked: Mapping[str, Any]) -> list[tuple[bytes, int]]:
    """The digests and ids of the calls that some of `_CONDITIONS`, by name, are true of, oldest first.

    `None` asks for nothing.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    where = " and ".join(_CONDITIONS[name] for name in given) or "true"
    return connection.execute(f"select digest, id from calls where {where} order by id", given).fetchall()


def read(connection: sqlite3.Connection, ids: Iterable[int]) -> Iterator[Call]:
    """Calls by their ids; one that was deleted is left out."""
    for i in ids:
        row = connection.execute(_CALL, (i,)).fetchone()
        if row is not None:
            yield _call(row, [Message(*m) for m in connection.execute(_MESSAGES, (i,))])


def _call(row: Sequence[Any], messages: Sequence[Message]) -> Call:
    digest, provider, endpoint, model, parameters, sample, words, answered_by, request_id, *numbers = row
    input_tokens, output_tokens, cost, logprob, alternatives, began, ended, attempts, lane, scope = numbers
    return Call(
        digest=digest,
        model=f"{provider}/{model}",
        messages=tuple(messages),
        parameters=json.loads(parameters),
        sample=sample,
        answer=words,
        how="answered",
        lane=tuple(map(int, lane.split(",")[:-1])),
        scope=scope,
        attempts=attempts,
        began=began,
        ended=ended,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cost=math.nan if cost is None else cost,
        logprob=math.nan if logprob is None else logprob,
        alternatives=tuple((token, x) for token, x in json.loads(alternatives or "[]")),
        answered_by=answered_by,
        request_id=request_id,
        endpoint=endpoint,
    )


def delete(connection: sqlite3.Connection, digests: Iterable[bytes]) -> int:
    """Deletes calls, with the words that are then no other call's; says how many there were. Within a transaction."""
    count = connection.executemany("delete from calls where digest = ?", [(d,) for d in digests]).rowcount
    if count > 0:
        connection.execute("delete from messages where call not in (select id from calls)")
        connection.execute("delete from texts where id not in (select text from messages)")
    return max(0, count)
