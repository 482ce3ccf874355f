"""How JAX writes down what it has traced: typed, read-only views of its equations, and facts by primitive.

Design note. JAX documents neither the names of its primitives nor what stands in an equation's `params`, and changes
both; here is the one place that knows them. `view` tells what an equation is in terms that do not change: a `Scan` has
so many constants and a body, however this JAX writes that down. A view also makes the equation's sibling, the same
step around other jaxprs (`holding`). An ordinary equation, one that computes numbers from numbers, has no view; what
matters of it beyond that stands in the table of facts.

What is not understood degrades here: an equation in a form that is not known has no view either, so it is an ordinary
numeric equation, run by XLA as it stands. Only where it makes calls is that no answer, and an `UnsupportedError` names
the primitive and the releases that are known.

Read in JAX 0.10.2, 0.11.0 and 0.12.0.1. The rules for an equation's lanes, one for each primitive, are in `axes.py`.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import jax
from jax.extend import core as jex

from .._errors import UnsupportedError
from . import versions
from .values import is_ref

Jaxpr: TypeAlias = jex.ClosedJaxpr


@dataclass(frozen=True, eq=False)
class _View:
    """An equation, seen as what it is."""

    eqn: jex.JaxprEqn


@dataclass(frozen=True, eq=False)
class Cond(_View):
    """`lax.cond` or `lax.switch`: the first operand is the index, an int32, the others go to the branch."""

    branches: tuple[Jaxpr, ...]

    def holding(self, branches: Sequence[Jaxpr]) -> jex.JaxprEqn:
        """The same choice between other branches."""
        return sibling(self.eqn, branches=tuple(branches))


@dataclass(frozen=True, eq=False)
class While(_View):
    """`lax.while_loop`: operands are the condition's constants, the body's constants, and the first carry."""

    condition: Jaxpr
    body: Jaxpr
    condition_constants: int
    body_constants: int

    @property
    def constants(self) -> int:
        """Where the carry begins."""
        return self.condition_constants + self.body_constants

    def holding(self, condition: Jaxpr, body: Jaxpr) -> jex.JaxprEqn:
        """The same loop over other jaxprs."""
        return sibling(self.eqn, cond_jaxpr=condition, body_jaxpr=body)


@dataclass(frozen=True, eq=False)
class Scan(_View):
    """`lax.scan`, `lax.map`, a `fori_loop` with known bounds.

    Operands are constants, the first carry, and what is scanned over; results the last carry, and what steps stacked.
    """

    body: Jaxpr
    constants: int
    carry: int
    length: int
    reverse: bool
    unroll: Any

    @property
    def xs(self) -> int:
        """Where that begins which is scanned over."""
        return self.constants + self.carry

    def holding(self, body: Jaxpr) -> jex.JaxprEqn:
        """The same scan with another body, of as many operands and results of each kind."""
        return sibling(self.eqn, jaxpr=body)


@dataclass(frozen=True, eq=False)
class ClosedCall(_View):
    """What means "run this here": `jax.jit`, a nested operator's `custom_vmap`, and others that only XLA cares for."""

    body: Jaxpr
    name: str


@dataclass(frozen=True, eq=False)
class Checkpoint(_View):
    """`jax.checkpoint`: a call, with what the backward pass keeps of it."""

    body: Jaxpr
    policy: Any
    prevent_cse: Any

    def wrap(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """A function of which is saved and recomputed what the user said of this one."""
        return jax.checkpoint(fn, policy=self.policy, prevent_cse=self.prevent_cse)


@dataclass(frozen=True, eq=False)
class CustomDerivative(_View):
    """A call whose derivative is the user's: `jax.custom_jvp`, `jax.custom_vjp`."""

    body: Jaxpr
    mode: Literal["jvp", "vjp"]


@dataclass(frozen=True, eq=False)
class Host(_View):
    """A call of Python for a result: `jax.pure_callback`, `io_callback`.

    `function` is the callable as the user gave it; `callback` takes and returns flat arrays.
    """

    function: Any
    callback: Callable[..., Sequence[Any]]
    is_pure: bool
    is_ordered: bool


@dataclass(frozen=True, eq=False)
class Print(_View):
    """A call of Python for its effect: `jax.debug.print`, `jax.debug.callback`."""

    is_ordered: bool


@dataclass(frozen=True, eq=False)
class Select(_View):
    """`lax.select_n`: one of the operands after the first, element by element, by the first."""


@dataclass(frozen=True, eq=False)
class Broadcast(_View):
    """`lax.broadcast_in_dim`: axis k of the operand is axis `dimensions[k]` of the result."""

    shape: tuple[int, ...]
    dimensions: tuple[int, ...]


View = Cond | While | Scan | ClosedCall | Checkpoint | CustomDerivative | Host | Print | Select | Broadcast


def view(eqn: jex.JaxprEqn) -> View | None:
    """What an equation is, if it is more than numbers from numbers.

    **Raises:** `UnsupportedError` for an equation that makes calls and is written in a way that is not known.
    """
    make = _VIEWS.get(eqn.primitive.name)
    if make is None:
        return None
    try:
        return make(eqn)
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        if not (eqn.primitive.name in _CALLBACKS or any(map(_leaves_xla, _inner_jaxprs(eqn)))):
            return None
        raise UnsupportedError(
            f"JAX {jax.__version__} writes `{name(eqn)}` down in a way that is not known here, and calls stand in it. "
            f"This release is tested with {versions.tested()}: install one of those, or a newer "
            f"ember_jax. (In short: {type(error).__name__}: {error})"
        ) from error


# -- each primitive's params -----------------------------------------------------------------------------------------


def close(jaxpr: Any) -> Jaxpr:
    """A closed jaxpr. Until JAX 0.10 `remat2` holds an open one, without constants; since 0.11 there is one class."""
    return jaxpr if isinstance(jaxpr, jex.ClosedJaxpr) else jex.ClosedJaxpr(jaxpr, ())


def _cond(eqn: jex.JaxprEqn) -> Cond:
    return Cond(eqn, tuple(map(close, eqn.params["branches"])))


def _while(eqn: jex.JaxprEqn) -> While:
    p = eqn.params
    return While(eqn, close(p["cond_jaxpr"]), close(p["body_jaxpr"]), p["cond_nconsts"], p["body_nconsts"])


def _scan(eqn: jex.JaxprEqn) -> Scan:
    p = eqn.params
    if "ft_in" in p:  # since JAX 0.11: the operands' tree, of constants, carry and what is scanned over
        constants, carry, _ = (len(list(part)) for part in p["ft_in"].unpack())
    else:
        constants, carry = p["num_consts"], p["num_carry"]
    return Scan(eqn, close(p["jaxpr"]), constants, carry, p["length"], p["reverse"], p["unroll"])


def _call(param: str, eqn: jex.JaxprEqn) -> ClosedCall:
    return ClosedCall(eqn, close(eqn.params[param]), str(eqn.params.get("name") or ""))


def _checkpoint(eqn: jex.JaxprEqn) -> Checkpoint:
    p = eqn.params
    return Checkpoint(eqn, close(p["jaxpr"]), p["policy"], p["prevent_cse"])


def _custom(mode: Literal["jvp", "vjp"], eqn: jex.JaxprEqn) -> CustomDerivative:
    return CustomDerivative(eqn, close(eqn.params["call_jaxpr"]), mode)


def _high_level(eqn: jex.JaxprEqn) -> CustomDerivative:
    """What JAX 0.12 has for `jnp.searchsorted` and `lax.custom_root`: an object that can say what it computes, and has
    rules of its own for the rest."""
    primitive = eqn.params["_prim"]
    return CustomDerivative(eqn, _expanded(primitive, tuple(primitive.in_avals_flat)), "jvp")


def _host(is_pure: bool, eqn: jex.JaxprEqn) -> Host:
    callback = eqn.params["callback"]
    # `_FlatCallback`: the user's callable and the tree of its arguments.
    return Host(eqn, getattr(callback, "callback_func", callback), callback, is_pure, _is_ordered(eqn))


def _print(eqn: jex.JaxprEqn) -> Print:
    return Print(eqn, _is_ordered(eqn))


def _is_ordered(eqn: jex.JaxprEqn) -> bool:
    return bool(eqn.params.get("ordered")) or type(eqn.params.get("effect")).__name__ == "OrderedDebugEffect"


def _broadcast(eqn: jex.JaxprEqn) -> Broadcast:
    return Broadcast(eqn, tuple(eqn.params["shape"]), tuple(map(int, eqn.params["broadcast_dimensions"])))


_HOSTS: Mapping[str, Callable[[jex.JaxprEqn], Host]] = {
    "pure_callback": functools.partial(_host, True),
    "io_callback": functools.partial(_host, False),
}
_CALLBACKS: Mapping[str, Callable[[jex.JaxprEqn], Host | Print]] = {
    **_HOSTS,
    "debug_callback": _print,
    "debug_print": _print,
}
_CALLS: Mapping[str, Callable[[jex.JaxprEqn], ClosedCall | Checkpoint | CustomDerivative]] = {
    "jit": functools.partial(_call, "jaxpr"),
    "closed_call": functools.partial(_call, "call_jaxpr"),
    "core_call": functools.partial(_call, "call_jaxpr"),
    "custom_vmap_call": functools.partial(_call, "call"),
    "remat2": _checkpoint,  # which is the name of `jax.checkpoint`'s primitive
    "checkpoint": _checkpoint,
    "custom_jvp_call": functools.partial(_custom, "jvp"),
    "custom_vjp_call": functools.partial(_custom, "vjp"),
    "call_hi_primitive": _high_level,
}
_VIEWS: Mapping[str, Callable[[jex.JaxprEqn], View]] = {
    **_CALLBACKS,
    **_CALLS,
    "cond": _cond,
    "while": _while,
    "scan": _scan,
    "select_n": Select,
    "broadcast_in_dim": _broadcast,
}


@functools.lru_cache(maxsize=1024)
def _expanded(primitive: Any, avals: tuple[Any, ...]) -> Jaxpr:
    """What an object of JAX 0.12's high-level primitives computes, in equations.

    It compares by its parameters, among which the types of its operands are not.
    """

    def flat(*leaves: Any) -> list[Any]:
        return jax.tree.leaves(primitive.expand(*jax.tree.unflatten(primitive.in_tree, leaves)))

    return jax.make_jaxpr(flat)(*avals)


# -- short questions -------------------------------------------------------------------------------------------------


def called(eqn: jex.JaxprEqn) -> Jaxpr | None:
    """The jaxpr that an equation means to run where it stands, whatever else it means; or `None`."""
    seen = view(eqn) if eqn.primitive.name in _CALLS else None
    return seen.body if isinstance(seen, ClosedCall | Checkpoint | CustomDerivative) else None


def host(eqn: jex.JaxprEqn) -> Host | None:
    """The call of Python for a result that an equation is, if it is one."""
    seen = view(eqn) if eqn.primitive.name in _CALLBACKS else None
    return seen if isinstance(seen, Host) else None


def host_function(eqn: jex.JaxprEqn) -> Any:
    """The callable that an equation calls for a result, as it was given to JAX; or `None`."""
    seen = host(eqn)
    return None if seen is None else seen.function


def is_jit(eqn: jex.JaxprEqn) -> bool:
    """Whether an equation is a `jax.jit` of a function."""
    return eqn.primitive.name == "jit"


def is_named(eqn: jex.JaxprEqn, name: str) -> bool:
    """Whether an equation is a `jax.jit` of a function of that name."""
    return is_jit(eqn) and eqn.params.get("name") == name


def is_island(eqn: jex.JaxprEqn) -> bool:
    """Whether an equation is a `custom_vmap`, as an operator is bound."""
    return eqn.primitive.name == "custom_vmap_call"


def name(eqn: jex.JaxprEqn) -> str:
    """What users call an equation's primitive."""
    if eqn.primitive.name == "call_hi_primitive":
        return type(eqn.params.get("_prim")).__name__
    return {"while": "while_loop"}.get(eqn.primitive.name, eqn.primitive.name)


def has_effect(eqn: jex.JaxprEqn) -> bool:
    """Whether an equation does something besides computing its results."""
    return bool(eqn.effects)


def touches_ref(eqn: jex.JaxprEqn) -> bool:
    """Whether an equation makes, reads or writes a mutable array."""
    return any(map(is_ref, (*eqn.invars, *eqn.outvars)))


def meets_devices(eqn: jex.JaxprEqn) -> bool:
    """Whether an equation is a `shard_map` over several devices, which run it together."""
    return binds_axes(eqn) and eqn.params["mesh"].size > 1


def lanes_leave_alone(loop: While) -> bool:
    """Whether a loop is one that `vmap` has made of a condition which differs from lane to lane: its is an array."""
    return bool(loop.condition.out_avals[0].shape)


def mapped_axes(eqn: jex.JaxprEqn) -> list[str]:
    """The names of mapped axes that an equation runs over, as a collective does."""
    named = {str(getattr(e, "name", "")) for e in eqn.effects if type(e).__name__ == "NamedAxisEffect"}
    if eqn.primitive.name == "ppermute":  # has no such effect
        axis = eqn.params["axis_name"]
        named.update(map(str, axis if isinstance(axis, tuple | list) else (axis,)))
    return sorted(named)


def binds_axes(eqn: jex.JaxprEqn) -> bool:
    """Whether the mapped axes of the jaxprs that an equation holds are its own."""
    return eqn.primitive.name == "shard_map"


def scope(eqn: jex.JaxprEqn) -> str:
    """The names under which an equation stands in its jaxpr, outermost first, joined by slashes."""
    return str(eqn.source_info.name_stack)


@contextlib.contextmanager
def named(eqn: jex.JaxprEqn) -> Iterator[None]:
    """A context in which equations are named as those that an equation runs; an operator's name themselves."""
    if is_island(eqn):
        yield
    else:
        with jax.named_scope(eqn.params.get("name") or eqn.primitive.name):
            yield


# -- what leaves XLA -------------------------------------------------------------------------------------------------


def open_jaxpr(jaxpr: Any) -> jex.Jaxpr:
    """The jaxpr of a closed one, or itself."""
    return jaxpr.jaxpr if isinstance(jaxpr, jex.ClosedJaxpr) else jaxpr


def jaxprs_in(eqn: jex.JaxprEqn) -> Iterator[jex.Jaxpr]:
    """The jaxprs that an equation holds, and what it computes where it holds that as an object."""
    yield from _inner_jaxprs(eqn)
    if eqn.primitive.name == "call_hi_primitive" and (body := called(eqn)) is not None:
        yield open_jaxpr(body)


def _inner_jaxprs(eqn: jex.JaxprEqn) -> Iterator[jex.Jaxpr]:
    return map(open_jaxpr, jex.jaxprs_in_params(eqn.params))


@functools.lru_cache(maxsize=8192)  # jaxprs hash by identity
def _leaves_xla(jaxpr: jex.Jaxpr) -> bool:
    return any(map(leaves_xla, jaxpr.eqns))


def leaves_xla(eqn: jex.JaxprEqn) -> bool:
    """Whether an equation calls Python, itself or in a jaxpr that it holds."""
    return eqn.primitive.name in _CALLBACKS or any(map(_leaves_xla, jaxprs_in(eqn)))


@functools.lru_cache(maxsize=8192)
def _calls_host(jaxpr: jex.Jaxpr) -> bool:
    return any(map(calls_host, jaxpr.eqns))


def calls_host(eqn: jex.JaxprEqn) -> bool:
    """Whether an equation calls Python for a result, itself or in a jaxpr that it holds."""
    return eqn.primitive.name in _HOSTS or any(map(_calls_host, jaxprs_in(eqn)))


# -- siblings --------------------------------------------------------------------------------------------------------


def sibling(
    eqn: jex.JaxprEqn, invars: list[Any] | None = None, outvars: list[Any] | None = None, **params: Any
) -> jex.JaxprEqn:
    """An equation of the same primitive, on other operands, for other results, or with some parameters changed."""
    return eqn.replace(invars=invars, outvars=outvars, params={**eqn.params, **params})


def unsharded(eqn: jex.JaxprEqn) -> jex.JaxprEqn:
    """An equation that says nothing of where its results lie."""
    said = {k: None for k in ("sharding", "out_sharding") if k in eqn.params}
    return sibling(eqn, **said) if said else eqn


# -- facts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What matters of a primitive, beyond that it computes numbers.

    - `is_idle`: returns its operands. In a record, which is neither differentiated nor compiled, it does nothing.
    - `is_identity`: changes nothing of values as the host sees them, where keys are their key data.
    - `is_flat`: its floating-point results are decisions: they jump where its operands hardly differ, and have
        derivative zero.
    - `decides`: so do these, but they have a derivative, by JAX's own rule.
    - `draws`: draws other numbers under `vmap`.
    - `verb`: what it does to lanes that meet in it.
    """

    is_idle: bool = False
    is_identity: bool = False
    is_flat: bool = False
    decides: bool = False
    draws: bool = False
    verb: str = "works across"


_ORDINARY = Facts()
_FACTS: Mapping[str, Facts] = {
    "stop_gradient": Facts(is_idle=True, is_identity=True),
    "optimization_barrier": Facts(is_idle=True, is_identity=True),
    "random_wrap": Facts(is_identity=True),
    "random_unwrap": Facts(is_identity=True),
    "copy": Facts(is_identity=True),
    "copy_p": Facts(is_identity=True),
    "ceil": Facts(is_flat=True),
    "floor": Facts(is_flat=True),
    "round": Facts(is_flat=True),
    "sign": Facts(is_flat=True),
    "rem": Facts(decides=True),
    "random_gamma": Facts(decides=True),
    "rng_bit_generator": Facts(draws=True),
    "reduce_sum": Facts(verb="adds up"),
    "sort": Facts(verb="sorts"),
    "reshape": Facts(verb="merges"),
    "concatenate": Facts(verb="joins"),
}


def facts(eqn: jex.JaxprEqn) -> Facts:
    """What matters of an equation's primitive; `sort` of several operands decides where the others go."""
    found = _FACTS.get(eqn.primitive.name, _ORDINARY)
    return _SORTS_ALONG if eqn.primitive.name == "sort" and len(eqn.outvars) > 1 else found


_SORTS_ALONG = Facts(decides=True, verb="sorts")
