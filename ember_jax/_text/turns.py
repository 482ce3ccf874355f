"""Conversations as words: each turn names what was said by digest, so that a conversation grows by a line.

Design note. A conversation is one text, and so one digest, of constant size in a carry. Its words are a mark and a list
of turns in JSON, in which the digests of texts stand, and not the texts. So to say something more to a long
conversation writes a hundred bytes and not all that was said before, and what many conversations begin with lies in the
store once. Two conversations are equal exactly if the same was said. What takes texts along (`portable`, `files`)
takes along the texts that are named in these words.

Only what is made to be a conversation is read as one: words that happen to begin with the mark are words to a model.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import TextError, UnknownDigestError
from . import store

_MARK = "\x1econversation\x1e"
EMPTY = f"{_MARK}[]"


class Part(NamedTuple):
    """A part of what is said in one turn.

    **Fields:**

    - `kind`: `text`, `image`, `file` or `audio`; `tool_call` for what a model wants called, `tool_result` for what came
        of it; `thought` for what a service wants to have back as it came.
    - `value`: the words; of an image, a file or audio a URL, which may be a `data:` URL that holds it; of a tool call
        its arguments as JSON.
    - `name`: of the file or the tool.
    - `id`: of the tool call.
    """

    kind: str
    value: str
    name: str = ""
    id: str = ""


class Turn(NamedTuple):
    """What one role says: `system`, `user`, `assistant`, or `tool` for the results of tools."""

    role: str
    parts: tuple[Part, ...]


_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode


def _line(turn: Turn) -> str:
    parts = [[p.kind, store.put(p.value).hex(), *([p.name, p.id] if p.name or p.id else [])] for p in turn.parts]
    return _encode([turn.role, parts])


def written(turns: Sequence[Turn]) -> str:
    """The words of a conversation."""
    return f"{_MARK}[{','.join(map(_line, turns))}]"


def grown(before: str, turns: Sequence[Turn]) -> str:
    """The words of a conversation in which more is said.

    **Raises:** `TextError` if `before` is none.
    """
    listed = _listed(before)
    return f"{_MARK}[{','.join([*([listed] if listed else []), *map(_line, turns)])}]"


def read(words: str) -> list[Turn]:
    """The turns of a conversation.

    **Raises:** `TextError` for words that are none; `UnknownDigestError` if what was said is not in this process.
    """
    return [
        Turn(role, tuple(Part(kind, store.get(bytes.fromhex(digest)), *more) for kind, digest, *more in parts))
        for role, parts in _turns(words)
    ]


# What is done to a conversation in a program, as functions of its words.


def said(role: str, kinds: tuple[tuple[str, str], ...], before: str, *values: str) -> str:
    """The words of a conversation in which a turn is said, whose parts have kinds, names, and values."""
    parts = tuple(Part(kind, value, name) for (kind, name), value in zip(kinds, values, strict=True))
    return grown(before, [Turn(role, parts)])


def answered(before: str, more: str, results: Sequence[str]) -> str:
    """The words of a conversation that goes on with another, which wants tools called, and with their results.

    There may be more results than calls: those behind the last call are of none.
    """
    said = read(more)
    wanted = [part for turn in said for part in turn.parts if part.kind == "tool_call"]
    parts = tuple(Part("tool_result", result, c.name, c.id) for c, result in zip(wanted, results, strict=False))
    return grown(before, [*said, *([Turn("tool", parts)] if parts else [])])


def count(words: str) -> int:
    """How many turns were said."""
    return sum(1 for _ in _turns(words))


def named_in(words: str) -> list[bytes]:
    """The digests of what words name, if they are those of a conversation."""
    if not words.startswith(_MARK):
        return []
    try:
        return [bytes.fromhex(digest) for _, parts in _turns(words) for _, digest, *_ in parts]
    except (TextError, ValueError):
        return []


def closure(digests: Sequence[bytes]) -> dict[bytes, str]:
    """The words of digests that are not reserved, and those that they name.

    **Raises:** `UnknownDigestError` if the words of one of them are not in this process.
    """
    found: dict[bytes, str] = {}
    for digest in digests:
        if digest in found or store.is_reserved(digest):
            continue
        found[digest] = store.get(digest)
        for named in named_in(found[digest]):
            words = store.peek(named)
            if words is None:
                raise UnknownDigestError(f"what was said in a conversation, {named.hex()}, is not in this process.")
            found[named] = words
    return found


def _listed(words: str) -> str:
    if not (words.startswith(f"{_MARK}[") and words.endswith("]")):
        raise TextError(
            f"{words!r:.60} is no conversation. Make one with `ember.Conversation(…)`, and carry that: `ember.text` of "
            "its words is another thing."
        )
    return words[len(_MARK) + 1 : -1]


def _turns(words: str) -> Any:
    return json.loads(f"[{_listed(words)}]")
