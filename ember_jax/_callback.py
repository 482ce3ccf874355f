"""The one door between JAX and the host: the only file that binds `jax.pure_callback` and `io_callback`.

Design note. Everything that leaves XLA is an instance of `HostFunction`: a text operation, a host call, an LLM
call, an operator's island. It is bound as the callback itself, so lowering recognises it by looking at an
equation's `callback` parameter and needs no primitive of our own. Instances compare by value, because JAX keys
its caches by the callback: an object that differs from call to call compiles again each time.
"""

import abc
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import io_callback

from ._jax.internals import INLINED, constants_stay_concrete, device_array, is_tracer
from ._jax.nan import nan_is_a_value
from ._jax.values import vary, varying


class HostFunction(abc.ABC):
    """A Python callable on NumPy arrays that JAX programs may call.

    Subclasses are hashable by value.
    """

    @abc.abstractmethod
    def __call__(self, *arrays: Any) -> Sequence[np.ndarray]:
        """Runs inside JAX, on concrete arrays that may have leading batch axes, the same ones on every argument."""


class EagerFunction(HostFunction):
    """A host function that is also called line by line, where nothing is traced."""

    @abc.abstractmethod
    def call_now(self, *arrays: Any) -> Sequence[np.ndarray]:
        """Runs from ordinary Python, outside any JAX program."""


def is_eager() -> bool:
    """Whether no trace is active, so that a host call may be made line by line, now.

    The inputs do not tell: a literal under `jax.jit` looks concrete, and a call made on it would be paid at trace
    time. Whether an operation on constants yields a tracer does tell. (Under an eager `jax.vmap` or `jax.grad`
    constants stay concrete; there the inputs decide, see `all_concrete`.)
    """
    return constants_stay_concrete()


def is_now(arrays: Sequence[Any]) -> bool:
    """Whether a host call on some arrays is made line by line, now."""
    return all_concrete(arrays) and is_eager()


def all_concrete(tree: Any) -> bool:
    """Whether no leaf of a pytree is a tracer."""
    return not any(map(is_tracer, jax.tree.leaves(tree)))


def bind(
    function: HostFunction, out: Sequence[jax.ShapeDtypeStruct], *arrays: Any, effectful: bool = False
) -> tuple[jax.Array, ...]:
    """Binds a host function into the JAX program that is being traced; `out` is what it returns here.

    Inputs are behind `stop_gradient`: words have no derivative, and a callback has none to give. Under `vmap` the
    function gets every argument with the batch axes in front.
    """
    return _bound(function, tuple(out), effectful, *(jax.lax.stop_gradient(a) for a in arrays))


@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=INLINED)
def _bound(function: HostFunction, out: tuple[Any, ...], effectful: bool, *inputs: Any) -> tuple[jax.Array, ...]:
    if effectful:
        results = io_callback(function, out, *inputs, ordered=False)
    else:
        results = jax.pure_callback(function, out, *inputs, vmap_method="broadcast_all")
    # JAX 0.10 types a callback's result, where it is returned as it is and inputs are sharded, by a sharding that no
    # other program accepts ("Cannot convert GSPMDSharding"); behind a barrier, in the same program, it chooses one.
    return tuple(jax.lax.optimization_barrier(r) for r in results)


def invoke(
    function: EagerFunction, out: Sequence[jax.ShapeDtypeStruct], *arrays: Any, effectful: bool = False
) -> tuple[jax.Array, ...]:
    """Calls a host function: line by line where nothing is traced, as a callback where something is."""
    if is_now(arrays):
        results = function.call_now(*(np.asarray(a) for a in arrays))
        with nan_is_a_value():
            return tuple(map(device_array, results))
    return bind_values(function, out, *arrays, effectful=effectful)


def bind_values(
    function: HostFunction, out: Sequence[jax.ShapeDtypeStruct], *arrays: Any, effectful: bool = False
) -> tuple[jax.Array, ...]:
    """Binds a host function whose NaN are values, as `bind` does, also in a `shard_map`."""
    # In a `shard_map` JAX types a callback's results as the same on every device; they differ where its inputs do.
    axes = varying(arrays)
    with nan_is_a_value():
        return tuple(vary(result, axes) for result in bind(function, out, *arrays, effectful=effectful))
