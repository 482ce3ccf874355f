"""Schemas: a class of annotated fields as a JSON schema, and a JSON answer as the arrays of its fields.

Design note. JAX fixes every shape when it traces. So a field that may be absent is an array with a mask beside it, and
a list of any length an array of a bound's size with a length beside it, see `maybe`. What is static about a schema is
a `Record`, which compares by value and without the class: a class that is defined anew, as in a notebook's cell that
runs again, is the same program.
"""

import contextlib
import dataclasses
import enum
import functools
import inspect
import itertools
import json
import math
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, TypeAlias

import equinox as eqx
import jax
import numpy as np
from jaxtyping import AbstractArray

from .._annotations import shown
from .._regex import regex
from .._text import store
from .._text.maybe import Bound, Many, Maybe
from .._text.text import Text, TextAnnotation
from ..errors import AnnotationError, TextError, ValidatorError

# JSON's types, and the dtypes in which answers come; a string is its digest.
_DTYPES = {"number": np.dtype(np.float32), "integer": np.dtype(np.int32), "boolean": np.dtype(np.bool_)}
_LARGEST = float(np.finfo(np.float32).max)
_STRING = "string"
_SCALARS = {Text: _STRING, str: _STRING, float: "number", int: "integer", bool: "boolean"}
# What stands in the place of what is not there.
_NOTHING: Mapping[str, Any] = {_STRING: "", "number": 0.0, "integer": 0, "boolean": False}
# How many elements a list has at most that says no bound.
MOST = 16


# -- what an answer is made of ---------------------------------------------------------------------------------------


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

    @property
    def leaves(self) -> "tuple[Leaf, ...]":
        return (self,)


@dataclasses.dataclass(frozen=True)
class Perhaps:
    """What may be absent. Its first leaf says whether it is there."""

    of: "SchemaNode"

    @functools.cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        return (Leaf("boolean"), *self.of.leaves)


@dataclasses.dataclass(frozen=True)
class Several:
    """A list of up to `most` elements. Its first leaf says how many there are."""

    of: "SchemaNode"
    most: int

    @functools.cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        inner = (dataclasses.replace(leaf, shape=(self.most, *leaf.shape)) for leaf in self.of.leaves)
        return (Leaf("integer"), *inner)


@dataclasses.dataclass(frozen=True)
class Record:
    """A class of fields, as values; each field with its name and description."""

    name: str
    description: str
    fields: "tuple[tuple[str, str, SchemaNode], ...]"

    @functools.cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """The leaves, in the order of the fields."""
        return tuple(leaf for _, _, what in self.fields for leaf in what.leaves)


SchemaNode: TypeAlias = Leaf | Perhaps | Several | Record


# What validators make of a JSON value that fits, as another one, see `validators.py`.
Check: TypeAlias = Callable[[Any], Any]


class Misfit(Exception):
    """An answer that does not fit a schema. Its message quotes no answer, and it is always told as another error."""


# -- from a class ----------------------------------------------------------------------------------------------------


class SchemaPart(NamedTuple):
    """A type of field, or a class of fields: what it says of an answer, and what makes its value of the arrays."""

    node: SchemaNode
    make: Callable[[Iterator[Any]], Any]


class Schema(NamedTuple):
    """A class of fields, likewise."""

    record: Record
    make: Callable[[Iterator[Any]], Any]


class _SchemaField(NamedTuple):
    """A field as a class declares it; `most` is the bound of a list that stands beside its annotation."""

    hint: Any
    description: str = ""
    most: int | None = None


def schema_of(cls: Any) -> Schema:
    """What a class says of an answer. A class that JAX does not know is registered, so that it can be returned.

    **Raises:** `AnnotationError` for what is no such class, and for a field that cannot be one of an answer.
    """
    if not _is_record(cls):
        raise AnnotationError(
            "a structured answer is described by a NamedTuple, a dataclass, an eqx.Module class or a pydantic model; "
            f"got {cls!r:.80}."
        )
    return _schema(cls, ())


def _is_record(hint: Any) -> bool:
    if not isinstance(hint, type):
        return False
    is_tuple = issubclass(hint, tuple) and "_fields" in vars(hint)
    return is_tuple or (dataclasses.is_dataclass(hint) and not issubclass(hint, Maybe | Many)) or is_model(hint)


def is_model(cls: type) -> bool:
    """Whether a class is a pydantic model. Pydantic is no dependency: who has such a class has imported it."""
    pydantic: Any = sys.modules.get("pydantic")
    return pydantic is not None and issubclass(cls, pydantic.BaseModel)


@functools.lru_cache(maxsize=256)
def _schema(cls: Any, within: tuple[Any, ...]) -> Schema:
    if cls in within:
        raise AnnotationError(f"{cls.__name__} holds itself, so its answers have no fixed size. Say how often it may.")
    declared = _declared(cls)
    if not declared:
        raise AnnotationError(f"{cls.__name__} has no fields: there is nothing to answer.")
    description, described = _descriptions(cls, tuple(declared))
    parts = {name: _part_of(cls, name, field, (*within, cls)) for name, field in declared.items()}
    fields = tuple((n, declared[n].description or described.get(n, ""), part.node) for n, part in parts.items())
    new: Any = cls
    if is_model(cls):
        new = cls.model_construct  # the values are arrays, which pydantic would refuse
        _register_model(cls, tuple(declared))
    elif not issubclass(cls, tuple | eqx.Module):
        _register(cls, tuple(declared))
    makes = {name: part.make for name, part in parts.items()}
    return Schema(
        Record(cls.__name__, description, fields),
        lambda arrays: new(**{name: make(arrays) for name, make in makes.items()}),
    )


def _declared(cls: Any) -> Mapping[str, _SchemaField]:
    """The fields that an instance is made of."""
    if is_model(cls):
        return {
            name: _SchemaField(info.annotation, info.description or "", _bound(info.metadata))
            for name, info in cls.model_fields.items()
        }
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
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
    return {name: _SchemaField(hints[name]) for name in names}


def _register(cls: Any, names: tuple[str, ...]) -> None:
    with contextlib.suppress(ValueError):  # it is registered
        jax.tree_util.register_dataclass(cls, data_fields=names, meta_fields=())


def _register_model(cls: Any, names: tuple[str, ...]) -> None:
    with contextlib.suppress(ValueError):  # it is registered
        jax.tree_util.register_pytree_with_keys(
            cls,
            lambda model: (tuple((jax.tree_util.GetAttrKey(name), getattr(model, name)) for name in names), None),
            lambda _, values: cls.model_construct(**dict(zip(names, values, strict=True))),
        )


def _part_of(cls: Any, name: str, field: _SchemaField, within: tuple[Any, ...]) -> SchemaPart:
    part = _part(field.hint, within, field.most)
    if part is None:
        _refuse(cls, name, field.hint)
    return part


def _part(hint: Any, within: tuple[Any, ...], most: int | None = None) -> SchemaPart | None:
    """What an annotation says; `None` if no answer can be it. `most` is the bound of a list that stands around it."""
    if typing.get_origin(hint) is typing.Annotated:
        return _annotated(hint, within, most)
    if hint in (list, tuple):
        return None
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _one_of(tuple(member.value for member in hint))
    if isinstance(hint, type | TextAnnotation):
        leaf = _leaf(hint)
        if leaf is not None:
            return _of_leaf(leaf)
        return SchemaPart(*_schema(hint, within)) if _is_record(hint) else None
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        known = tuple(member for member in inner if member is not None)
        return _perhaps(_one_of(known)) if len(known) < len(inner) else _one_of(known)
    if origin in (typing.Union, types.UnionType):
        known = [option for option in inner if option is not types.NoneType]
        return _perhaps(_part(known[0], within, most)) if len(known) == 1 else None
    if origin is Maybe:
        return _perhaps(_part(inner[0], within, most))
    if origin in _LISTS or (origin is tuple and inner[1:] == (...,)):
        of = _part(inner[0], within)
        return of and _several(of, most or MOST)
    return None


_LISTS = (list, Sequence, Many)


def _annotated(hint: Any, within: tuple[Any, ...], most: int | None) -> SchemaPart | None:
    part = _part(typing.get_args(hint)[0], within, _bound(hint.__metadata__) or most)
    if part is not None and any(isinstance(word, Bound) for word in hint.__metadata__):
        of = part.node.of if isinstance(part.node, Perhaps) else part.node
        return part if isinstance(of, Several) else None
    return part


def _bound(words: Sequence[Any]) -> int | None:
    """The bound of a list among what stands beside its annotation, `at_most` or pydantic's `max_length`."""
    bounds = [word.most if isinstance(word, Bound) else getattr(word, "max_length", None) for word in words]
    return min((bound for bound in bounds if isinstance(bound, int) and bound > 0), default=None)


def _leaf(hint: Any) -> Leaf | None:
    if isinstance(hint, TextAnnotation):
        sizes = _sizes(hint.dimensions)
        return None if sizes is None else Leaf(_STRING, sizes)
    if hint in _SCALARS:
        return Leaf(_SCALARS[hint])
    if issubclass(hint, AbstractArray):
        # By name; one of them is that in which answers come.  `Shaped` takes any and has no list.
        names = hint.dtypes if isinstance(hint.dtypes, list | tuple) else ()
        kinds = [kind for kind, dtype in _DTYPES.items() if dtype.name in names]
        sizes = _sizes(hint.dim_str)
        return Leaf(kinds[0], sizes) if kinds and sizes is not None else None
    return None


def _sizes(dimensions: str) -> tuple[int, ...] | None:
    sizes = dimensions.split()
    return tuple(map(int, sizes)) if all(size.isdecimal() and int(size) for size in sizes) else None


def _of_leaf(leaf: Leaf) -> SchemaPart:
    return SchemaPart(leaf, (lambda arrays: Text(next(arrays))) if leaf.kind == _STRING else next)


def _one_of(members: tuple[Any, ...]) -> SchemaPart | None:
    for kind, scalar in ((_STRING, str), ("integer", int)):
        if members and all(type(member) is scalar for member in members):
            return _of_leaf(Leaf(kind, (), members))
    return None


def _perhaps(of: SchemaPart | None) -> SchemaPart | None:
    if of is None or isinstance(of.node, Perhaps):
        return of

    def make(arrays: Iterator[Any]) -> Any:
        is_there = next(arrays)
        return Maybe(of.make(arrays), is_there)

    return SchemaPart(Perhaps(of.node), make)


def _several(of: SchemaPart, most: int) -> SchemaPart:
    def make(arrays: Iterator[Any]) -> Any:
        length = next(arrays)
        return Many(of.make(arrays), length)

    return SchemaPart(Several(of.node, most), make)


def _refuse(cls: Any, name: str, hint: Any) -> NoReturn:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        advice = "A field is of one type, or of one and None: make a field of each, all but one of them None."
    else:
        advice = (
            "A field is a Text, str, float, int or bool; a Literal or an Enum of strings or of whole numbers; "
            'Text["3"], Float[Array, "3"], Int[Array, "3"] or Bool[Array, "3"] with its sizes as numbers; a list of '
            "these, as `list[str]` or `Annotated[list[str], ember.at_most(5)]`; another class of such fields; or one "
            "of these or None."
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
    return {"type": "json_schema", "json_schema": {"name": name, "schema": _json_schema(record), "strict": True}}


def _json_schema(node: SchemaNode, description: str = "") -> dict[str, Any]:
    """A schema in JSON, of the kind that services call strict: all fields are required."""
    match node:
        case Record():
            described = description or node.description
            return {
                "type": "object",
                **({"description": described} if described else {}),
                "properties": {name: _json_schema(what, words) for name, words, what in node.fields},
                "required": [name for name, _, _ in node.fields],
                "additionalProperties": False,
            }
        case Perhaps():
            schema: dict[str, Any] = {"anyOf": [_json_schema(node.of), {"type": "null"}]}
        case Several():
            schema = {"type": "array", "items": _json_schema(node.of), "maxItems": node.most}
        case Leaf():
            schema = {"type": node.kind, **({"enum": list(node.members)} if node.members else {})}
            for size in reversed(node.shape):
                schema = {"type": "array", "items": schema, "minItems": size, "maxItems": size}
    return {**schema, "description": description} if description else schema


# -- from an answer --------------------------------------------------------------------------------------------------

_FENCE = regex(r"^```(?:json)?[ \t]*\n(.*?)\n```[ \t]*$", re.DOTALL | re.MULTILINE | re.IGNORECASE)
_THINKING, _THOUGHT = (regex(rf"<{slash}(?:think|thinking|thought|reasoning)>", re.IGNORECASE) for slash in ("", "/"))
_OBJECT = regex(r"\{\s*+[\"}]")
_MOST_ATTEMPTS = 1000
# A guess, by the words alone.
CUT = " (cut off? give more max_tokens)"


class NoJSON(Misfit):
    """Words that are no JSON."""


def read(record: Record, answer: str, check: Check | None = None) -> tuple[list[np.ndarray], list[str]]:
    """The arrays of a record's leaves, from an answer in JSON, and what was passed over to read it.

    Words may stand around the JSON, such as thoughts before it or a fence around it, if there is no doubt which it is.
    It may have more fields than the record. What fits is given to `check`, and what that makes of it is read.

    **Raises:** `Misfit`, which names the field, for an answer of any other form; what `check` raises.
    """
    columns, notes = _found(record, answer, check)
    return [_array(leaf, column, notes) for leaf, column in zip(record.leaves, columns, strict=True)], notes


LeafColumns: TypeAlias = list[list[Any]]


def _found(record: Record, answer: str, check: Check | None) -> tuple[LeafColumns, list[str]]:
    """For each leaf the values of its elements; and notes."""
    try:
        value = _parsed(answer)
    except NoJSON as error:
        return _within(record, answer, error, check)
    return _checked(record, value, check)


def _checked(record: Record, value: Any, check: Check | None) -> tuple[LeafColumns, list[str]]:
    """Likewise of a JSON value."""
    columns, notes = _columns(record, value)
    if check is None:
        return columns, notes
    made = check(value)
    try:
        return _columns(record, made)[0], notes
    except Misfit as misfit:
        raise ValidatorError(
            f"a validator of {record.name} has made of an answer what its schema cannot hold: {misfit}. Mend the "
            "validator: the answer is kept, and a rerun reads it."
        ) from None


def _within(record: Record, answer: str, error: NoJSON, check: Check | None) -> tuple[LeafColumns, list[str]]:
    """Likewise of the one object that stands among other words and fits. `error` is why the whole is no JSON."""
    fitting: list[tuple[LeafColumns, list[str]]] = []
    misfit: Misfit = error
    words, is_as_asked = _said(answer)
    for value in _objects(words):
        try:
            fitting.append(_checked(record, value, check))
        except Misfit as why:
            misfit = why
    if not fitting:
        raise misfit
    if len(fitting) > 1:
        raise Misfit(f"it is not JSON: {len(fitting)} objects in it fit, and one is meant")
    ((columns, notes),) = fitting
    return columns, notes if is_as_asked else ["words around its JSON", *notes]


def _said(answer: str) -> tuple[str, bool]:
    """What an answer says, without the thoughts before it; if one fenced block is in it, what is in the block.

    Returns as well whether that is no more than one expects: a block without thoughts.
    """
    end = _THOUGHT.search(answer)
    if end is None and _THINKING.match(answer.lstrip()):
        raise Misfit(f"it ends within the model's thoughts{CUT}")
    rest = answer[end.end() :] if end else answer
    blocks = _FENCE.findall(rest)
    return (blocks[0], end is None) if len(blocks) == 1 else (rest, False)


def _objects(words: str) -> Iterator[Any]:
    """The JSON objects among other words, the outermost ones."""
    at = 0
    # The number of attempts is bounded, as each takes time for all words that stand before it.
    for _ in range(_MOST_ATTEMPTS):
        begin = _OBJECT.search(words, at)
        if begin is None:
            return
        try:
            value, at = _decoded(_DECODER.raw_decode, words, begin.start())
            yield value
        except json.JSONDecodeError as error:
            if error.msg.startswith("Unterminated string") or error.pos >= len(words.rstrip()):
                return  # it was an object until its end, which is cut off
            # Until there it was an object. So the objects in it were parts of that, and not meant by themselves.
            at = max(error.pos, begin.start() + 1)


def _parsed(words: str) -> Any:
    try:
        return _decoded(_DECODER.decode, words)
    except json.JSONDecodeError as error:  # its message tells the place, and none of the words
        raise NoJSON(f"it is not JSON: {error}{CUT if words.lstrip().startswith('{') else ''}") from None


def _decoded(decode: Callable[..., Any], *args: Any) -> Any:
    try:
        return decode(*args)
    except RecursionError:
        raise Misfit("it is nested too deeply") from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise Misfit(f"it is not JSON: {error}") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise Misfit("a field stands in it twice")
    return fields


_DECODER = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_distinct)


def _columns(record: Record, value: Any) -> tuple[LeafColumns, list[str]]:
    columns: LeafColumns = [[] for _ in record.leaves]
    notes: list[str] = []
    _put(record, value, "", columns, notes)
    return columns, notes


def _put(node: SchemaNode, value: Any, path: str, columns: LeafColumns, notes: list[str]) -> None:
    """Adds the elements of a value to the columns of the node's leaves, which are the first of `columns`."""
    match node:
        case Leaf():
            columns[0].extend(_elements(node, node.shape, value, path))
        case Record():
            _put_fields(node, value, path, columns, notes)
        case Perhaps():
            columns[0].append(value is not None)
            if value is None:
                _put_nothing(node.of, columns[1:])
            else:
                _put(node.of, value, path, columns[1:], notes)
        case Several():
            if not isinstance(value, list) or len(value) > node.most:
                raise Misfit(f"{_at(path)} is {_kind(value)}, not a list of at most {node.most}")
            columns[0].append(len(value))
            for i, inner in enumerate(value):
                _put(node.of, inner, f"{path}[{i}]", columns[1:], notes)
            _put_nothing(node.of, columns[1:], node.most - len(value))


def _put_fields(record: Record, value: Any, path: str, columns: LeafColumns, notes: list[str]) -> None:
    if not isinstance(value, dict):
        raise Misfit(f"{_at(path)} is {_kind(value)}, not an object")
    at, missing = 0, 0
    for name, _, what in record.fields:
        inner = f"{path}.{name}" if path else name
        if name not in value:
            if not isinstance(what, Perhaps):
                raise Misfit(f"{_at(inner)} is missing")
            missing += 1
        _put(what, value.get(name), inner, columns[at:], notes)
        at += len(what.leaves)
    more = len(value) - len(record.fields) + missing
    if more:
        notes.append(f"{more} more field{'s' * (more > 1)} than the schema has")


def _put_nothing(node: SchemaNode, columns: LeafColumns, times: int = 1) -> None:
    for leaf, column in zip(node.leaves, columns, strict=False):
        column.extend([_NOTHING[leaf.kind]] * (times * math.prod(leaf.shape)))


def _array(leaf: Leaf, column: list[Any], notes: list[str]) -> np.ndarray:
    if leaf.kind != _STRING:
        return np.asarray(column, _DTYPES[leaf.kind]).reshape(leaf.shape)
    words = np.empty(len(column), object)
    words[:] = column
    try:
        return store.put_array(words).reshape(leaf.aval.shape)
    except TextError:  # half of a surrogate pair, which is not valid Unicode
        words[:] = [word.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for word in column]
        notes.append("half of a surrogate pair")
        return store.put_array(words).reshape(leaf.aval.shape)


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
