"""Values and their types, as JAX has them and as the host sees them ("raw"): there a key is its key data."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray

from .._types import is_key

Aval = jax.ShapeDtypeStruct


def own_class(cls: Any) -> Any:
    """The class itself, or `jax.Array` in place of a copy of it.

    JAX 0.10 gives its class of arrays a name that Python does not find it by. So cloudpickle, which takes along what it
    cannot name, sends a copy of the class with an operator that is annotated with it, and no array is an instance of
    the copy. In JAX 0.12 the class is found by its name.
    """
    names = (getattr(cls, "__module__", None), getattr(cls, "__qualname__", None))
    return jax.Array if names == (jax.Array.__module__, jax.Array.__qualname__) else cls


def is_ref(value: Any) -> bool:
    """Whether a value or a variable is a mutable array, of `jax.new_ref`. (Its type has no public name.)"""
    return type(getattr(value, "aval", None)).__name__ == "AbstractRef"


def is_inexact(aval: Any) -> bool:
    """Whether an abstract value holds floating-point or complex numbers."""
    return not is_key(aval) and jnp.issubdtype(aval.dtype, jnp.inexact)


def with_shape(aval: Any, shape: Sequence[int]) -> Any:
    """An abstract value like `aval` with another shape and without a sharding."""
    return ShapedArray(tuple(shape), aval.dtype, weak_type=aval.weak_type)


def raw_aval(aval: Any) -> Aval:
    """Shape and dtype of a value as the host sees it. Keys become their key data, which has axes more, for one key."""
    if is_key(aval):
        data = jax.eval_shape(jax.random.key_data, Aval(aval.shape, aval.dtype))
        return Aval(data.shape, data.dtype)
    return Aval(aval.shape, aval.dtype)


def to_raw(value: Any) -> Any:
    """A value as the host sees it: the key data of a key, and any other value as it is."""
    return jax.random.key_data(value) if is_key(jax.typeof(value)) else value


def from_raw(value: Any, aval: Any) -> Any:
    """The inverse of `to_raw`: a value of the type `aval`, which the program gives it.

    Key data are wrapped as keys of the implementation that the dtype names. Inside a `shard_map` the value is cast to
    vary over the mesh axes that `aval` varies over. The cast is needed because JAX types a callback's result as the
    same on every device.
    """
    if is_key(aval):
        value = jax.random.wrap_key_data(value, impl=_implementation(aval.dtype))
    return vary(value, aval.manual_axis_type.varying)


@functools.lru_cache(maxsize=64)
def _implementation(dtype: Any) -> Any:
    """The PRNG implementation of a key dtype. JAX tells it only of an array of keys, so an abstract one is made."""
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), Aval((), dtype))
    return found[0]


def varying(values: Any) -> frozenset[Any]:
    """The mesh axes of a `shard_map` over which at least one of the values is typed as varying."""
    return frozenset[Any]().union(*(jax.typeof(v).manual_axis_type.varying for v in values))


def vary(value: Any, axes: frozenset[Any]) -> Any:
    """A value cast to vary over mesh axes of a `shard_map`. The cast's transpose sums gradients over these axes."""
    missing = axes - jax.typeof(value).manual_axis_type.varying if axes else axes
    return jax.lax.pcast(value, tuple(sorted(missing, key=str)), to="varying") if missing else value
