"""Operators that are not split into record and replay, so that a rewriter of the program can see into them.

Design note. A boundary hides what its operator computes: the record is a callback, and the replay holds only what the
outputs need. A rewriter that has to know what happens inside an operator must see it before it is split. Learning is
such a rewriter: it needs the log-probability of every draw. So a program can be traced under `unsplitting(name)`. An
operator that holds an equation of that name then binds a single callback, which carries the operator's jaxpr and gets
one lane axis more for each `vmap` around it. That callback never runs: the rewriter puts a boundary of its own in its
place. Operators that hold no such equation are split as always.

The name is a user context of JAX, which is part of the keys of JAX's caches. So a function that was traced under the
name is never taken for the same function traced without it.
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
from .._jax.equations import called, host_function, is_island, is_named, jaxprs_in
from .._jax.values import from_raw, raw_aval, to_raw
from ..errors import GradientError
from . import ir
from .operators import LaneAxis
from .rewrite import stacked

# `with unsplitting("…"):` sets the name while something is traced; `unsplitting.value` is the name that is set, or
# `None`.
unsplitting = jax.make_user_context(None)


@dataclass(frozen=True, eq=False)
class Unsplit(_callback.HostFunction):
    """The callback of an operator that is not split. It compares by identity.

    **Fields:**

    - `name`: the operator's name.
    - `closed`: its jaxpr, which takes its constants as inputs.
    - `how`: how the operator is enclosed (as `"attempt"`), or `None`.
    - `lanes`: the size of each lane axis, the innermost `vmap` first, with the inputs that it maps.
    """

    name: str
    closed: jex.ClosedJaxpr
    how: ir.How | None
    lanes: tuple[LaneAxis, ...] = ()

    def __call__(self, *arrays: Any) -> Sequence[np.ndarray]:
        raise AssertionError(f"{self.name} was left unsplit, and nothing was put in its place")


def holds(jaxpr: jex.Jaxpr, name: str | None) -> bool:
    """Whether a `jax.jit` of a function called `name` stands in a jaxpr, at any depth. For `None` the answer is no."""
    return name is not None and _holds(jaxpr, name)


@functools.lru_cache(maxsize=8192)  # jaxprs hash by identity
def _holds(jaxpr: jex.Jaxpr, name: str) -> bool:
    return any(is_in(eqn, name) for eqn in jaxpr.eqns)


def is_in(eqn: jex.JaxprEqn, name: str) -> bool:
    """Whether an equation is a `jax.jit` of a function called `name`, or holds one. An `Unsplit` one always does."""
    if is_named(eqn, name) or isinstance(host_function(eqn), Unsplit):
        return True
    return any(_holds(inner, name) for inner in jaxprs_in(eqn))


def bind(operator: Unsplit, arrays: Sequence[Any]) -> list[Any]:
    """Binds an operator that is not split.

    **Arguments:**

    - `operator`: the operator.
    - `arrays`: its inputs, with a leading axis for each of its `lanes` that maps them.

    **Returns:** its outputs, followed by what its enclosure adds (`ir.EXTRAS`), with an axis for each of its lanes.
    """
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


# Returns its operands, and raises if they are differentiated.
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
    """The unsplit operator that an equation binds; `None` for any other equation."""
    body = called(eqn) if is_island(eqn) else None
    if body is None:
        return None
    return next((f for f in map(host_function, body.jaxpr.eqns) if isinstance(f, Unsplit)), None)
