"""Functions on whole jaxprs: to make one of its parts, to turn its constants into inputs, to evaluate it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend import core as jex

from .._types import is_key
from .internals import evaluate_jaxpr, is_tracer, new_jaxpr, with_outputs
from .values import vary


def assemble(invars: Sequence[Any], outvars: Sequence[Any], eqns: Sequence[Any]) -> jex.ClosedJaxpr:
    """A jaxpr of given parts, without constants."""
    return jex.ClosedJaxpr(new_jaxpr(list(invars), list(outvars), list(eqns)), ())


def lifted(closed: jex.ClosedJaxpr) -> tuple[jex.ClosedJaxpr, list[Any]]:
    """A jaxpr that takes its constants as its first inputs; and the constants."""
    jaxpr = closed.jaxpr
    return assemble([*jaxpr.constvars, *jaxpr.invars], jaxpr.outvars, jaxpr.eqns), list(closed.consts)


def first_outputs(closed: jex.ClosedJaxpr, count: int) -> jex.ClosedJaxpr:
    """A jaxpr that returns the first `count` of its results."""
    return with_outputs(closed, closed.jaxpr.outvars[:count])


def evaluated(closed: jex.ClosedJaxpr, *args: Any) -> list[Any]:
    """The results of a jaxpr. Traceable."""
    return evaluate_jaxpr(closed.jaxpr, closed.consts, *args)


def evaluate(eqn: jex.JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """The results of one equation. Traceable."""
    # `pvary` is `shard_map`'s cast. It refuses a value that varies already, and control flow may have cast a value that
    # comes from the record; `vary` casts only over the axes that are missing.
    if eqn.primitive.name == "pvary":
        return [vary(value, frozenset(eqn.params["axes"])) for value in values]
    free: dict[jex.Var, Any] = {}
    for var, value in zip(eqn.invars, values, strict=True):
        if not isinstance(var, jex.Literal):
            free[var] = value
    return evaluated(assemble(list(free), eqn.outvars, [eqn]), *free.values())


# The most bytes of a constant that is compared by value. The constants that repeat, digests of words and settings, are
# smaller; to compare large arrays would take time for nothing.
_COMPARED_BYTES = 256


def with_equal_constants_once(closed: jex.ClosedJaxpr) -> jex.ClosedJaxpr:
    """A jaxpr in which small constants of equal type and value are one variable, so that equations on them are seen to
    be equal."""
    first: dict[Any, jex.Var] = {}
    name: dict[jex.Var, jex.Var] = {}
    for var, const in zip(closed.jaxpr.constvars, closed.consts, strict=True):
        if (
            not is_tracer(const)
            and not is_key(var.aval)
            and np.size(const) * var.aval.dtype.itemsize <= _COMPARED_BYTES
        ):
            found = first.setdefault((str(var.aval), np.asarray(const).tobytes()), var)
            if found is not var:
                name[var] = found
    if not name:
        return closed
    read = lambda atoms: [name.get(a, a) if isinstance(a, jex.Var) else a for a in atoms]
    jaxpr = closed.jaxpr
    eqns = [e.replace(invars=read(e.invars)) if not name.keys().isdisjoint(_vars(e)) else e for e in jaxpr.eqns]
    kept = [(v, c) for v, c in zip(jaxpr.constvars, closed.consts, strict=True) if v not in name]
    constvars, consts = [v for v, _ in kept], [c for _, c in kept]
    return jex.ClosedJaxpr(jaxpr.replace(constvars=constvars, eqns=eqns, outvars=read(jaxpr.outvars)), consts)


def _vars(eqn: jex.JaxprEqn) -> list[jex.Var]:
    return [v for v in eqn.invars if isinstance(v, jex.Var)]


class Environment:
    """The values of a jaxpr's variables while it is walked."""

    def __init__(self, closed: jex.ClosedJaxpr, args: Sequence[Any]):
        jaxpr = closed.jaxpr
        self._values: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        self._values.update(zip(jaxpr.invars, args, strict=True))

    def read(self, atoms: Sequence[Any]) -> list[Any]:
        """The values of variables and literals; `None` for a variable that was not written (the replay skips some)."""
        return [a.val if isinstance(a, jex.Literal) else self._values.get(a) for a in atoms]

    def write(self, variables: Sequence[Any], values: Sequence[Any]) -> None:
        """Sets the values of variables."""
        self._values.update(zip(variables, values, strict=True))
