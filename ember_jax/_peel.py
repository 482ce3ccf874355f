"""`ember.jit(jax.vmap(f))` as `jax.vmap(ember.jit(f))`: the same values, with lanes instead of a batch.

Design note. `jax.vmap(f)` called inside a traced function batches `f`: its branches become selects, and each of its
steps waits for the slowest lane of the one before. The function that `jax.vmap` returns tells what was mapped, in its
closure, which is private to JAX; this file is the only one that looks. It looks by the *code* of that function as this
JAX makes it, so what it does not recognise, in this JAX or a later one, is left as it is: slower, and right.
"""

from collections.abc import Callable
from typing import Any

import jax

_ARGUMENTS = {"in_axes", "out_axes", "axis_name", "axis_size", "spmd_axis_name"}


def _closure(fn: Any) -> dict[str, Any]:
    """A function's free variables, by name."""
    cells = getattr(fn, "__closure__", None)
    if not cells:
        return {}
    try:
        return dict(zip(fn.__code__.co_freevars, (cell.cell_contents for cell in cells), strict=True))
    except ValueError:  # a cell that is not filled yet
        return {}


# What `jax.vmap` returns is a wrapper (for tracebacks) around the function that does the work.
_VMAPPED = getattr(_closure(jax.vmap(lambda x: x)).get("fun"), "__code__", None)


def peel(fn: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]] | None:
    """The function that `jax.vmap` mapped, and how; `None` if `fn` is not what `jax.vmap` returned."""
    inner = _closure(fn).get("fun")
    if _VMAPPED is None or getattr(inner, "__code__", None) is not _VMAPPED:
        return None
    found = _closure(inner)
    if not found.keys() >= _ARGUMENTS | {"fun"} or found.get("sum_match"):
        return None
    return found["fun"], {name: found[name] for name in _ARGUMENTS}
