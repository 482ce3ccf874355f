"""Operators that are not split into record and replay, for whoever rewrites the program in which they stand.

Design note. A boundary hides what its operator computes: the record is a callback, and of the replay only what the
outputs need is left. Who rewrites a program by what happens inside (learning, which needs the log-probability of every
draw) must see it before that. So while a program is traced under `unsplitting(name)`, an operator that holds an
equation of that name binds one callback that carries its jaxpr, with a lane axis more for each `vmap` as an island has,
and that is never run: the rewriter puts a boundary of its own in its place. Operators without such an equation are as
always.

The name is a context that JAX's caches know of, so what was traced without it, or with it, is never taken for the
other.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.custom_batching import custom_vmap
from jax.extend import core as jex

from .. import _callback
from .._errors import GradientError
from .._jax.equations import called, host_function, is_island, is_named, jaxprs_in
from .._jax.values import from_raw, raw_aval, to_raw
from . import ir
from .operators import LaneAxis
from .rewrite import stacked

# Traces under a name: `with unsplitting("…"):`; the name itself is `unsplitting.value`.
unsplitting = jax.make_user_context(None)


@dataclass(frozen=True, eq=False)
class Unsplit(_callback.HostFunction):
    """An operator's program, its constants among its inputs. Compared by identity."""

    name: str
    closed: jex.ClosedJaxpr
    how: ir.How | None
    lanes: tuple[LaneAxis, ...] = ()

    def __call__(self, *arrays: Any) -> Sequence[np.ndarray]:
        raise AssertionError(f"{self.name} was left unsplit, and nothing was put in its place")


def holds(jaxpr: jex.Jaxpr, name: str | None) -> bool:
    """Whether a `jax.jit` of such a name stands in a jaxpr, or in one that it holds; none has the name `None`."""
    return name is not None and _holds(jaxpr, name)


@functools.lru_cache(maxsize=8192)  # jaxprs hash by identity
def _holds(jaxpr: jex.Jaxpr, name: str) -> bool:
    return any(is_in(eqn, name) for eqn in jaxpr.eqns)


def is_in(eqn: jex.JaxprEqn, name: str) -> bool:
    """Whether an equation is a `jax.jit` of such a name, or holds one."""
    if is_named(eqn, name) or isinstance(host_function(eqn), Unsplit):
        return True
    return any(_holds(inner, name) for inner in jaxprs_in(eqn))


def bind(operator: Unsplit, arrays: Sequence[Any]) -> list[Any]:
    """Binds an operator that is not split: its outputs, and what encloses it adds to them."""
    shape = tuple(size for size, _ in operator.lanes[::-1])
    avals, extras = operator.closed.out_avals, ir.EXTRAS[operator.how] if operator.how else ()
    out = [stacked(raw_aval(a), shape) for a in (*avals, *extras)]

    @custom_vmap
    def bound(*arrays: Any) -> Any:
        outs = _callback.bind(operator, out, *map(to_raw, _undifferentiated(operator.name, list(arrays))))
        return (*map(from_raw, outs, avals), *outs[len(avals) :])

    @bound.def_vmap
    def _(size: int, mapped: Sequence[bool], *arrays: Any) -> Any:
        outs = bind(replace(operator, lanes=(*operator.lanes, (size, tuple(mapped)))), arrays)
        return tuple(outs), (True,) * len(outs)

    return list(bound(*arrays))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _undifferentiated(name: str, operands: list[Any]) -> list[Any]:
    return operands


@_undifferentiated.defjvp
def _(name: str, primals: Any, tangents: Any) -> Any:
    raise GradientError(
        f"{name} draws, and is differentiated inside the loss whose gradient is taken. What was drawn would have to be "
        "differentiated twice: draw outside of the inner derivative and pass the index in."
    )


def found(eqn: jex.JaxprEqn) -> Unsplit | None:
    """The operator that an equation stands for, if it is one that is not split."""
    body = called(eqn) if is_island(eqn) else None
    if body is None:
        return None
    return next((f for f in map(host_function, body.jaxpr.eqns) if isinstance(f, Unsplit)), None)
