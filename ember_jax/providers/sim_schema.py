"""How a simulated model fills in a JSON schema.

It knows objects, arrays (of `minItems` to `maxItems` items; without `maxItems` of the fewest, else of one), strings,
numbers, integers, booleans, `enum`, and `anyOf` a schema and null. This file only walks through the schema; a `Guesses`
says what stands in each place. A place is named by its path, such as `.steps[0].score`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..errors import RefusedRequestError


class Guesses(Protocol):
    """What a model would answer, by place."""

    def member(self, members: Sequence[Any], path: str) -> Any:
        """One of the members of an `enum`, one of several lengths, or whether there is anything."""
        ...

    def number(self, is_whole: bool, path: str) -> float:
        """A number, an `int` where it must be whole."""
        ...

    def flag(self, path: str) -> bool:
        """Yes or no."""
        ...

    def words(self, path: str) -> str:
        """A short text."""
        ...


def fill(schema: Any, guesses: Guesses, path: str = "") -> Any:
    """A JSON value that fits `schema`.

    **Raises:** `RefusedRequestError` for a schema with anything in it that is not in the list above.
    """
    match schema:
        case {"enum": [_, *_] as members}:
            return guesses.member(members, path)
        case {"type": "object"}:
            properties = schema.get("properties")
            if isinstance(properties, Mapping):
                return {name: fill(inner, guesses, f"{path}.{name}") for name, inner in properties.items()}
        case {"type": "array"}:
            length = _length(schema, guesses, path)
            if length is not None:
                return [fill(schema.get("items"), guesses, f"{path}[{i}]") for i in range(length)]
        case {"anyOf": [inner, {"type": "null"}]}:
            return fill(inner, guesses, path) if guesses.member((True, False), f"{path} is there") else None
        case {"type": "string"}:
            return guesses.words(path)
        case {"type": "number" | "integer" as kind}:
            return guesses.number(kind == "integer", path)
        case {"type": "boolean"}:
            return guesses.flag(path)
    raise RefusedRequestError(
        f"simulated models cannot fill in the JSON schema at {path or 'its top'}: it takes objects with properties, "
        "arrays, strings, numbers, integers, booleans, enums, and anyOf one of these and null."
    )


def _length(schema: Mapping[str, Any], guesses: Guesses, path: str) -> int | None:
    """How many items stand in an array, `None` if the schema's bounds are none."""
    most = schema.get("maxItems")
    fewest = schema.get("minItems", 1 if most is None else 0)
    if not isinstance(fewest, int) or not isinstance(most, int | None):
        return None
    return fewest if most is None or most <= fewest else guesses.member(range(fewest, most + 1), f"{path} length")
