"""JAX's checks for NaN and infinity, `jax_debug_nans` and `jax_debug_infs`: when they are on, and what they spare."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from .internals import same_nan_hook


def _flags() -> Any:
    return jax.config  # returned as `Any`: its type does not show that it has an attribute for each flag


def is_nan_checked() -> bool:
    """Whether JAX is set to raise where a computation gives NaN, or infinity."""
    return bool(_flags().jax_debug_nans or _flags().jax_debug_infs)


def is_refused(array: Any) -> bool:
    """Whether an array of floating-point numbers holds NaN or infinity that JAX is set to raise for."""
    numbers = np.asarray(array)
    nan = _flags().jax_debug_nans and np.isnan(numbers).any()
    return bool(nan or (_flags().jax_debug_infs and np.isinf(numbers).any()))


@contextlib.contextmanager
def nan_is_a_value() -> Iterator[None]:
    """A context in which JAX lets NaN and infinity pass, whatever its flags say.

    JAX's checks are meant for computations, where NaN is a mistake. What comes from the host may be NaN on purpose: a
    price that nobody knows, or a number that is not in a text.
    """
    if not is_nan_checked():
        yield
        return
    with same_nan_hook(), jax.debug_nans(False), jax.debug_infs(False):
        yield
