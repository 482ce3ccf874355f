"""Values and their types as the host sees them: a key is its key data, and nothing is sharded."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray

from .._types import is_key

Aval = jax.ShapeDtypeStruct


def is_ref(value: Any) -> bool:
    """Whether a value or a variable is a mutable array, of `jax.new_ref`. (Its type has no public name.)"""
    return type(getattr(value, "aval", None)).__name__ == "AbstractRef"


def is_inexact(aval: Any) -> bool:
    """Whether an abstract value holds floating-point or complex numbers."""
    return not is_key(aval) and jnp.issubdtype(aval.dtype, jnp.inexact)


def with_shape(aval: Any, shape: Sequence[int]) -> Any:
    """The type of arrays of such entries and another shape, of which is not said where they lie."""
    return ShapedArray(tuple(shape), aval.dtype, weak_type=aval.weak_type)


def raw_aval(aval: Any) -> Aval:
    """Shape and dtype of a value as the host sees it: keys are their key data."""
    if is_key(aval):
        data = jax.eval_shape(jax.random.key_data, Aval(aval.shape, aval.dtype))
        return Aval(data.shape, data.dtype)
    return Aval(aval.shape, aval.dtype)


def to_raw(value: Any) -> Any:
    """A value as the host sees it."""
    return jax.random.key_data(value) if is_key(jax.typeof(value)) else value


def from_raw(value: Any, aval: Any) -> Any:
    """The inverse of `to_raw`: a value of the type that the program gives it.

    Key data are wrapped again, by the dtype. Inside a `shard_map` a value is typed as varying over the mesh if the
    program says so; a callback's result, which JAX types as the same everywhere, is not of itself.
    """
    if is_key(aval):
        value = jax.random.wrap_key_data(value, impl=_implementation(aval.dtype))
    return vary(value, aval.manual_axis_type.varying)


@functools.lru_cache(maxsize=64)
def _implementation(dtype: Any) -> Any:
    """The PRNG implementation behind a key dtype, which only an array of keys will tell."""
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), Aval((), dtype))
    return found[0]


def varying(values: Any) -> frozenset[Any]:
    """The axes of a `shard_map` over which any of some values is typed as varying."""
    return frozenset[Any]().union(*(jax.typeof(v).manual_axis_type.varying for v in values))


def vary(value: Any, axes: frozenset[Any]) -> Any:
    """A value typed as varying over some axes of a `shard_map`, which is where gradients are summed over them."""
    missing = axes - jax.typeof(value).manual_axis_type.varying if axes else axes
    return jax.lax.pcast(value, tuple(sorted(missing, key=str)), to="varying") if missing else value
