"""Keys of equations, which are equal only if the equations compute the same.

Design note. JAX makes a new jaxpr whenever a function is traced, and compares jaxprs by identity. Here jaxprs are
compared by their equations, with variables named in the order in which they appear, so two traces of one function are
known to be equal. Constants are compared by identity (`id`), since they may be large. An `id` may be used again once
its object is gone; so whoever keeps a key must also keep the equation that it was made of.
"""

import functools
from collections.abc import Hashable
from typing import Any

import numpy as np
from jax.extend import core as jex


class HashedKey:
    """A key of many parts. Its hash is computed once, when the key is made, since the parts are deep.

    **Raises:** `TypeError` for a part that cannot be hashed.
    """

    __slots__ = ("_hash", "_parts")

    def __init__(self, *parts: Hashable):
        self._parts = parts
        self._hash = hash(parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HashedKey) and self._hash == other._hash and self._parts == other._parts


def of_equation(eqn: jex.JaxprEqn) -> HashedKey:
    """The key of an equation: its primitive, context, parameters, the types of its operands and results, and literals.

    **Raises:** `TypeError` if one of its parameters cannot be hashed, such as an array.
    """
    parameters = tuple((name, _parameter(eqn.params[name])) for name in sorted(eqn.params))
    outputs = tuple(v.aval for v in eqn.outvars)
    return HashedKey(eqn.primitive, eqn.ctx, parameters, tuple(map(_atom, eqn.invars)), outputs)


def described(eqn: jex.JaxprEqn) -> str:
    """What an equation computes, in words, of which those of other equations differ; they may hold addresses."""
    literals = [np.asarray(v.val).tolist() for v in eqn.invars if isinstance(v, jex.Literal)]
    return f"{eqn.primitive} {eqn.params} {literals} {[str(v.aval) for v in eqn.outvars]}"


@functools.lru_cache(maxsize=8192)  # jaxprs hash by identity
def _body(jaxpr: jex.Jaxpr) -> HashedKey:
    names: dict[Any, int] = {}

    def named(atoms: Any) -> tuple[Hashable, ...]:
        return tuple(_atom(a) if isinstance(a, jex.Literal) else names.setdefault(a, len(names)) for a in atoms)

    given = [*jaxpr.constvars, *jaxpr.invars]
    return HashedKey(
        len(jaxpr.constvars),
        (named(given), tuple(v.aval for v in given)),
        tuple((of_equation(eqn), named(eqn.invars), named(eqn.outvars)) for eqn in jaxpr.eqns),
        named(jaxpr.outvars),
    )


def _parameter(value: Any) -> Hashable:
    match value:
        case jex.ClosedJaxpr():  # since JAX 0.11 every jaxpr is one
            return (_body(value.jaxpr), tuple(map(id, value.consts)))
        case jex.Jaxpr():
            return _body(value)
        case tuple() | list():
            return (type(value), tuple(map(_parameter, value)))
        case bool() | int() | float() | complex():
            # By type and repr: 1, 1.0 and True are equal in Python, and so are 0.0 and -0.0, but they compute
            # otherwise.
            return (type(value), repr(value))
        case _:
            return value


def _atom(atom: Any) -> Hashable:
    if not isinstance(atom, jex.Literal):
        return atom.aval
    # A literal's value is compared by its bits (or its repr), for the reason given in `_parameter`.
    return (atom.aval, getattr(atom.val, "tobytes", lambda: repr(atom.val))())
