"""`jit`: any function as an operator, without annotations."""

import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, cast

import equinox as eqx
import jax

from .. import _callback
from .._jax.internals import jit_is_disabled, mapped
from .boundary import boundary_for
from .traced import name_of

if TYPE_CHECKING:
    from .lower import Plan

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)


class Jitted(Protocol[P, R_co]):
    """What `jit` returns: a function, with what JAX's own compiled functions have beside it."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Runs the function."""
        ...

    def lower(self, *args: P.args, **kwargs: P.kwargs) -> "Plan":
        """Its plan for such arguments, as `ember.lower` gives it. Nothing is asked."""
        ...

    def trace(self, *args: P.args, **kwargs: P.kwargs) -> jax.stages.Traced:
        """The JAX program that it is for such arguments, of the arrays in them; `.jaxpr` shows it. Nothing is asked."""
        ...

    def eval_shape(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Its result with a `jax.ShapeDtypeStruct` in place of each array. Nothing is asked."""
        ...

    def clear_cache(self) -> None:
        """Forgets what was traced and compiled for it."""
        ...


def jit(fn: Callable[P, R_co]) -> Jitted[P, R_co]:
    """Compiles a function, or an operator, into a plan: its calls run at once where their data allow.

    Like `equinox.filter_jit` it takes and returns any pytrees: arrays (and Text) are traced, everything else is static.
    What `jax.vmap` returned is taken apart, so that its lanes go through the function at their own pace.
    A string among the arguments is static; pass `ember.text(...)` for words that vary.

    **Returns:** a function of the same arguments, to be used under every JAX transformation. Under
    `jax.disable_jit()` it runs line by line. It has JAX's methods: `lower`, which gives its `Plan`, `trace`,
    `eval_shape` and `clear_cache`.

    **Raises:** when called, what the calls raised, with its own type.
    """
    # `jax.vmap(f)`, called in a function that is traced, batches `f`: its branches become selections, and each of its
    # steps waits for the slowest lane of the one before. The other way round lanes stay lanes; the values are the same.
    unmapped = mapped(fn)
    if unmapped is not None:
        inner, how = unmapped
        compiled = jit(inner)
        return _with_methods(jax.vmap(compiled, **how), fn, compiled.clear_cache)
    boundary = boundary_for(fn)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        if jit_is_disabled() and _callback.all_concrete((args, kwargs)) and _callback.is_eager():
            return fn(*args, **kwargs)
        return boundary(*args, **kwargs)

    return _with_methods(call, fn, boundary.clear_cache)


def _with_methods(call: Callable[P, R_co], fn: Callable[..., Any], clear_cache: Callable[[], None]) -> Jitted[P, R_co]:
    """A function with the methods of `Jitted`; it stays a function, so that it may be a method of a class."""
    compiled: Any = call

    def lower(*args: Any, **kwargs: Any) -> "Plan":
        # Imported when it is first asked for: a program that only makes calls does not need it.
        return importlib.import_module(f"{__package__}.lower").lower(fn)(*args, **kwargs)

    def trace(*args: Any, **kwargs: Any) -> jax.stages.Traced:
        arrays, rest = eqx.partition((args, kwargs), eqx.is_array)

        def traced(arrays: Any) -> Any:
            given, named = eqx.combine(arrays, rest)
            return eqx.filter(compiled(*given, **named), eqx.is_array)

        traced.__name__ = traced.__qualname__ = name_of(fn)
        return jax.jit(traced).trace(arrays)

    def eval_shape(*args: Any, **kwargs: Any) -> Any:
        return eqx.filter_eval_shape(compiled, *args, **kwargs)

    compiled.lower, compiled.trace, compiled.eval_shape = lower, trace, eval_shape
    compiled.clear_cache = clear_cache
    return cast("Jitted[P, R_co]", compiled)
