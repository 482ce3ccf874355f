"""Schemas: a class of annotated fields as a JSON schema, and a JSON answer as the arrays of its fields.

Design note. JAX fixes every shape when it traces, so a schema holds only what has a fixed one: no lists of any length,
no field that may be absent. What is static about a schema is a `Record`, which compares by value and without the class:
a class that is defined anew, as in a notebook's cell that runs again, is the same program.
"""

import contextlib
import dataclasses
import functools
import inspect
import itertools
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import AbstractArray

from .._annotations import shown
from .._errors import AnnotationError, TextError
from .._regex import regex
from .._text import store
from .._text.text import Text, TextAnnotation

_S = TypeVar("_S")

# JSON's types, and the dtypes in which answers come; a string is its digest.
_DTYPES = {"number": np.dtype(np.float32), "integer": np.dtype(np.int32), "boolean": np.dtype(np.bool_)}
_LARGEST = float(np.finfo(np.float32).max)
_STRING = "string"
_SCALARS = {Text: _STRING, str: _STRING, float: "number", int: "integer", bool: "boolean"}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A field of words or numbers: JSON's type, the shape of the lists around it, and the members of a `Literal`."""

    kind: str
    shape: tuple[int, ...] = ()
    members: tuple[str | int, ...] = ()

    @property
    def aval(self) -> jax.ShapeDtypeStruct:
        if self.kind == _STRING:
            return jax.ShapeDtypeStruct((*self.shape, store.DIGEST_WORDS), np.uint32)
        return jax.ShapeDtypeStruct(self.shape, _DTYPES[self.kind])


@dataclasses.dataclass(frozen=True)
class Record:
    """A class of fields, as values; each field with its name and description."""

    name: str
    description: str
    fields: "tuple[tuple[str, str, Leaf | Record], ...]"

    def leaves(self) -> Iterator[Leaf]:
        """The leaves, in the order of the fields."""
        for _, _, what in self.fields:
            yield from what.leaves() if isinstance(what, Record) else (what,)


class Misfit(Exception):
    """An answer that does not fit a schema. Its message quotes no answer, and it is always told as another error."""


# -- from a class ----------------------------------------------------------------------------------------------------


def schema_of(cls: Any) -> Record:
    """What a class says of an answer. A dataclass is registered with JAX, if it is not, so that it can be returned.

    **Raises:** `AnnotationError` for what is no such class, and for a field that cannot be one of an answer.
    """
    if not _is_record(cls):
        raise AnnotationError(
            f"a structured answer is described by a NamedTuple, a dataclass or an eqx.Module class; got {cls!r:.80}."
        )
    return _record(cls, ())


def build(cls: type[_S], record: Record, arrays: Sequence[Any]) -> _S:
    """An instance of the class that a record was made of, from the arrays of its leaves."""
    return _build(cls, record, iter(arrays))


def _build(cls: Any, record: Record, arrays: Iterator[Any]) -> Any:
    hints = _hints(cls)
    values = {}
    for name, _, what in record.fields:
        if isinstance(what, Record):
            values[name] = _build(hints[name], what, arrays)
        else:
            values[name] = Text(next(arrays)) if what.kind == _STRING else next(arrays)
    return cls(**values)


def _is_record(hint: Any) -> bool:
    if not isinstance(hint, type):
        return False
    return dataclasses.is_dataclass(hint) or (issubclass(hint, tuple) and "_fields" in vars(hint))


@functools.lru_cache(maxsize=256)
def _record(cls: Any, within: tuple[Any, ...]) -> Record:
    if cls in within:
        raise AnnotationError(f"{cls.__name__} holds itself, so its answers have no fixed size. Say how often it may.")
    hints = _hints(cls)
    if not hints:
        raise AnnotationError(f"{cls.__name__} has no fields: there is nothing to answer.")
    description, of_fields = _descriptions(cls, tuple(hints))
    fields = tuple((n, of_fields.get(n, ""), _field(cls, n, hint, (*within, cls))) for n, hint in hints.items())
    if not issubclass(cls, tuple | eqx.Module):
        _register(cls, tuple(hints))
    return Record(cls.__name__, description, fields)


@functools.lru_cache(maxsize=256)
def _hints(cls: Any) -> Mapping[str, Any]:
    """The annotations of the fields that an instance is made of."""
    try:
        hints = typing.get_type_hints(cls)
    except NameError as error:
        raise AnnotationError(
            f"an annotation of {cls.__name__} names {error.name!r}, which cannot be found from the module that defines "
            f"{cls.__name__}. Import it there, or define {cls.__name__} without `from __future__ import annotations`."
        ) from None
    is_tuple = issubclass(cls, tuple)
    fields: Sequence[Any] = () if is_tuple else dataclasses.fields(cls)
    static = [field.name for field in fields if field.metadata.get("static")]
    if static:
        raise AnnotationError(
            f"the field `{static[0]}` of {cls.__name__} is static: known while JAX traces, as no answer is."
        )
    names: Sequence[str] = vars(cls)["_fields"] if is_tuple else [field.name for field in fields if field.init]
    missing = [name for name in names if name not in hints]
    if missing:
        raise AnnotationError(f"{cls.__name__} does not annotate `{missing[0]}`; a field's annotation says what it is.")
    return {name: hints[name] for name in names}


def _register(cls: Any, names: tuple[str, ...]) -> None:
    with contextlib.suppress(ValueError):  # it is registered
        jax.tree_util.register_dataclass(cls, data_fields=names, meta_fields=())


def _field(cls: Any, name: str, hint: Any, within: tuple[Any, ...]) -> Leaf | Record:
    if isinstance(hint, type) and hint in _SCALARS:
        return Leaf(_SCALARS[hint])
    if isinstance(hint, TextAnnotation):
        return Leaf(_STRING, _dimensions(cls, name, hint, hint.dimensions))
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        # By name; one of them is that in which answers come.  `Shaped` takes any and has no list.
        names = hint.dtypes if isinstance(hint.dtypes, list | tuple) else ()
        kinds = [kind for kind, dtype in _DTYPES.items() if dtype.name in names]
        if kinds:
            return Leaf(kinds[0], _dimensions(cls, name, hint, hint.dim_str))
    if typing.get_origin(hint) is typing.Literal:
        members = typing.get_args(hint)
        for kind, scalar in ((_STRING, str), ("integer", int)):
            if all(type(member) is scalar for member in members):
                return Leaf(kind, (), members)
    if _is_record(hint):
        return _record(hint, within)
    _refuse(cls, name, hint)


def _dimensions(cls: Any, name: str, hint: Any, dimensions: str) -> tuple[int, ...]:
    sizes = dimensions.split()
    if not all(size.isdecimal() and int(size) for size in sizes):
        _refuse(cls, name, hint)
    return tuple(map(int, sizes))


def _refuse(cls: Any, name: str, hint: Any) -> NoReturn:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        advice = (
            "A field is always there and of one type, since shapes are fixed while JAX traces: for one that may be "
            'absent, add a bool that says so, or ask for the words "none".'
        )
    else:
        advice = (
            'A field is a Text, str, float, int or bool; a Literal of strings or of whole numbers; Text["3"], '
            'Float[Array, "3"], Int[Array, "3"] or Bool[Array, "3"] with its sizes as numbers; or another class of '
            "such fields."
        )
    raise AnnotationError(
        f"the field `{name}` of {cls.__name__} is annotated {shown(hint)}, which no structured answer can be. {advice}"
    )


# -- descriptions ----------------------------------------------------------------------------------------------------

# One or several fields and what they are: "- `a`, `b`: words", "a (int): words", "a: words".
_FIELD_LINE = regex(r"(\s*)(?:[-*]\s+)?(`?\w+`?(?:,\s*`?\w+`?)*)(?:\s*\([^)]*\))?:\s+(\S.*)")
_HEADING = regex(r"\*{0,2}\w+:\*{0,2}")


def _descriptions(cls: Any, names: Sequence[str]) -> tuple[str, dict[str, str]]:
    """What a class's docstring says of it, and of its fields."""
    doc = vars(cls).get("__doc__") or ""
    if doc.startswith(f"{cls.__name__}("):  # Python's own, of a dataclass or NamedTuple without one
        doc = ""
    lines = inspect.cleandoc(doc).splitlines()
    found: dict[str, str] = {}
    summary: list[str] = []
    at = 0
    while at < len(lines):
        match = _FIELD_LINE.fullmatch(lines[at])
        described = [n for n in re.findall(r"\w+", match[2]) if n in names] if match else []
        if match and described:
            indent = len(match[1])
            rest = list(itertools.takewhile(lambda li: len(li) - len(li.lstrip()) > indent, lines[at + 1 :]))
            found |= dict.fromkeys(described, " ".join(" ".join([match[3], *rest]).split()))
            at += len(rest)
        elif not found and not _HEADING.fullmatch(lines[at]):
            summary.append(lines[at])
        at += 1
    return " ".join(" ".join(summary).split()), found


# -- to JSON ---------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def response_format(record: Record) -> Mapping[str, Any]:
    """The parameter that asks for answers of a schema, in OpenAI's form. It is shared, and must not be changed."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", record.name)[:64]  # what OpenAI allows
    return {"type": "json_schema", "json_schema": {"name": name, "schema": _object(record), "strict": True}}


def _object(record: Record, description: str = "") -> dict[str, Any]:
    described = description or record.description
    return {
        "type": "object",
        **({"description": described} if described else {}),
        "properties": {
            name: _object(what, words) if isinstance(what, Record) else _list(what, words)
            for name, words, what in record.fields
        },
        "required": [name for name, _, _ in record.fields],
        "additionalProperties": False,
    }


def _list(leaf: Leaf, description: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": leaf.kind}
    if leaf.members:
        schema["enum"] = list(leaf.members)
    for size in reversed(leaf.shape):
        schema = {"type": "array", "items": schema, "minItems": size, "maxItems": size}
    return {**schema, "description": description} if description else schema


# -- from an answer --------------------------------------------------------------------------------------------------

_FENCE = regex(r"^```(?:json)?[ \t]*\n(.*?)\n```[ \t]*$", re.DOTALL | re.MULTILINE | re.IGNORECASE)


def read(record: Record, answer: str) -> list[np.ndarray]:
    """The arrays of a record's leaves, from an answer in JSON, which may stand in one fenced block.

    **Raises:** `Misfit`, which names the field, for an answer of any other form.
    """
    blocks = _FENCE.findall(answer)
    value = _parsed(blocks[0] if len(blocks) == 1 else answer)
    return list(_read_record(record, value, ""))


def _parsed(words: str) -> Any:
    try:
        return json.loads(words, parse_constant=_no_constant, object_pairs_hook=_distinct)
    except RecursionError:
        raise Misfit("it is nested too deeply") from None
    except ValueError as error:  # its message tells the place, and none of the words
        cut = " (cut off? give more max_tokens)" if words.lstrip().startswith("{") else ""
        raise Misfit(f"it is not JSON: {error}{cut}") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise Misfit("a field stands in it twice")
    return fields


def _read_record(record: Record, value: Any, path: str) -> Iterator[np.ndarray]:
    if not isinstance(value, dict):
        raise Misfit(f"{_at(path)} is {_kind(value)}, not an object")
    for name, _, what in record.fields:
        inner = f"{path}.{name}" if path else name
        if name not in value:
            raise Misfit(f"{_at(inner)} is missing")
        if isinstance(what, Record):
            yield from _read_record(what, value[name], inner)
        else:
            yield _read_leaf(what, value[name], inner)
    if len(value) > len(record.fields):
        raise Misfit(f"{_at(path)} has {len(value) - len(record.fields)} more fields than the schema")


def _read_leaf(leaf: Leaf, value: Any, path: str) -> np.ndarray:
    flat = list(_elements(leaf, leaf.shape, value, path))
    if leaf.kind != _STRING:
        return np.asarray(flat, _DTYPES[leaf.kind]).reshape(leaf.shape)
    words = np.empty(len(flat), object)
    words[:] = flat
    try:
        return store.put_array(words).reshape(leaf.aval.shape)
    except TextError:
        raise Misfit(f"{_at(path)} holds half of a surrogate pair, which is not valid Unicode") from None


def _elements(leaf: Leaf, shape: tuple[int, ...], value: Any, path: str) -> Iterator[Any]:
    if not shape:
        yield _element(leaf, value, path)
        return
    if not isinstance(value, list) or len(value) != shape[0]:
        raise Misfit(f"{_at(path)} is {_kind(value)}, not a list of {shape[0]}")
    for i, inner in enumerate(value):
        yield from _elements(leaf, shape[1:], inner, f"{path}[{i}]")


def _element(leaf: Leaf, value: Any, path: str) -> Any:
    match leaf.kind, value:
        case ("string", str()) | ("boolean", bool()):
            fitting = value
        case ("number" | "integer", bool()):
            fitting = None
        case "number", int() | float():
            fitting = value
            if abs(value) > _LARGEST:
                raise Misfit(f"{_at(path)} is beyond the numbers of float32")
        case "integer", int() | float() if value % 1 == 0:  # 3.0 is an integer in JSON Schema
            fitting = int(value)
            if not -(2**31) <= fitting < 2**31:
                raise Misfit(f"{_at(path)} is beyond the numbers of int32")
        case _:
            fitting = None
    if fitting is None:
        raise Misfit(f"{_at(path)} is {_kind(value)}, not {_ARTICLE[leaf.kind]}")
    if leaf.members and fitting not in leaf.members:
        raise Misfit(f"{_at(path)} is none of {', '.join(map(json.dumps, leaf.members))}")
    return fitting


def _at(path: str) -> str:
    return f"the field `{path}`" if path else "the answer"


_ARTICLE = {"string": "a string", "number": "a number", "integer": "an integer", "boolean": "true or false"}


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return f"a list of {len(value)}"
        case _:
            return "an object"
