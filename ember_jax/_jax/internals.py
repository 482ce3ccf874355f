"""What JAX does not promise: its private names, and habits that are seen and not documented.

Design note. Each entry says what it relies on, in which releases that was seen, and what happens where it no longer
holds. Wherever possible the fallback is something slower or plainer that is still right. How equations are written down
is another matter, and stands in `equations.py`. Everything here was seen in JAX 0.10.2, 0.11.0 and 0.12.0.1 unless said
otherwise.

Two habits of JAX have no code of their own here, and other files rely on them:

- A callback's results reach the program only when the callback has returned. So a callback that waits for another
  program of the same device may wait for ever (see `new_cpu_device`).
- JAX keys its caches by a callback's `==` and `hash`. A callback that compares by value is traced and compiled once; a
  fresh lambda is traced and compiled each time.
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
import numpy as np
from jax.core import Tracer, eval_jaxpr
from jax.extend import core as jex

# -- tracing ---------------------------------------------------------------------------------------------------------

# JAX's traces, by the names of their classes: those that hand on what has no tracer of theirs, and those that end with
# it, with whether constants stay concrete there.
_HAND_ON = ("BatchTrace", "JVPTrace", "LinearizeTrace")
_ENDS = {"EvalTrace": True, "DynamicJaxprTrace": False}
_ZERO = np.zeros((), np.float32)


def _trace() -> Any:
    """The innermost trace that is active; `None` where JAX has moved it."""
    try:
        from jax._src.core import trace_ctx  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

        return trace_ctx.trace
    except (ImportError, AttributeError):
        return None


def is_tracer(value: Any) -> TypeGuard[Tracer]:
    """Whether a value is a tracer, which is known only when the program runs.

    `jax.core.Tracer` is public today, but JAX takes more and more names out of `jax.core`.
    """
    return isinstance(value, Tracer)


def constants_stay_concrete() -> bool:
    """Whether an operation on constants is computed here and now: no `jax.jit`, `scan` or the like is being traced.

    The traces that are active tell, down to the one that evaluates: those of an eager `vmap` or `grad` hand on what has
    no tracer of theirs. JAX has them in a private module. Where one is not known there, an operation is tried: that is
    compiled, in 30 ms, and leaves an unused equation in the program that is traced.
    """
    trace: Any = _trace()
    while type(trace).__name__ in _HAND_ON:
        trace = trace.parent_trace
    if type(trace).__name__ in _ENDS:
        return _ENDS[type(trace).__name__]
    return not is_tracer(jnp.add(_ZERO, _ZERO))


def device_array(array: Any) -> jax.Array:
    """A NumPy array as one of JAX, uncommitted. `jnp.asarray` compiles a program for each shape that it has not met.

    It is copied: on the CPU `device_put` may take over NumPy's memory, also with `may_alias=False`, and what is written
    there later would show.
    """
    return jax.device_put(np.array(array))


def jit_is_disabled() -> bool:
    """Whether the user has said `jax.disable_jit()`.

    The configuration has an attribute for each flag, which its types do not show.
    """
    return bool(jax.config.jax_disable_jit)  # pyright: ignore[reportAttributeAccessIssue]


# `jax.jit(…, inline=INLINED)` makes a function whose equations stand in the caller's jaxpr, instead of a call of it.
# Until JAX 0.10 the value for that is `True`. Since 0.11 there are several ways to inline, and `True` is one that
# inlines later: the call stays in the jaxpr, where readers of it expect the equations. If neither value worked any
# more, functions of ours would show in plans by their names; the plans would still be right.
INLINED: Any = jax.Inline.JAX_EARLY if hasattr(jax, "Inline") else True  # pyright: ignore[reportAttributeAccessIssue]


def evaluate_jaxpr(jaxpr: jex.Jaxpr, consts: Any, *args: Any) -> list[Any]:
    """Binds a jaxpr's equations, one after another, under the trace that is active.

    JAX's own `eval_jaxpr` is used since it restores each equation's name stack and context. The alternative, which JAX
    documents, is to bind each equation by hand; what `Primitive.get_bind_params` returns for that has changed in 0.10.
    """
    return eval_jaxpr(jaxpr, consts, *args)


@functools.cache
def _empty() -> jex.Jaxpr:
    return jax.make_jaxpr(lambda: ())().jaxpr


def new_jaxpr(invars: list[Any], outvars: list[Any], eqns: list[Any]) -> jex.Jaxpr:
    """A jaxpr of given parts, without constants.

    It is made of an empty traced one. JAX warns of a jaxpr that has no debug info, and only `make_jaxpr` makes debug
    info. That info names arguments and results, and `jax_enable_checks` compares the number of names with the number of
    variables; `replace` takes the names out.
    """
    effects = frozenset[Any]().union(*(eqn.effects for eqn in eqns))
    return _empty().replace(invars=invars, outvars=outvars, eqns=eqns, effects=effects)


@contextlib.contextmanager
def same_nan_hook() -> Iterator[None]:
    """A context that leaves a thread's check for NaN after compiled functions as it was before.

    When a `jax.debug_nans(False)` ends in a thread, JAX takes the check from that thread for good, even if
    `jax_debug_nans` is set for the whole process. This context restores it. If JAX moved the private state elsewhere,
    nothing would be restored, and as in plain JAX NaN would be looked for on a function's first call only.
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


# `jax.vmap` returns a wrapper (for tracebacks) around the function that does the work. This is the code of the latter.
_VMAPPED = getattr(_closure(jax.vmap(lambda x: x)).get("fun"), "__code__", None)


def mapped(fn: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]] | None:
    """The function that `jax.vmap` mapped to return `fn`, and `jax.vmap`'s other arguments; `None` for any other `fn`.

    Function and arguments stand in the closure of what `jax.vmap` returned. Such a closure is recognised by its *code*
    object, which is compared with that of a `vmap` made when this file was loaded. A function that only looks alike has
    another code, and a JAX that builds `vmap` otherwise has other closures; both give `None`. The caller then takes a
    batch instead of lanes, which is slower and right.
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
    """A CPU device of a new client, which is none of `jax.devices()`; `None` where there is no way to make one.

    JAX has no public way to make one; jaxlib 0.10 to 0.12 have this private one. JAX lets only 32 programs be in flight
    on a device. On the user's own device a segment that runs inside an operator could wait for ever for a place there,
    if programs that wait for the operator have taken all of them; on a device of our own it cannot.
    """
    try:
        from jaxlib.xla_client import make_cpu_client

        return make_cpu_client(asynchronous=False, num_devices=1).local_devices()[0]
    except (ImportError, TypeError):  # the function is elsewhere, or takes other arguments
        return None


# -- callbacks -------------------------------------------------------------------------------------------------------

# JAX copies a callback's operands on the CPU backend's thread pool, and running callbacks occupy threads of the same
# pool. By default the pool has as many threads as there are cores. On one core, a callback with an operand of a
# megabyte then waits for ever for a copy that needs the callback's own thread, in plain JAX too (seen in 0.10.2). XLA
# takes the size of the pool from this variable when the backend starts, so it is set when this file is loaded. A value
# that the user has set is left alone. If XLA did not read the variable any more, such a program would wait as in plain
# JAX.
os.environ.setdefault("NPROC", str(max(16, os.cpu_count() or 1)))

# What JAX raises for a failed callback. The ValueError is from JAX's compiled fast path, which takes over on the second
# call of a function.
CALLBACK_ERRORS = (jax.errors.JaxRuntimeError, ValueError)


def is_callback_error(error: BaseException) -> bool:
    """Whether an error may be the one that JAX makes of an exception in a callback; its message then holds that of the
    exception.

    A ValueError from the fast path begins with XLA's status. A mistake is harmless either way. If another error is
    taken for a callback's, the exception is looked up by the words of the message and not found. If a callback's error
    is missed, the user sees JAX's error, which holds the words of the exception.
    """
    if isinstance(error, ValueError):
        return str(error).startswith("INTERNAL: ")
    return isinstance(error, CALLBACK_ERRORS)


def refuses_string(error: TypeError) -> bool:
    """Whether JAX says with an error that a `str` stands where it takes arrays alone, as in a loop's carry.

    It is told by JAX's words for it. If those changed, users would see JAX's error as it is.
    """
    said = str(error)
    return "type <class 'str'>" in said and any(w in said for w in ("JAX type", "abstract array", "ArrayLike"))


# The logger to which JAX writes, at level ERROR and with the traceback, every exception that leaves a callback. If JAX
# renamed it, errors that the user is told anyway would be logged as well.
CALLBACK_LOG = logging.getLogger("jax._src.callback")

# The file that defines `jax.pure_callback` (behind its wrapper). Frames of that file stand between XLA and a callback.
_CALLBACKS_FILE = inspect.unwrap(jax.pure_callback).__code__.co_filename
# Functions of JAX that its C++ calls: around a callback, and before and after a garbage collection.
_FROM_XLA = frozenset({"_wrapped_callback", "_xla_gc_callback"})
_FOLDERS = tuple(os.path.dirname(m.__file__) + os.sep for m in (jax, jaxlib) if m.__file__)


def is_jaxs(code: CodeType) -> bool:
    """Whether a frame's code is JAX's own."""
    return code.co_filename.startswith(_FOLDERS)


def runs_callback(code: CodeType) -> bool:
    """Whether a frame's code is one that JAX has between XLA and a callback.

    XLA turns an exception that is raised there into an error of its own. If such a frame were not recognised, Ctrl-C
    would arrive as that error, as it does in plain JAX.
    """
    return code.co_filename == _CALLBACKS_FILE or (is_jaxs(code) and code.co_name in _FROM_XLA)


# -- XLA's order -----------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, inline=False, static_argnums=1)
def deepened(value: Any, depth: int) -> Any:
    """`value`, a `float32[1, 1]`, unchanged, behind a chain of `depth` operations that XLA keeps.

    XLA's CPU backend runs callbacks breadth first, by the depth of an instruction in the graph of data; the chain makes
    what depends on it deep, and so late. Each link is the solution of a triangular system with the matrix 1. Of the
    operations that XLA can neither simplify nor fuse this is the cheapest: a call into LAPACK of 0.3 us, with nothing
    to compile. A sort takes 2 us, and arithmetic 10 ms of compilation. If XLA ran callbacks in another order, or
    simplified the chain, operators would run one after another.
    """
    for _ in range(depth):
        one = jnp.ones(value.shape, value.dtype)
        value = jax.lax.linalg.triangular_solve(one, value, left_side=True, lower=True)
    return value
