"""How a simulated model uses tools: it calls what the last user message names, in the order in which it is named.

`add(2, 3) and search, then mul(4, 5)` names three calls, of which those that `and` joins are wanted at once. Arguments
in brackets are given to the parameters in order; without brackets they are made up, as `sim_schema` fills in a schema.
When all have been called, the reply says what the last one gave.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .base import Message, Part


def next_calls(
    tools: Sequence[Mapping[str, Any]], messages: Sequence[Message], made_up: Callable[[Any, str], Any]
) -> tuple[Part, ...]:
    """The calls that are wanted next, parts of the kind `tool_call`; none if all that is named was called.

    **Arguments:**

    - `tools`: as a request has them.
    - `messages`: the conversation.
    - `made_up`: gives what fills in a JSON schema, by the schema and a name for the place.
    """
    known = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    last = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
    if last < 0:
        return ()
    done = sum(part.kind == "tool_result" for m in messages[last:] for part in m.parts)
    named = "|".join(sorted(map(re.escape, known), key=len, reverse=True)) if known else r"(?!)"
    found = list(re.compile(rf"\b({named})\b(?:\(([^()]*)\))?").finditer(messages[last].content))
    calls: list[Part] = []
    for i, match in enumerate(found[done:], done):
        if calls and messages[last].content[found[i - 1].end() : match.start()].strip() != "and":
            break
        schema = known[match[1]]
        arguments = made_up(schema, f"call {i}") if match[2] is None else _given(schema, match[2])
        calls.append(Part("tool_call", json.dumps(arguments), match[1], f"call_{i}"))
    return tuple(calls)


def last_result(messages: Sequence[Message]) -> str | None:
    """What the last tool gave that was called since the last user message; `None` if none was."""
    last = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
    results = [part.value for m in messages[last + 1 :] for part in m.parts if part.kind == "tool_result"]
    return results[-1] if results else None


def _given(schema: Mapping[str, Any], words: str) -> dict[str, Any]:
    values = [value.strip() for value in words.split(",")] if words.strip() else []
    properties = schema.get("properties", {})
    return {name: _value(inner, value) for (name, inner), value in zip(properties.items(), values, strict=False)}


def _value(schema: Mapping[str, Any], words: str) -> Any:
    if schema.get("type") == "string":
        return words.strip("\"'")
    try:
        return json.loads(words)
    except ValueError:
        return words
