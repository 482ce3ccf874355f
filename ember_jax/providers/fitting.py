"""JSON schemas as services take them that know a part of the language: Anthropic's, and Bedrock, which names the same.

What is left out of a schema is told in its description, so that the model reads it all the same; what is read of the
answer is checked against the whole schema anyway.
"""

from collections.abc import Iterator
from typing import Any

from .dialect import Failure, refused

# Of each type, what is taken besides `description` and `title`. This, and what becomes of the rest, is as
# `transform_schema` of Anthropic's own SDK (2.14.0) has it.
_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"),
)
_UNIONS = (("anyOf", "anyOf"), ("oneOf", "anyOf"), ("allOf", "allOf"))


def fitted(schema: dict[str, Any]) -> dict[str, Any] | Failure:
    """The schema of a `response_format` with the words that the services take, or why they cannot take it."""
    try:
        has_any, fits = _is_open(schema), _fitted(schema)
    except (AttributeError, TypeError):  # it has no lists or objects where schemas have them
        return refused("response_format", "Its schema is no JSON schema.")
    if has_any:
        return refused(
            "response_format",
            "Its schema has an object with fields of any name (`additionalProperties`), and the service takes only "
            "those whose fields are all named.",
        )
    return fits


def _fitted(schema: Any) -> Any:
    """A schema with the words that the services take. What is left of it is told in its description."""
    if not isinstance(schema, dict):
        return schema
    rest = dict(schema)
    kept: dict[str, Any] = {}
    if "$defs" in rest:
        kept["$defs"] = {name: _fitted(inner) for name, inner in rest.pop("$defs").items()}
    if "$ref" in rest:
        return {**kept, "$ref": rest["$ref"]}
    kind = rest.pop("type", None)
    values = {name: rest.pop(name) for name in ("enum", "const") if name in rest}
    kept |= values
    unions = [(name, taken) for name, taken in _UNIONS if name in rest]
    for name, taken in unions[:1]:
        kept[taken] = [_fitted(inner) for inner in rest.pop(name)]
    if kind is not None and not values and not unions:
        kept["type"] = kind
        kept |= _parts_of(kind, rest)
    kept |= {name: rest.pop(name) for name in ("description", "title") if name in rest}
    if rest:
        told = "{" + ", ".join(f"{name}: {value}" for name, value in rest.items()) + "}"
        kept["description"] = f"{kept['description']}\n\n{told}" if "description" in kept else told
    return kept


def _parts_of(kind: Any, rest: dict[str, Any]) -> dict[str, Any]:
    """What belongs to the type of a schema, taken out of the rest."""
    if kind == "object":
        rest.pop("additionalProperties", None)
        fields = {name: _fitted(inner) for name, inner in rest.pop("properties", {}).items()}
        required = {"required": rest.pop("required")} if "required" in rest else {}
        return {"properties": fields, "additionalProperties": False, **required}
    if kind == "string" and rest.get("format") in _FORMATS:
        return {"format": rest.pop("format")}
    if kind == "array":
        items = {"items": fitted(rest.pop("items"))} if "items" in rest else {}
        return items | ({"minItems": rest.pop("minItems")} if rest.get("minItems") in (0, 1) else {})
    return {}


def _is_open(schema: Any) -> bool:
    """Whether an object in a schema may have fields that it does not name."""
    if not isinstance(schema, dict):
        return False
    return bool(schema.get("additionalProperties")) or any(map(_is_open, _inner(schema)))


def _inner(schema: dict[str, Any]) -> Iterator[Any]:
    for name in ("$defs", "properties"):
        yield from schema.get(name, {}).values()
    for name, _ in _UNIONS:
        yield from schema.get(name, ())
    yield schema.get("items")
