"""What the plan needs to know of jaxprs: which equations leave XLA, which hold other jaxprs, how to evaluate one.

Only `jax.extend.core` and the equations' parameters are used. Parameter names are JAX's own and checked against
JAX 0.10; a higher-order primitive that is not listed here is treated as an ordinary numeric equation.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer, eval_jaxpr
from jax.extend import core as jex

from .._callback import vary
from .._types import is_key

Aval = jax.ShapeDtypeStruct

_HOST = frozenset({"pure_callback", "io_callback"})
_PRINT = frozenset({"debug_callback", "debug_print"})
# Primitives that mean "run this jaxpr here", with the parameter that holds it.
_CALLS = {
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vmap_call": "call",
}


def is_host(eqn: jex.JaxprEqn) -> bool:
    """Whether an equation calls Python for a result."""
    return eqn.primitive.name in _HOST


def is_print(eqn: jex.JaxprEqn) -> bool:
    """Whether an equation calls Python for its effect, as `jax.debug.print` does."""
    return eqn.primitive.name in _PRINT


def host_function(eqn: jex.JaxprEqn) -> Any:
    """The Python callable behind a host equation, as it was given to `pure_callback`."""
    callback = eqn.params["callback"]
    # `_FlatCallback` in JAX 0.10: the user's callable and the tree of its arguments.
    return getattr(callback, "callback_func", callback)


def called(eqn: jex.JaxprEqn) -> jex.ClosedJaxpr | None:
    """The jaxpr that a call-like equation runs, or `None`."""
    name = _CALLS.get(eqn.primitive.name)
    return None if name is None else close(eqn.params[name])


def close(jaxpr: Any) -> jex.ClosedJaxpr:
    """A closed jaxpr; `remat2` holds an open one without constants."""
    return jaxpr if isinstance(jaxpr, jex.ClosedJaxpr) else jex.ClosedJaxpr(jaxpr, ())


def open_jaxpr(jaxpr: Any) -> jex.Jaxpr:
    """The jaxpr of a closed one."""
    return jaxpr.jaxpr if isinstance(jaxpr, jex.ClosedJaxpr) else jaxpr


@functools.lru_cache(maxsize=8192)  # jaxprs hash by identity
def _leaves_xla(jaxpr: jex.Jaxpr) -> bool:
    return any(leaves_xla(eqn) for eqn in jaxpr.eqns)


def leaves_xla(eqn: jex.JaxprEqn) -> bool:
    """Whether an equation calls Python, itself or in a jaxpr that it holds."""
    return is_host(eqn) or is_print(eqn) or any(_leaves_xla(open_jaxpr(j)) for j in jex.jaxprs_in_params(eqn.params))


@functools.lru_cache(maxsize=8192)
def _calls_host(jaxpr: jex.Jaxpr) -> bool:
    return any(calls_host(eqn) for eqn in jaxpr.eqns)


def calls_host(eqn: jex.JaxprEqn) -> bool:
    """Whether an equation calls Python for a result, itself or in a jaxpr that it holds."""
    return is_host(eqn) or any(_calls_host(open_jaxpr(j)) for j in jex.jaxprs_in_params(eqn.params))


def scan_counts(eqn: jex.JaxprEqn) -> tuple[int, int]:
    """How many of a `scan`'s operands are constants, and how many are its first carry."""
    if "num_consts" in eqn.params:  # until JAX 0.11
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()
    return len(list(consts)), len(list(carry))


def is_inexact(aval: Any) -> bool:
    """Whether an abstract value holds floating-point or complex numbers."""
    return not is_key(aval) and jnp.issubdtype(aval.dtype, jnp.inexact)


def raw_aval(aval: Any) -> Aval:
    """Shape and dtype of a value as the host sees it: keys are their key data."""
    if is_key(aval):
        data = jax.eval_shape(jax.random.key_data, Aval(aval.shape, aval.dtype))
        return Aval(data.shape, data.dtype)
    return Aval(aval.shape, aval.dtype)


def to_raw(value: Any) -> Any:
    """A value as the host sees it."""
    return jax.random.key_data(value) if is_key(jax.typeof(value)) else value


def from_raw(value: Any, aval: Any) -> Any:
    """The inverse of `to_raw`: a value of the type that the program gives it.

    Key data are wrapped again, by the dtype. Inside a `shard_map` a value is typed as varying over the mesh if the
    program says so; a callback's result, which JAX types as the same everywhere, is not of itself.
    """
    if is_key(aval):
        value = jax.random.wrap_key_data(value, impl=_implementation(aval.dtype))
    return vary(value, aval.manual_axis_type.varying)


@functools.lru_cache(maxsize=64)
def _implementation(dtype: Any) -> Any:
    """The PRNG implementation behind a key dtype, which only an array of keys will tell."""
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), Aval((), dtype))
    return found[0]


@functools.cache
def _debug_info() -> Any:
    # JAX warns of a jaxpr without one, and makes them in `make_jaxpr` only.
    return jax.make_jaxpr(lambda: ())().jaxpr.debug_info


def assemble(invars: Sequence[Any], outvars: Sequence[Any], eqns: Sequence[Any], effects: Any) -> jex.Jaxpr:
    """A jaxpr of given parts, without constants."""
    return jex.Jaxpr((), list(invars), list(outvars), list(eqns), effects, _debug_info())


# Constants beyond this size are not compared: words' digests and settings are small.
_COMPARED_BYTES = 256


def with_equal_constants_once(closed: jex.ClosedJaxpr) -> jex.ClosedJaxpr:
    """A jaxpr whose small constants of equal value are one: what is computed of them is then seen to be equal."""
    first: dict[Any, jex.Var] = {}
    name: dict[jex.Var, jex.Var] = {}
    for var, const in zip(closed.jaxpr.constvars, closed.consts, strict=True):
        if (
            not isinstance(const, Tracer)
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


def evaluate(eqn: jex.JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """Evaluates one equation.

    As a jaxpr of its own, because `Primitive.get_bind_params` returns something else since JAX 0.10, and because
    JAX then restores the equation's name stack and context.
    """
    if eqn.primitive.name == "pvary":  # `shard_map`'s cast; control flow may have cast what comes from the record
        return [vary(value, frozenset(eqn.params["axes"])) for value in values]
    free: dict[jex.Var, Any] = {}
    for var, value in zip(eqn.invars, values, strict=True):
        if not isinstance(var, jex.Literal):
            free[var] = value
    return eval_jaxpr(assemble(list(free), eqn.outvars, [eqn], eqn.effects), (), *free.values())


class Environment:
    """The values of a jaxpr's variables while it is walked."""

    def __init__(self, closed: jex.ClosedJaxpr, args: Sequence[Any]):
        jaxpr = closed.jaxpr
        self._values: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        self._values.update(zip(jaxpr.invars, args, strict=True))

    def read(self, atoms: Sequence[Any]) -> list[Any]:
        """The values of variables and literals; `None` where nothing was written."""
        return [a.val if isinstance(a, jex.Literal) else self._values.get(a) for a in atoms]

    def write(self, variables: Sequence[Any], values: Sequence[Any]) -> None:
        """Sets the values of variables."""
        self._values.update(zip(variables, values, strict=True))
