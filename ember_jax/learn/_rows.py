"""What searches do with one row: ask an operator, score its answer, and tell failures from numbers."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._enclosing import attempt
from .._text.operations import fold_in
from .._text.text import Text
from .._types import Key


def takes_key(op: Callable[..., Any]) -> bool:
    """Whether an operator has an argument `key`."""
    return "key" in inspect.signature(op).parameters


def row_keys(key: Key, questions: Text) -> Key:
    """A key for each row, folded from its question, so that rows may come and go."""
    return jax.vmap(lambda question: fold_in(key, question))(questions)


def number(fn: Callable[..., Any], *args: Any) -> jax.Array:
    """What a function or an operator gives, as a float; NaN if it fails."""
    return attempt(lambda *args: jnp.asarray(fn(*args), jnp.float32))(*args)[0]
