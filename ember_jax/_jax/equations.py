"""How JAX writes down what it has traced: typed, read-only views of its equations, and facts by primitive.

Design note. JAX documents neither the names of its primitives nor what stands in an equation's `params`, and changes
both. This folder alone knows them. `view` says what an equation is in terms that do not change: a `Scan` has so many
constants and a body, however the installed JAX writes that down. A view can also make a sibling of its equation, which
is the same step around other jaxprs (`holding`). An ordinary equation, which computes numbers from numbers, has no
view; whatever else matters of such a primitive stands in the table of facts.

An equation that is written in an unknown form has no view either. It is then treated as an ordinary numeric equation,
which XLA runs as it stands: that is slower than it might be, and right. If calls stand in such an equation, XLA cannot
run them for us, and an `UnsupportedError` names the primitive and the releases that are known.

Read in JAX 0.10.2, 0.11.0 and 0.12.0.1. The rules for an equation's lanes, one for each primitive, are in `axes.py`.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import jax
from jax.extend import core as jex

from ..errors import UnsupportedError
from . import versions
from .values import is_ref

Jaxpr: TypeAlias = jex.ClosedJaxpr


@dataclass(frozen=True, eq=False)
class _View:
    """The base of all views: it holds the equation that is seen. Views compare by identity."""

    eqn: jex.JaxprEqn


@dataclass(frozen=True, eq=False)
class Cond(_View):
    """`lax.cond` or `lax.switch`: the first operand is the index, an int32; the others are given to the branch."""

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
        """How many operands are constants, which is also the position at which the carry begins."""
        return self.condition_constants + self.body_constants

    def holding(self, condition: Jaxpr, body: Jaxpr) -> jex.JaxprEqn:
        """The same loop over other jaxprs."""
        return sibling(self.eqn, cond_jaxpr=condition, body_jaxpr=body)


@dataclass(frozen=True, eq=False)
class Scan(_View):
    """`lax.scan`, `lax.map`, a `fori_loop` with known bounds.

    The operands are, in this order, constants, the first carry, and what is scanned over. The results are the last
    carry, and what the steps stack. `constants` and `carry` are the numbers of these.
    """

    body: Jaxpr
    constants: int
    carry: int
    length: int
    reverse: bool
    unroll: Any

    @property
    def xs(self) -> int:
        """The position of the first operand that is scanned over."""
        return self.constants + self.carry

    def holding(self, body: Jaxpr) -> jex.JaxprEqn:
        """The same scan with another body, which has as many constants, carries and scanned operands as this one's."""
        return sibling(self.eqn, jaxpr=body)


@dataclass(frozen=True, eq=False)
class ClosedCall(_View):
    """An equation that means "run this jaxpr here": `jax.jit`, a nested operator's `custom_vmap`, and others whose
    difference matters to XLA alone."""

    body: Jaxpr
    name: str


@dataclass(frozen=True, eq=False)
class Checkpoint(_View):
    """`jax.checkpoint`: a call, with a policy that says what the backward pass keeps of its values."""

    body: Jaxpr
    policy: Any
    prevent_cse: Any

    def wrap(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn` under `jax.checkpoint` with the policy that the user gave for this equation."""
        return jax.checkpoint(fn, policy=self.policy, prevent_cse=self.prevent_cse)


@dataclass(frozen=True, eq=False)
class CustomDerivative(_View):
    """A call whose derivative is the user's: `jax.custom_jvp`, `jax.custom_vjp`."""

    body: Jaxpr
    mode: Literal["jvp", "vjp"]


@dataclass(frozen=True, eq=False)
class Host(_View):
    """A call of Python for a result: `jax.pure_callback`, `io_callback`.

    `function` is the callable that was given to JAX; `callback`, which JAX made of it, takes and returns flat arrays.
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
    """`lax.select_n`: for each element, the first operand says which of the other operands it is taken from."""


@dataclass(frozen=True, eq=False)
class Broadcast(_View):
    """`lax.broadcast_in_dim`: axis k of the operand is axis `dimensions[k]` of the result."""

    shape: tuple[int, ...]
    dimensions: tuple[int, ...]


View = Cond | While | Scan | ClosedCall | Checkpoint | CustomDerivative | Host | Print | Select | Broadcast


def view(eqn: jex.JaxprEqn) -> View | None:
    """The view of an equation; `None` for an ordinary one, and for one whose form is not known and that makes no calls.

    **Raises:** `UnsupportedError` for an equation that makes calls and is written in a way that is not known.
    """
    make = _VIEWS.get(eqn.primitive.name)
    if make is None:
        return None
    try:
        return make(eqn)
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        # What the constructors above raise for parameters that are missing, or have another form than in known
        # releases.
        if not (eqn.primitive.name in _CALLBACKS or any(map(_leaves_xla, _inner_jaxprs(eqn)))):
            return None
        raise UnsupportedError(
            f"JAX {jax.__version__} writes `{name(eqn)}` down in a way that is not known here, and calls stand in it. "
            f"This release is tested with {versions.tested()}: install one of those, or a newer "
            f"ember_jax. (In short: {type(error).__name__}: {error})"
        ) from error


# -- each primitive's params -----------------------------------------------------------------------------------------


def close(jaxpr: Any) -> Jaxpr:
    """The jaxpr as a closed one. Until JAX 0.10 `remat2` holds an open jaxpr without constants; since JAX 0.11 there is
    one class for both."""
    return jaxpr if isinstance(jaxpr, jex.ClosedJaxpr) else jex.ClosedJaxpr(jaxpr, ())


def _cond(eqn: jex.JaxprEqn) -> Cond:
    return Cond(eqn, tuple(map(close, eqn.params["branches"])))


def _while(eqn: jex.JaxprEqn) -> While:
    p = eqn.params
    return While(eqn, close(p["cond_jaxpr"]), close(p["body_jaxpr"]), p["cond_nconsts"], p["body_nconsts"])


def _scan(eqn: jex.JaxprEqn) -> Scan:
    p = eqn.params
    if "ft_in" in p:  # since JAX 0.11: a tree of the operands, whose parts are constants, carry and scanned operands
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
    """The view of what JAX 0.12 has for `jnp.searchsorted` and `lax.custom_root`: an object that can expand to the
    equations that it computes, and has its own rule for the derivative."""
    primitive = eqn.params["_prim"]
    return CustomDerivative(eqn, _expanded(primitive, tuple(primitive.in_avals_flat)), "jvp")


def _host(is_pure: bool, eqn: jex.JaxprEqn) -> Host:
    callback = eqn.params["callback"]
    # The callback is JAX's private `_FlatCallback`, which holds the user's callable and the tree of its arguments.
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
    "remat2": _checkpoint,  # the name that the primitive of `jax.checkpoint` has in jaxprs
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
    """The jaxpr of what an object of JAX 0.12's high-level primitives computes.

    The types of its operands, `avals`, are part of the cache's key: two such objects are equal if their parameters are,
    and the types are not among these.
    """

    def flat(*leaves: Any) -> list[Any]:
        return jax.tree.leaves(primitive.expand(*jax.tree.unflatten(primitive.in_tree, leaves)))

    return jax.make_jaxpr(flat)(*avals)


# -- short questions -------------------------------------------------------------------------------------------------


def called(eqn: jex.JaxprEqn) -> Jaxpr | None:
    """The jaxpr that an equation runs where it stands, if it is a call of any kind (also a checkpoint or a custom
    derivative); else `None`."""
    seen = view(eqn) if eqn.primitive.name in _CALLS else None
    return seen.body if isinstance(seen, ClosedCall | Checkpoint | CustomDerivative) else None


def host(eqn: jex.JaxprEqn) -> Host | None:
    """The view of an equation that calls Python for a result; `None` for any other equation."""
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
    """Whether an equation is a `custom_vmap`, which is how an operator is bound."""
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
    """Whether `vmap` has made this loop of one whose condition differs from lane to lane: the condition is an array."""
    return bool(loop.condition.out_avals[0].shape)


def mapped_axes(eqn: jex.JaxprEqn) -> list[str]:
    """The names of the mapped axes that an equation runs over, as a collective does; sorted."""
    named = {str(getattr(e, "name", "")) for e in eqn.effects if type(e).__name__ == "NamedAxisEffect"}
    if eqn.primitive.name == "ppermute":  # the one collective without such an effect: its axes stand in a parameter
        axis = eqn.params["axis_name"]
        named.update(map(str, axis if isinstance(axis, tuple | list) else (axis,)))
    return sorted(named)


def binds_axes(eqn: jex.JaxprEqn) -> bool:
    """Whether an equation binds mapped axes itself, so that collectives in its jaxprs need none from outside."""
    return eqn.primitive.name == "shard_map"


def scope(eqn: jex.JaxprEqn) -> str:
    """The names under which an equation stands in its jaxpr, outermost first, joined by slashes."""
    return str(eqn.source_info.name_stack)


@contextlib.contextmanager
def named(eqn: jex.JaxprEqn) -> Iterator[None]:
    """A context in which the equations that are traced get the name scope that JAX would give to those which `eqn`
    runs. An operator has none here: its equations carry its name already."""
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
    """The jaxprs that an equation holds; for one of JAX 0.12's objects, also the jaxpr that the object expands to."""
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
    """An equation of the same primitive, with other operands or results (`None` keeps them), or with some parameters
    changed."""
    return eqn.replace(invars=invars, outvars=outvars, params={**eqn.params, **params})


def unsharded(eqn: jex.JaxprEqn) -> jex.JaxprEqn:
    """The equation without a sharding of its results."""
    said = {k: None for k in ("sharding", "out_sharding") if k in eqn.params}
    return sibling(eqn, **said) if said else eqn


# -- facts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What matters of a primitive, beyond that it computes numbers.

    - `is_idle`: it returns its operands. It only tells derivatives or the compiler something, so in a record, which is
        neither differentiated nor compiled, it does nothing.
    - `is_identity`: it leaves values as they are, as the host sees them, where keys are their key data.
    - `is_flat`: its floating-point results are decisions: they may jump where the operands hardly differ, and their
        derivative is zero.
    - `is_fixed`: by JAX's own rule its results have no derivative, though they are its operands.
    - `decides`: its floating-point results may jump as well, but they have a derivative, by JAX's own rule.
    - `draws`: under `vmap` it draws other numbers than without.
    - `verb`: the word for what it does to lanes that meet in it; for messages.
    """

    is_idle: bool = False
    is_identity: bool = False
    is_flat: bool = False
    is_fixed: bool = False
    decides: bool = False
    draws: bool = False
    verb: str = "works across"


_ORDINARY = Facts()
_FACTS: Mapping[str, Facts] = {
    "stop_gradient": Facts(is_idle=True, is_identity=True, is_fixed=True),
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
    """What matters of an equation's primitive. A `sort` of several operands also decides: the first ones say where the
    entries of the others go."""
    found = _FACTS.get(eqn.primitive.name, _ORDINARY)
    return _SORTS_ALONG if eqn.primitive.name == "sort" and len(eqn.outvars) > 1 else found


_SORTS_ALONG = Facts(decides=True, verb="sorts")
