"""`jit`: any function as an operator, without annotations."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from .. import _callback
from .._jax.internals import jit_is_disabled, mapped
from .boundary import Boundary
from .traced import explained, name_of


def jit(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function, or an operator, into a plan: its calls run at once where their data allow.

    Like `equinox.filter_jit` it takes and returns any pytrees: arrays (and Text) are traced, everything else is static.
    What `jax.vmap` returned is taken apart, so that its lanes go through the function at their own pace.
    A string among the arguments is static; pass `ember.text(...)` for words that vary.

    **Returns:** a function of the same arguments, to be used under every JAX transformation. Under
    `jax.disable_jit()` it runs line by line.

    **Raises:** when called, what the calls raised, with its own type.
    """
    # `jax.vmap(f)`, called in a function that is traced, batches `f`: its branches become selections, and each of its
    # steps waits for the slowest lane of the one before. The other way round lanes stay lanes; the values are the same.
    unmapped = mapped(fn)
    if unmapped is not None:
        inner, how = unmapped
        return jax.vmap(jit(inner), **how)
    boundary = boundary_for(fn)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        if jit_is_disabled() and _callback.all_concrete((args, kwargs)) and _callback.is_eager():
            return fn(*args, **kwargs)
        return boundary(*args, **kwargs)

    return call


def boundary_for(fn: Callable[..., Any]) -> Boundary:
    """A boundary of its own for a function."""
    name = name_of(fn)

    def traced(*args: Any, **kwargs: Any) -> Any:
        with explained(name):
            return fn(*args, **kwargs)

    return Boundary(traced, name)
