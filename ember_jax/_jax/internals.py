"""What JAX does not promise: its private names, and habits that are seen and not documented.

Design note. Each entry says what it relies on, in which releases that was seen, and what happens where it no longer
holds; wherever possible, that is something slower or plainer, and right. How equations are written down stands in
`equations.py`. Seen in JAX 0.10.2, 0.11.0 and 0.12.0.1 unless said otherwise.

Two habits have no code of their own. A callback's results reach the program only when it has returned, so one that
waits for another program of the same device may wait for ever (see `new_cpu_device`). And JAX keys its caches by a
callback's `==` and `hash`: one that compares by value is traced and compiled once, a fresh lambda each time.
"""

import contextlib
import functools
import inspect
import logging
import os
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import jaxlib
from jax.core import Tracer, eval_jaxpr
from jax.extend import core as jex

# -- tracing ---------------------------------------------------------------------------------------------------------


def is_tracer(value: Any) -> TypeGuard[Tracer]:
    """Whether a value is known only when a program runs. (`jax.core.Tracer` is public; `jax.core` shrinks.)"""
    return isinstance(value, Tracer)


def jit_is_disabled() -> bool:
    """Whether the user has said `jax.disable_jit()`.

    The configuration has an attribute for each flag, which its types do not show.
    """
    return bool(jax.config.jax_disable_jit)  # pyright: ignore[reportAttributeAccessIssue]


# As `jax.jit(…, inline=INLINED)`: the function's equations stand in the program where it was called, not as a function.
# Until JAX 0.10 that is `True`. Since 0.11 there are several ways to inline, of which `True` is a later one: the call
# stays in the jaxpr, and readers would meet it where they expect what it calls. Were neither known any more, a function
# of ours would show in plans by its name, and they would be right.
INLINED: Any = jax.Inline.JAX_EARLY if hasattr(jax, "Inline") else True  # pyright: ignore[reportAttributeAccessIssue]


def evaluate_jaxpr(jaxpr: jex.Jaxpr, consts: Any, *args: Any) -> list[Any]:
    """Binds a jaxpr's equations, one after another, under the trace that is active.

    With it JAX restores each equation's name stack and context. (To bind them by hand is what JAX documents; what
    `Primitive.get_bind_params` returns for that has changed in 0.10.)
    """
    return eval_jaxpr(jaxpr, consts, *args)


@functools.cache
def _empty() -> jex.Jaxpr:
    return jax.make_jaxpr(lambda: ())().jaxpr


def new_jaxpr(invars: list[Any], outvars: list[Any], eqns: list[Any]) -> jex.Jaxpr:
    """A jaxpr of given parts, without constants.

    Made of an empty one: JAX warns of a jaxpr without debug info, which `make_jaxpr` alone makes. It names arguments
    and results, which `jax_enable_checks` counts; `replace` takes these names out.
    """
    effects = frozenset[Any]().union(*(eqn.effects for eqn in eqns))
    return _empty().replace(invars=invars, outvars=outvars, eqns=eqns, effects=effects)


@contextlib.contextmanager
def same_nan_hook() -> Iterator[None]:
    """Leaves a thread's check for NaN after compiled functions as it was.

    When `jax.debug_nans(False)` ends, JAX takes the check from that thread for good, also where `jax_debug_nans` is set
    for all. Were the private state elsewhere, it would be as in plain JAX: checked on a function's first call only.
    """
    try:
        from jax._src.api import _post_hook_state as state  # pyright: ignore[reportAttributeAccessIssue]

        before = state.get_local()
    except (ImportError, AttributeError):
        yield
        return
    try:
        yield
    finally:
        state.set_local(before)


# -- `jax.vmap` seen from outside ------------------------------------------------------------------------------------

_VMAP_ARGUMENTS = {"in_axes", "out_axes", "axis_name", "axis_size", "spmd_axis_name"}


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


def mapped(fn: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]] | None:
    """The function that `jax.vmap` mapped to return `fn`, and `jax.vmap`'s other arguments; `None` for any other `fn`.

    They stand in the closure of what `jax.vmap` returned. It is recognised by the *code* of what this very JAX
    returns, so a function that only looks alike, or a JAX that makes it otherwise, gives `None`: a batch instead of
    lanes, slower and right.
    """
    inner = _closure(fn).get("fun")
    if _VMAPPED is None or getattr(inner, "__code__", None) is not _VMAPPED:
        return None
    found = _closure(inner)
    if not found.keys() >= _VMAP_ARGUMENTS | {"fun"} or found.get("sum_match"):
        return None
    return found["fun"], {name: found[name] for name in _VMAP_ARGUMENTS}


# -- a CPU device of our own -----------------------------------------------------------------------------------------


def new_cpu_device() -> Any | None:
    """A CPU device of a client of its own, which is none of `jax.devices()`; `None` where there is no way to make one.

    There is no public way; jaxlib 0.10 to 0.12 have this one.
    """
    try:
        from jaxlib.xla_client import make_cpu_client

        return make_cpu_client(asynchronous=False, num_devices=1).local_devices()[0]
    except (ImportError, TypeError):  # it is elsewhere, or takes other arguments
        return None


# -- callbacks -------------------------------------------------------------------------------------------------------

# JAX copies a callback's operands on the CPU backend's thread pool, whose threads its callbacks themselves occupy: with
# as many threads as cores, an operand of a megabyte on one core waits for itself for ever, in plain JAX too (0.10.2).
# XLA sizes the pool by this variable when the backend starts, so it is set when this file is loaded; what the user has
# set is left alone. Were it not read any more, such a program would wait as it does in plain JAX.
os.environ.setdefault("NPROC", str(max(16, os.cpu_count() or 1)))

# What JAX raises for a failed callback. Its compiled fast path, which takes over on the second call, says ValueError.
CALLBACK_ERRORS = (jax.errors.JaxRuntimeError, ValueError)


def is_callback_error(error: BaseException) -> bool:
    """Whether an error may be the one that JAX makes of an exception in a callback; the exception's words are in it.

    The fast path's ValueErrors begin with XLA's status. One that is taken for another's is looked up by its words and
    not found; one that is missed stays JAX's error, with the words of ours.
    """
    if isinstance(error, ValueError):
        return str(error).startswith("INTERNAL: ")
    return isinstance(error, CALLBACK_ERRORS)


# Where JAX logs, at level ERROR and with the traceback, every exception that leaves a callback. Were it renamed, errors
# would be logged that the user is told anyway.
CALLBACK_LOG = logging.getLogger("jax._src.callback")

# Frames of this file stand between XLA and a callback: the file that defines `jax.pure_callback`, behind its wrapper.
_CALLBACKS_FILE = inspect.unwrap(jax.pure_callback).__code__.co_filename
# Functions of JAX that its C++ calls: around a callback, and before and after a garbage collection.
_FROM_XLA = frozenset({"_wrapped_callback", "_xla_gc_callback"})
_FOLDERS = tuple(os.path.dirname(m.__file__) + os.sep for m in (jax, jaxlib) if m.__file__)


def is_jaxs(code: CodeType) -> bool:
    """Whether a frame's code is JAX's own."""
    return code.co_filename.startswith(_FOLDERS)


def runs_callback(code: CodeType) -> bool:
    """Whether a frame's code is what JAX has between XLA and a callback.

    What is raised there XLA turns into an error of its own. Were such a frame not recognised, Ctrl-C would arrive as
    that error, as it does in plain JAX.
    """
    return code.co_filename == _CALLBACKS_FILE or (is_jaxs(code) and code.co_name in _FROM_XLA)


# -- XLA's order -----------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, inline=False, static_argnums=1)
def deepened(value: Any, depth: int) -> Any:
    """A `float32[1, 1]`, unchanged, that XLA has only after `depth` steps more.

    XLA's CPU backend runs callbacks breadth first, by an instruction's depth in the graph of data. Of what it can
    neither simplify nor fuse, solving a triangular system is the cheapest: a call into LAPACK, 0.3 us and nothing to
    compile, against 2 us for a sort and 10 ms of compilation for arithmetic. Were the order another one, or the chain
    simplified, operators would run one after another.
    """
    for _ in range(depth):
        one = jnp.ones(value.shape, value.dtype)
        value = jax.lax.linalg.triangular_solve(one, value, left_side=True, lower=True)
    return value
