"""What searches do with one row: ask an operator, score its answer, and tell failures from numbers."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._enclosing import attempt
from .._text.operations import fold_in
from .._text.text import Text, text
from .._types import Key, key_problem


def check(score: Any, key: Key, caller: str) -> None:
    """Raises `TypeError` for a score that cannot be called, and for what is no key."""
    if not callable(score):
        raise TypeError(
            f"{caller} takes as its score a function of (answer, gold) that JAX can trace, or an operator, not "
            f"{score!r:.60}. A function of the words is an `ember.host` function: "
            '`ember.host(ember.scores.normalized, out=jax.ShapeDtypeStruct((), "float32"))`.'
        )
    if problem := key_problem(key):
        raise TypeError(f"{caller}(key=…) is {problem}.")


def columns(data: tuple[Any, Any], caller: str) -> tuple[Text, Any]:
    """Questions, and what is right, as a Text and as a Text or an array.

    **Raises:** `ValueError` for what is no pair of columns of one length, or has no rows.
    """
    # A list is one of rows: two (question, gold) pairs would pass for two columns.
    lengths = [len(column) for column in data] if isinstance(data, tuple) else []
    if len(lengths) != 2 or lengths[0] != lengths[1] or not lengths[0]:
        raise ValueError(
            f"{caller} takes data as (questions, golds), two columns of one length with at least one row, not "
            f"{f'columns of lengths {lengths}' if lengths else type(data).__name__}."
        )
    questions, golds = data
    is_words = isinstance(golds, Text) or isinstance(next(iter(golds)), str)
    return text(questions), text(golds) if is_words else jnp.asarray(golds)


def takes_key(op: Callable[..., Any]) -> bool:
    """Whether an operator has an argument `key`."""
    return "key" in inspect.signature(op).parameters


def row_keys(key: Key, questions: Text) -> Key:
    """A key for each row, folded from its question, so that rows may come and go."""
    return jax.vmap(lambda question: fold_in(key, question))(questions)


def number(fn: Callable[..., Any], *args: Any) -> jax.Array:
    """What a function or an operator gives, as a float; NaN if it fails."""
    return attempt(lambda *args: jnp.asarray(fn(*args), jnp.float32))(*args)[0]
