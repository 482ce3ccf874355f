"""The one door between JAX and the host: the only file that binds `jax.pure_callback` and `io_callback`.

Design note. Everything that leaves XLA is an instance of `HostFunction`: a text operation, a host call, an LLM
call, an operator's island. It is bound as the callback itself, so lowering recognises it by looking at an
equation's `callback` parameter and needs no primitive of our own. Instances compare by value, because JAX keys
its caches by the callback: an object that differs from call to call compiles again each time.
"""

import abc
import contextlib
import functools
import inspect
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import io_callback

# JAX copies a callback's operands on the CPU backend's thread pool, whose threads its callbacks themselves occupy: with
# as many threads as cores, an operand of a megabyte on one core waits for itself for ever, in plain JAX too (0.10.2).
# XLA sizes the pool by this variable when the backend starts; what the user has set is left alone.
os.environ.setdefault("NPROC", str(max(16, os.cpu_count() or 1)))

_ZERO = np.zeros((), np.float32)
# Frames of this file stand between XLA and a callback.
CALLBACKS_FILE = inspect.unwrap(jax.pure_callback).__code__.co_filename


class HostFunction(abc.ABC):
    """A Python callable on NumPy arrays that JAX programs may call.

    Subclasses are hashable by value.
    """

    @abc.abstractmethod
    def __call__(self, *arrays: Any) -> Sequence[np.ndarray]:
        """Runs inside JAX, on concrete arrays that may have leading batch axes, the same ones on every argument."""

    def call_now(self, *arrays: Any) -> Sequence[np.ndarray]:
        """Runs from ordinary Python, outside any JAX program."""
        return self(*arrays)


def is_eager() -> bool:
    """Whether no trace is active, so that a host call may be made line by line, now.

    The inputs do not tell: a literal under `jax.jit` looks concrete, and a call made on it would be paid at trace
    time. Whether an operation on constants yields a tracer does tell, with public API only. (Under an eager
    `jax.vmap` or `jax.grad` constants stay concrete; there the inputs decide, see `all_concrete`.)
    """
    return not isinstance(jnp.add(_ZERO, _ZERO), Tracer)


def all_concrete(tree: Any) -> bool:
    """Whether no leaf of a pytree is a tracer."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def is_nan_checked() -> bool:
    """Whether JAX is told to raise where a computation gives NaN, or infinity."""
    return jax.config.jax_debug_nans or jax.config.jax_debug_infs  # pyright: ignore[reportAttributeAccessIssue]


def is_refused(array: Any) -> bool:
    """Whether floating-point numbers hold what JAX is told to raise for."""
    numbers = np.asarray(array)
    nan = jax.config.jax_debug_nans and np.isnan(numbers).any()  # pyright: ignore[reportAttributeAccessIssue]
    return bool(nan or (jax.config.jax_debug_infs and np.isinf(numbers).any()))  # pyright: ignore[reportAttributeAccessIssue]


@contextlib.contextmanager
def nan_is_a_value() -> Iterator[None]:
    """Within, JAX lets NaN pass: from the host it comes as a value (a price nobody knows, a number that is not there).

    JAX's check is meant for computations, where it is a mistake.
    """
    if not is_nan_checked():
        yield
        return
    with jax.debug_nans(False), jax.debug_infs(False):
        yield


def bind(
    function: HostFunction, out: Sequence[jax.ShapeDtypeStruct], *arrays: Any, effectful: bool = False
) -> tuple[jax.Array, ...]:
    """Binds a host function into the JAX program that is being traced; `out` is what it returns here.

    Inputs are behind `stop_gradient`: words have no derivative, and a callback has none to give. Under `vmap` the
    function gets every argument with the batch axes in front.
    """
    return _bound(function, tuple(out), effectful, *(jax.lax.stop_gradient(a) for a in arrays))


# Inlined where it is traced, so that no function of ours stands in a program. Since JAX 0.12 `inline` is one of several
# ways, and `True` another one, which leaves the call where it is.
_INLINE: Any = jax.Inline.JAX_EARLY if hasattr(jax, "Inline") else True  # pyright: ignore[reportAttributeAccessIssue]


@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=_INLINE)
def _bound(function: HostFunction, out: tuple[Any, ...], effectful: bool, *inputs: Any) -> tuple[jax.Array, ...]:
    if effectful:
        results = io_callback(function, out, *inputs, ordered=False)
    else:
        results = jax.pure_callback(function, out, *inputs, vmap_method="broadcast_all")
    # JAX 0.10 types a callback's result, where it is returned as it is and inputs are sharded, by a sharding that no
    # other program accepts ("Cannot convert GSPMDSharding"); behind a barrier, in the same program, it chooses one.
    return tuple(jax.lax.optimization_barrier(r) for r in results)


def invoke(
    function: HostFunction, out: Sequence[jax.ShapeDtypeStruct], *arrays: Any, effectful: bool = False
) -> tuple[jax.Array, ...]:
    """Calls a host function: line by line where nothing is traced, as a callback where something is."""
    if all_concrete(arrays) and is_eager():
        results = function.call_now(*(np.asarray(a) for a in arrays))
        with nan_is_a_value():
            return tuple(map(jnp.asarray, results))
    # In a `shard_map` JAX types a callback's results as the same on every device; they differ where its inputs do.
    axes = frozenset[Any]().union(*(jax.typeof(a).manual_axis_type.varying for a in arrays))
    with nan_is_a_value():
        return tuple(vary(result, axes) for result in bind(function, out, *arrays, effectful=effectful))


def vary(value: Any, axes: frozenset[Any]) -> Any:
    """A value typed as varying over some axes of a `shard_map`, which is where gradients are summed over them."""
    missing = axes - jax.typeof(value).manual_axis_type.varying if axes else axes
    return jax.lax.pcast(value, tuple(sorted(missing, key=str)), to="varying") if missing else value
