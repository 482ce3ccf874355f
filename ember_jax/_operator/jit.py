"""`jit`: any function as an operator, without annotations."""

import functools
import importlib
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

import equinox as eqx
import jax

from .. import _callback
from .._jax.internals import jit_is_disabled, mapped
from .boundary import boundary_for
from .traced import name_of

if TYPE_CHECKING:
    from .lower import Plan

P = ParamSpec("P")
R = TypeVar("R")


class Jitted(Generic[P, R]):
    """What `jit` returns: a function, with what JAX's own compiled functions have beside it."""

    # Methods of a class and no attributes of a function: who wraps a function takes its attributes along, as `jax.jit`
    # does, whose own methods they would hide.

    def __init__(self, fn: Callable[P, R], call: Callable[P, R], clear_cache: Callable[[], None]):
        functools.update_wrapper(self, fn, updated=())
        self._fn, self._call, self._clear_cache = fn, call, clear_cache

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._call(*args, **kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<ember.jit of {name_of(self._fn)}>"

    def lower(self, *args: P.args, **kwargs: P.kwargs) -> "Plan":
        """Its plan for such arguments, as `ember.lower` gives it. Nothing is asked."""
        # Imported when it is first asked for: a program that only makes calls does not need it.
        return importlib.import_module(f"{__package__}.lower").lower(self._fn)(*args, **kwargs)

    def trace(self, *args: P.args, **kwargs: P.kwargs) -> jax.stages.Traced:
        """The JAX program that it is for such arguments, of the arrays in them; `.jaxpr` shows it. Nothing is asked."""
        call: Any = self._call
        arrays, rest = eqx.partition((args, kwargs), eqx.is_array)

        def traced(arrays: Any) -> Any:
            given, named = eqx.combine(arrays, rest)
            return eqx.filter(call(*given, **named), eqx.is_array)

        traced.__name__ = traced.__qualname__ = name_of(self._fn)
        return jax.jit(traced).trace(arrays)

    def eval_shape(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Its result with a `jax.ShapeDtypeStruct` in place of each array. Nothing is asked."""
        call: Any = self._call
        return eqx.filter_eval_shape(call, *args, **kwargs)

    def clear_cache(self) -> None:
        """Forgets what was traced and compiled for it."""
        self._clear_cache()


def jit(fn: Callable[P, R]) -> Jitted[P, R]:
    """Compiles a function, or an operator, into a plan: its calls run at once where their data allow.

    Like `equinox.filter_jit` it takes and returns any pytrees: arrays (and Text) are traced, everything else is static.
    What `jax.vmap` returned is taken apart, so that its lanes go through the function at their own pace.
    A string among the arguments is static; pass `ember.text(...)` for words that vary.

    **Returns:** a function of the same arguments, to be used under every JAX transformation. Under
    `jax.disable_jit()` it runs line by line. It has JAX's methods: `lower`, which gives its `Plan`, `trace`,
    `eval_shape` and `clear_cache`.

    **Raises:** `TypeError` for what cannot be called; when called, what the calls raised, with its own type.
    """
    if not callable(fn):
        raise TypeError(f"ember.jit takes a function or an operator, not {fn!r:.40}; call what it returns.")
    # `jax.vmap(f)`, called in a function that is traced, batches `f`: its branches become selections, and each of its
    # steps waits for the slowest lane of the one before. The other way round lanes stay lanes; the values are the same.
    unmapped = mapped(fn)
    if unmapped is not None:
        inner, how = unmapped
        compiled = jit(inner)
        return Jitted(fn, jax.vmap(compiled, **how), compiled.clear_cache)
    boundary = boundary_for(fn)

    def call(*args: Any, **kwargs: Any) -> Any:
        if jit_is_disabled() and _callback.all_concrete((args, kwargs)) and _callback.is_eager():
            return fn(*args, **kwargs)
        return boundary(*args, **kwargs)

    return Jitted(fn, call, boundary.clear_cache)
