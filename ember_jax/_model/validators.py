"""The validators of a pydantic model, run on an answer that fits the schema.

Design note. An answer is read as JSON first, and what does not fit the schema is told in our own words. What fits is
given to pydantic as JSON: constraints (`gt`, `pattern`, …) and validators see what they would see in a program that
parses the answer itself, and what they make of it is what is read. A model without any is not asked, and its class is
no part of the program: one that is defined anew is the same.

What a validator refuses is an answer that does not fit, whose fault the model is told in the validator's own words. Any
other exception, and a value that the schema cannot hold, is a fault of the validator: the answer is kept as a good one,
so that a rerun with a mended validator pays for nothing.

Pydantic is no dependency: who has such a class has imported it.
"""

import dataclasses
import enum
import json
import sys
import typing
from collections.abc import Iterator
from typing import Any

from jaxtyping import AbstractArray

from .._text.maybe import Many, Maybe
from .._text.text import Text, TextAnnotation
from ..errors import AnnotationError, ValidatorError
from .schema import Leaf, Misfit, Perhaps, Record, SchemaNode, Several, is_model

# How many of the faults of an answer a model is told.
_MOST_FAULTS = 3
# What pydantic writes before the words of a validator.
_PREFIXES = ("Value error, ", "Assertion failed, ")


@dataclasses.dataclass(frozen=True)
class Validators:
    """Those of a pydantic model whose answers have the form of a record; `has_aliases` says whether a field has any."""

    model: Any
    record: Record
    has_aliases: bool

    def __call__(self, value: Any) -> Any:
        """What the validators make of a value that fits the record.

        **Raises:** `Misfit` if they refuse it; `ValidatorError` if one fails, or makes what no answer can be.
        """
        import pydantic

        words = json.dumps(_picked(self.record, value), ensure_ascii=False)
        words = words.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half of a surrogate pair
        # By the names that the schema has. The arguments are those of pydantic 2.11 and later.
        names = {"by_alias": False, "by_name": True} if self.has_aliases else {}
        try:
            made = self.model.model_validate_json(words, **names)
        except pydantic.ValidationError as refused:
            faults = refused.errors(include_url=False, include_context=False, include_input=False)
            more = f"; and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
            raise Misfit("; ".join(map(_told, faults[:_MOST_FAULTS])) + more) from None
        except Exception as error:
            raise ValidatorError(
                f"a validator of {self.record.name} failed on an answer: {type(error).__name__}: {error}. That is no "
                "fault of the model's, which is not asked again. Mend the validator (it refuses an answer by "
                "ValueError): the answer is kept, and a rerun reads it."
            ) from error
        return _plain(made)


def validators_of(cls: Any, record: Record) -> Validators | None:
    """The validators of a class of fields; `None` if it is no pydantic model, or has nothing to check.

    **Raises:** `AnnotationError` if they cannot be run, as a field of the class is of a type that pydantic cannot read.
    """
    if not is_model(cls):
        return None
    models = list(dict.fromkeys(_models(cls)))
    if not any(map(_has_checks, models)):
        return None
    for model in models:
        for name, field in model.model_fields.items():
            if any(map(_is_ours, _types(field.annotation))):
                raise AnnotationError(
                    f"the field `{name}` of {model.__name__} is an array or Text, which pydantic cannot read from an "
                    f"answer, and {cls.__name__} has validators or constraints. Annotate it as str, float, int or "
                    "bool, or as a list of these."
                )
    has_aliases = any(field.validation_alias for model in models for field in model.model_fields.values())
    return Validators(cls, record, has_aliases)


def _types(hint: Any) -> Iterator[Any]:
    """A type of field, and all that it is made of."""
    yield hint
    for inner in typing.get_args(hint):
        yield from _types(inner)


def _models(cls: Any) -> Iterator[Any]:
    """A pydantic model, and those that its fields hold."""
    yield cls
    for field in cls.model_fields.values():
        for hint in _types(field.annotation):
            if isinstance(hint, type) and is_model(hint):
                yield from _models(hint)


def _has_checks(model: Any) -> bool:
    """Whether a model has validators or constraints of its own."""
    found = model.__pydantic_decorators__
    if found.validators or found.field_validators or found.root_validators or found.model_validators:
        return True
    if model.model_post_init is not sys.modules["pydantic"].BaseModel.model_post_init:
        return True
    fields = model.model_fields.values()
    return any(field.metadata or any(map(_says_more, _types(field.annotation))) for field in fields)


def _says_more(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Annotated


def _is_ours(hint: Any) -> bool:
    if isinstance(hint, TextAnnotation):
        return True
    return isinstance(hint, type) and issubclass(hint, Text | AbstractArray | Maybe | Many)


def _picked(node: SchemaNode, value: Any) -> Any:
    """What a schema reads of a value that fits it."""
    match node:
        case Record():
            return {name: _picked(what, value.get(name)) for name, _, what in node.fields}
        case Several():
            return [_picked(node.of, inner) for inner in value]
        case Perhaps():
            return None if value is None else _picked(node.of, value)
        case Leaf(kind="integer"):
            return int(value)
        case Leaf():
            return value


def _plain(value: Any) -> Any:
    """A value of a model as a JSON value."""
    if is_model(type(value)):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, tuple) and (fields := getattr(value, "_fields", None)):
        return {name: _plain(inner) for name, inner in zip(fields, value, strict=True)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _told(fault: Any) -> str:
    """What is wrong with an answer, by one fault that pydantic names."""
    path = ""
    for step in fault["loc"]:
        if isinstance(step, int):
            path += f"[{step}]"
        elif str(step).isidentifier():
            path += f".{step}" if path else str(step)
    words = fault["msg"]
    for prefix in _PREFIXES:
        words = words.removeprefix(prefix)
    return f"{f'the field `{path}`' if path else 'the answer'} is refused: {words}"
