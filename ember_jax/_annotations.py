"""An operator's annotations as its specification: what goes in, what comes out, checked where it happens.

Dimensions are jaxtyping's: within one call a name such as `n` has one size, across inputs and outputs.
"""

import collections.abc
import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import AbstractArray, jaxtyped

from ._jax.values import own_class
from ._text.text import Text, TextAnnotation, text
from ._types import Key, key_problem
from .errors import AnnotationError

_SCALARS: dict[Any, Any] = {bool: jnp.bool_, int: jnp.integer, float: jnp.floating, complex: jnp.complexfloating}


def require(fn: Callable[..., Any], name: str, skip_first: bool) -> None:
    """Raises `AnnotationError` unless every parameter and the result of `fn` are annotated."""
    signature = inspect.signature(fn)
    missing = [
        p.name
        for p in list(signature.parameters.values())[int(skip_first) :]
        if p.annotation is inspect.Parameter.empty
    ]
    if missing or signature.return_annotation is inspect.Signature.empty:
        what = ", ".join(f"`{m}`" for m in missing) or "the result"
        raise AnnotationError(
            f"{name} does not annotate {what}. An operator's annotations are its input and output specification, as "
            "in `def forward(self, question: ember.Text, key: ember.Key) -> ember.Text`; arrays are annotated with "
            'jaxtyping, as in `Float[Array, "n"]`. `ember.jit` takes functions without annotations.'
        )


@dataclasses.dataclass(frozen=True)
class Specification:
    """The annotated signature of an operator."""

    name: str
    signature: inspect.Signature
    hints: dict[str, Any]

    @classmethod
    def of(cls, fn: Callable[..., Any], name: str, skip_first: bool) -> "Specification":
        """Reads a function's annotations; those that are strings are resolved where the function is defined.

        **Raises:** `AnnotationError` for one that names something that cannot be found from there.
        """
        signature = inspect.signature(fn)
        if skip_first:
            signature = signature.replace(parameters=list(signature.parameters.values())[1:])
        function: Any = inspect.unwrap(fn)
        closure = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
        try:
            hints = typing.get_type_hints(fn, localns=closure, include_extras=False)
        except NameError as error:
            raise AnnotationError(
                f"an annotation of {name} names {error.name!r}, which cannot be found from the module that defines "
                f"{name}. Import it there, or define {name} without `from __future__ import annotations`."
            ) from None
        return cls(name, signature, hints)

    def bind(self, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments in the form the annotations ask for: strings become Text, Python numbers arrays.

        **Raises:** `AnnotationError` for arguments that do not fit the signature.
        """
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise AnnotationError(f"{self.name}{self.signature}: {error}.") from None
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            kind = self.signature.parameters[name].kind
            hint = self.hints[name]
            if kind is inspect.Parameter.VAR_POSITIONAL:
                bound.arguments[name] = tuple(_convert(v, hint) for v in value)
            elif kind is inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = {k: _convert(v, hint) for k, v in value.items()}
            else:
                bound.arguments[name] = _convert(value, hint)
        return bound.args, bound.kwargs

    def run(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls a function with its inputs and outputs checked.

        **Raises:** `AnnotationError` naming the argument, what it is annotated as, and what came.
        """
        bound = self.signature.bind(*args, **kwargs)
        with jaxtyped("context"):  # one scope of dimension names
            for name, value in bound.arguments.items():
                kind = self.signature.parameters[name].kind
                if kind is inspect.Parameter.VAR_POSITIONAL:
                    values = [(f"{name}[{i}]", v) for i, v in enumerate(value)]
                elif kind is inspect.Parameter.VAR_KEYWORD:
                    values = list(value.items())
                else:
                    values = [(name, value)]
                for label, one in values:
                    self._check(one, self.hints[name], f"the argument `{label}` of {self.name}")
            hint = self.hints["return"]
            result = _convert(fn(*args, **kwargs), hint)
            self._check(result, hint, f"the result of {self.name}")
            return result

    def _check(self, value: Any, hint: Any, where: str) -> None:
        problem = _problem(value, hint)
        if problem:
            raise AnnotationError(f"{where} is annotated {shown(hint)}, but is {problem}.")


def _convert(value: Any, hint: Any) -> Any:
    """A value in the form an annotation asks for, where there is only one way to bring it there."""
    hint = _bare(hint)
    if isinstance(value, str) and _takes_text(hint):
        return text(value)
    if isinstance(value, list | tuple) and isinstance(hint, TextAnnotation) and _all_strings(value):
        return text(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "OUT":
        return text(value) if isinstance(hint, TextAnnotation) else value
    if isinstance(value, np.ndarray | np.generic) or (
        isinstance(value, bool | int | float | complex) and _takes_array(hint)
    ):
        # Never weakly typed: line by line, a number would promote otherwise than when it is traced.
        strong = None if isinstance(value, np.ndarray | np.generic) else jnp.result_type(type(value))
        array = jnp.asarray(value, strong)
        floats = getattr(hint, "dtypes", ())
        if isinstance(value, int) and floats and array.dtype.name not in floats and "float32" in floats:
            array = jnp.asarray(value, jnp.result_type(float))
        return array
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (list, collections.abc.Sequence) and isinstance(value, list) and inner:
        return [_convert(v, inner[0]) for v in value]
    if origin is dict and isinstance(value, dict) and inner:
        return {k: _convert(v, inner[1]) for k, v in value.items()}
    if origin is tuple and isinstance(value, tuple) and not hasattr(value, "_fields"):
        hints = inner[:1] * len(value) if inner[1:] == (...,) else inner
        if len(hints) == len(value):
            return tuple(_convert(v, h) for v, h in zip(value, hints, strict=True))
    return value


def _problem(value: Any, hint: Any) -> str | None:
    """What keeps a value from fitting an annotation, or `None`."""
    hint = _bare(hint)
    if hint is Any or hint is object or isinstance(hint, typing.TypeVar):
        return None
    if hint is None or hint is type(None):
        return None if value is None else _describe(value)
    if hint is Text:
        if not isinstance(value, Text):
            return _describe(value)
        if value.shape:
            return f'{_describe(value)}: one string is meant. Use jax.vmap, or annotate Text["n"] to take an array'
        return None
    if isinstance(hint, TextAnnotation):
        leaf: Any = hint.leaf
        return None if isinstance(value, Text) and isinstance(_typed_leaf(value), leaf) else _describe(value)
    if hint is Key:
        return key_problem(value)
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return None if isinstance(value, hint) else _describe(value)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        problems = [_problem(value, option) for option in inner]
        return None if None in problems else problems[0]
    if origin is typing.Literal:
        return None if value in inner else _describe(value)
    if origin in (list, collections.abc.Sequence):
        if not isinstance(value, list | tuple):
            return _describe(value)
        return _first(f"a list whose element {i} is {p}" for i, v in enumerate(value) if (p := _problem(v, inner[0])))
    if origin is dict:
        if not isinstance(value, dict):
            return _describe(value)
        return _first(f"a dict whose {k!r} is {p}" for k, v in value.items() if (p := _problem(v, inner[1])))
    if origin is tuple:
        return _tuple_problem(value, inner)
    hint = origin or hint
    if hint in _SCALARS:
        if isinstance(value, jax.Array):
            kinds = (jnp.integer, jnp.floating) if hint is float else (_SCALARS[hint],)
            fits = value.ndim == 0 and any(jnp.issubdtype(value.dtype, k) for k in kinds)
        else:
            fits = isinstance(value, hint) or (hint is float and isinstance(value, int))
        return None if fits else _describe(value)
    return None if not isinstance(hint, type) or isinstance(value, hint) else _describe(value)


def _tuple_problem(value: Any, inner: tuple[Any, ...]) -> str | None:
    if not isinstance(value, tuple):
        return _describe(value)
    hints = inner[:1] * len(value) if inner[1:] == (...,) else inner
    if len(hints) != len(value):
        return f"a tuple of {len(value)}"
    pairs = zip(value, hints, strict=True)
    return _first(f"a tuple whose element {i} is {p}" for i, (v, h) in enumerate(pairs) if (p := _problem(v, h)))


def _first(problems: Any) -> str | None:
    return next(iter(problems), None)


def _typed_leaf(value: Text) -> Any:
    return jnp.asarray(value.digests)


def _bare(hint: Any) -> Any:
    hint = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        array, of = hint.array_type, own_class(hint.array_type)  # type: ignore[attr-defined]
        return hint if array is of else hint.dtype[of, hint.dim_str]  # type: ignore[attr-defined]
    return own_class(hint)


def _takes_text(hint: Any) -> bool:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        return str not in options and any(map(_takes_text, options))
    return hint is Text or isinstance(hint, TextAnnotation)


def _takes_array(hint: Any) -> bool:
    return hint is jax.Array or (isinstance(hint, type) and issubclass(hint, AbstractArray))


def _all_strings(value: Any) -> bool:
    return all(isinstance(v, str) or (isinstance(v, list | tuple) and _all_strings(v)) for v in value)


def _describe(value: Any) -> str:
    if isinstance(value, Text):
        return f"Text{list(value.shape)}"
    if isinstance(value, jax.Array | np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return f"{value!r:.60} of type {type(value).__name__}" if value is not None else "None"


def shown(hint: Any) -> str:
    """An annotation as it is written."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return f'{hint.__name__.split("[")[0]}[Array, "{hint.dim_str}"]'  # type: ignore[attr-defined]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(shown, inner))
    if origin in (tuple, list, dict):
        return f"{origin.__name__}[{', '.join(map(shown, inner))}]"
    if hint is Ellipsis or hint is types.NoneType:
        return "..." if hint is Ellipsis else "None"
    return "Key" if hint is Key else hint.__name__ if isinstance(hint, type) else str(hint)
