"""What JAX refuses in an operator, told as what to write instead: Python control flow on traced values, and strings."""

import contextlib
import itertools
import linecache
from collections.abc import Iterator
from typing import Any

import jax

from .._jax import source
from .._jax.internals import refuses_string
from ..errors import TracedControlFlowError

# `if` and `float`, `np.asarray`, `range`.
_CONVERSIONS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)

_IF = """\
    answer = jax.lax.cond(condition, lambda: when_true, lambda: when_false)
(several cases: `jax.lax.switch(index, [lambda: first, lambda: second])`; text or numbers that are there already: \
`ember.where(condition, a, b)`, `jnp.where`)"""
_WHILE = """\
    final = jax.lax.while_loop(lambda carry: condition, lambda carry: next_carry, first_carry)
(where gradients are needed: `jax.lax.scan` with a fixed length)"""
_FOR = """\
    final, outputs = jax.lax.scan(lambda carry, x: (next_carry, output), first_carry, xs)
(a traced number of turns: `jax.lax.fori_loop(0, n, lambda i, carry: next_carry, first_carry)`)"""


def name_of(fn: Any) -> str:
    """What errors, plans and results call a function or an operator."""
    return getattr(fn, "__name__", type(fn).__name__)


@contextlib.contextmanager
def explained(operator: str) -> Iterator[None]:
    """Turns JAX's errors for concrete values, and for strings, into one that names operator and line, and the fix."""
    try:
        with strings_explained(operator):
            yield
    except _CONVERSIONS as error:
        raise TracedControlFlowError(_message(operator, error)) from error
    except TracedControlFlowError as error:
        if error.args[0].startswith(_OPENING):  # told by an operator inside already
            raise
        raise TracedControlFlowError(_message(operator, error)) from error


@contextlib.contextmanager
def strings_explained(operator: str) -> Iterator[None]:
    """Turns JAX's error for a string among its arrays into one that names the operator and line and shows the fix."""
    try:
        yield
    except TypeError as error:
        if not refuses_string(error):
            raise
        line = source.of_error(error.__traceback__) or source.UNKNOWN
        raise TypeError(
            f"{operator} has a plain string where JAX takes arrays alone: in the carry of a loop, in what a branch or "
            "a loop's body returns, or among values that are mapped or traced:\n"
            f"  {line}: {_source(line)}\n"
            'Make a Text of it, as in `ember.text("")`: that is an array, and goes where strings cannot.'
        ) from error


_OPENING = "Python code in "


def _message(operator: str, error: BaseException) -> str:
    line = source.of_error(error.__traceback__) or source.UNKNOWN
    code = _source(line)
    return (
        f"{_OPENING}{operator} depends on a value that is known only when the plan runs:\n"
        f"  {line}: {code}\n{_own(error)}"
        f"While JAX traces an operator, write\n{_suggestion(code)}\n"
        "Outside every transformation, and under `jax.disable_jit()`, operators run line by line and this works."
    )


def _own(error: BaseException) -> str:
    """What an error says beyond that a value is traced: of text, and of what JAX's functions want to know."""
    if isinstance(error, TracedControlFlowError):
        return f"{error}\n"
    said = str(error).splitlines()[1:]
    told = itertools.takewhile(lambda words: not words.startswith(("The error occurred", "See ")), said)
    return "".join(f"{words}\n" for words in told)


def _suggestion(code: str) -> str:
    if code.startswith("while"):
        return _WHILE
    if code.startswith("for") or "range(" in code:
        return _FOR
    return _IF


def _source(line: source.SourceLine) -> str:
    return linecache.getline(*line).strip()
