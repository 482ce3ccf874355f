"""JAX's checks for NaN and infinity, `jax_debug_nans` and `jax_debug_infs`: when they are on, and what they spare."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from .internals import same_nan_hook


def _flags() -> Any:
    return jax.config  # whose types do not show its attributes, one for each flag


def is_nan_checked() -> bool:
    """Whether JAX is told to raise where a computation gives NaN, or infinity."""
    return bool(_flags().jax_debug_nans or _flags().jax_debug_infs)


def is_refused(array: Any) -> bool:
    """Whether floating-point numbers hold what JAX is told to raise for."""
    numbers = np.asarray(array)
    nan = _flags().jax_debug_nans and np.isnan(numbers).any()
    return bool(nan or (_flags().jax_debug_infs and np.isinf(numbers).any()))


@contextlib.contextmanager
def nan_is_a_value() -> Iterator[None]:
    """Within, JAX lets NaN pass: from the host it comes as a value (a price nobody knows, a number that is not there).

    JAX's check is meant for computations, where it is a mistake.
    """
    if not is_nan_checked():
        yield
        return
    with same_nan_hook(), jax.debug_nans(False), jax.debug_infs(False):
        yield
