"""The operator boundary: a function traced once, its host side recorded, its numbers replayed.

Design note. The boundary is one `jax.jit` with the function and everything static about its arguments as a static
argument, so JAX's own cache decides when anything is traced again: never for new data. Inside it the function is traced
to a jaxpr from sharding-free types; its constants are inputs, since a constant that differs would be another program.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from .. import _callback
from .._alike import Alike, structural
from .._engine.island import record
from .._jax import jaxprs, nan, versions
from .._jax.equations import Host, calls_host
from .._jax.refuse import refuse
from .._jax.values import from_raw, is_inexact, is_ref, raw_aval, to_raw, varying
from .._plan import ir, unsplit
from .._plan.lower import lower
from .._plan.operators import Program
from .._plan.passes import simplify
from .._plan.recording import Recording
from .._plan.rewrite import without_warnings
from .._runtime import interrupt
from .._runtime import session as sessions
from .._runtime.garbage import calm
from .._runtime.loop import forbid_in_loop
from .._runtime.typed import typed_errors
from ..errors import UnsupportedError, UntestedVersionWarning
from .traced import explained, name_of


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Static:
    """Values that are no arrays, carried through JAX as structure."""

    values: tuple[Any, ...]

    def tree_flatten(self) -> tuple[tuple[()], "Static"]:
        return (), self

    @classmethod
    def tree_unflatten(cls, static: "Static", _: Any) -> "Static":
        return static


@dataclasses.dataclass(frozen=True)
class Signature:
    """What is static about a call: the tree of its arguments, what that holds, and the leaves that are no arrays."""

    tree: Any
    structural: Alike = dataclasses.field(hash=False)  # the tree hashes it
    static: tuple[Alike | None, ...]


class Boundary:
    """A function as an operator.

    **Arguments:**

    - `function`: what to run; called with the arguments, or with tracers in their place.
    - `name`: names the operator in plans, errors and profiles.
    - `how`: encloses the function's plan, as an attempt or metered. A call then returns, besides the outputs, what
        that adds to them (`ir.EXTRAS`).
    - `warns`: whether equal samples without a key are warned of.
    """

    def __init__(self, function: Callable[..., Any], name: str, how: ir.How | None = None, warns: bool = True):
        self._function = function
        self.name = name
        self._how: ir.How | None = how
        self._warns = warns

        def through(signature: Signature, launched: bool, arrays: list[Any]) -> Any:
            with calm():  # what is allocated while tracing is kept
                return self._record_and_replay(signature, launched, arrays)

        through.__name__ = through.__qualname__ = name
        self._jitted = jax.jit(through, static_argnums=(0, 1))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs through JAX: traced, recorded, replayed."""
        forbid_in_loop(self.name)
        interrupt.install()
        signature, arrays = split((args, kwargs))
        return self._through_jax(signature, arrays)

    def clear_cache(self) -> None:
        """Forgets what was traced and compiled."""
        jitted: Any = self._jitted
        jitted.clear_cache()

    def _through_jax(self, signature: Signature, arrays: list[Any]) -> Any:
        run = functools.partial(self._jitted, signature, _in_a_program(arrays))
        # Under `jax.disable_jit` an outer `vmap` still needs the boundary.
        with jax.disable_jit(False), typed_errors(), nan.nan_is_a_value(), sessions.prepared():
            outputs = without_explicit_axes(run, arrays)
            if _callback.all_concrete(outputs):
                jax.block_until_ready(outputs)
        made = outputs if self._how is None else outputs[0]
        if nan.is_nan_checked():
            self._check_for_nan(signature, arrays, made)
        return join_outputs(made) if self._how is None else (join_outputs(made), outputs[1])

    def _check_for_nan(self, signature: Signature, arrays: Sequence[Any], outputs: Any) -> None:
        """Checks, where JAX is told to, what is computed from numbers alone: a call's NaN is a value."""
        if not _callback.all_concrete((arrays, outputs)):
            return  # JAX checks what becomes of them
        with no_mesh(), nan.nan_is_a_value():
            closed, _, _ = self.trace(signature, [_struct(jax.typeof(a)) for a in arrays])
        for output, is_numeric in zip(jax.tree.leaves(outputs), _are_numeric(closed.jaxpr), strict=True):
            if is_numeric and nan.is_refused(output):
                raise FloatingPointError(
                    f"{self.name} returns NaN or infinity that is computed from numbers, and jax_debug_nans or "
                    "jax_debug_infs is set. Run it with jax.disable_jit() to see where it comes from."
                )

    def trace(self, signature: Signature, avals: Sequence[Any]) -> tuple[jex.ClosedJaxpr, Any, list[Any]]:
        """Traces the function on types, or on values that tell their types.

        **Returns:** its jaxpr, whose first inputs are its constants; the tree of its outputs; the constants.
        """
        _warn_if_untested(jax.__version__)
        tree: Any = None

        def flat(*leaves: Any) -> list[Any]:
            nonlocal tree
            args, kwargs = unite(signature, leaves)
            outputs = split_outputs(self._function(*args, **kwargs))
            found, tree = jax.tree.flatten(outputs)
            return found

        closed = jax.make_jaxpr(flat)(*avals)
        if any(map(is_ref, closed.jaxpr.constvars)):
            raise UnsupportedError(f"{self.name} closes over a mutable array, of jax.new_ref. {_NO_REFS}")
        lifted, constants = jaxprs.lifted(jaxprs.with_equal_constants_once(closed))
        return lifted, tree, constants

    def program(self, recording: Recording, launched: bool = False) -> Program:
        """The recorded half of a traced function, lowered; it may be `launched` ahead if it makes no impure calls."""

        def recorded(*raw: Any) -> list[Any]:
            invars = recording.closed.jaxpr.invars
            outputs, slots = recording.record([from_raw(x, v.aval) for x, v in zip(raw, invars, strict=True)])
            return [*slots, *map(to_raw, outputs)]

        with no_mesh():
            closed = jax.make_jaxpr(recorded)(*(raw_aval(v.aval) for v in recording.closed.jaxpr.invars))
            slots = len(recording.slots)
            lowered = lower(closed)
            plan = simplify(lowered, slots)
            if self._how is not None:
                plan = _enclosed(plan, self._how)
            if not self._warns:
                plan = without_warnings(plan)
        # JAX drops a pure callback without results, and with it what the plan prints.
        effectful = not plan.outputs or _has_impure_call(plan)
        return Program(self.name, lowered, plan, effectful, launched and not effectful, self._how is not None)

    def _record_and_replay(self, signature: Signature, launched: bool, arrays: list[Any]) -> Any:
        sessions.prepare()
        extras = ir.EXTRAS[self._how] if self._how else ()
        try:
            with no_mesh():
                closed, tree, constants = self.trace(signature, [_struct(jax.typeof(a)) for a in arrays])
        except AssertionError as error:
            if not varying(arrays):
                raise
            raise UnsupportedError(  # JAX itself asserts that what a collective reduces differs from device to device
                f"{self.name} cannot be traced inside a `shard_map`. Its lanes do not meet, so collectives over the "
                "mapped axes have no meaning in it: return the values and reduce them outside."
            ) from error
        if not any(map(calls_host, closed.jaxpr.eqns)):  # nothing to record: the function as it stands
            closed, tree, constants = self.trace(signature, arrays)
            outputs = jax.tree.unflatten(tree, jaxprs.evaluated(closed, *constants, *arrays))
            return outputs if self._how is None else (outputs, [jnp.zeros(e.shape, e.dtype) for e in extras])
        refuse(closed.jaxpr)
        if unsplit.holds(closed.jaxpr, unsplit.unsplitting.value):
            outs = unsplit.bind(unsplit.Unsplit(self.name, closed, self._how), [*constants, *arrays])
            made = len(closed.jaxpr.outvars)
            outputs = jax.tree.unflatten(tree, outs[:made])
            return outputs if self._how is None else (outputs, outs[made:])
        recording = Recording(closed, [True] * len(closed.jaxpr.outvars))
        program = self.program(recording, launched)
        plan, inputs = program.plan, [to_raw(jax.lax.stop_gradient(x)) for x in (*constants, *arrays)]
        if plan.nodes:
            slots = record(program, inputs)
        else:  # no call is left, and what is recorded is known
            slots = [jnp.asarray(inputs[v] if v < plan.inputs else plan.constants[v]) for v in plan.outputs]
        if not jax.sharding.get_abstract_mesh().empty:
            # The replay runs under the caller's mesh, where types say more than shapes: it is traced there. The two
            # traces of one function differ in casts only, so their records are the same.
            closed, tree, constants = self.trace(signature, arrays)
            recording = Recording(closed, [True] * len(closed.jaxpr.outvars))
        made = len(slots) - len(extras)
        outputs = jax.tree.unflatten(tree, recording.replay([*constants, *arrays], slots[:made]))
        return outputs if self._how is None else (outputs, slots[made:])


def boundary_for(fn: Callable[..., Any]) -> Boundary:
    """A boundary of its own for a function."""
    name = name_of(fn)

    def traced(*args: Any, **kwargs: Any) -> Any:
        with explained(name):
            return fn(*args, **kwargs)

    return Boundary(traced, name)


@functools.cache  # once in a process
def _warn_if_untested(installed: str) -> None:
    if message := versions.untested(installed):
        warnings.warn(message, UntestedVersionWarning, stacklevel=2)


def _in_a_program(arrays: Sequence[Any]) -> bool:
    """Whether other operators may run beside the one of such inputs, in an order that is known; see `tickets`."""
    return not _callback.all_concrete(arrays) and not _callback.is_eager() and jax.default_backend() == "cpu"


def no_mesh() -> Any:
    """A context without a mesh: what is traced in it has no shardings."""
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))


def without_explicit_axes(fn: Callable[[list[Any]], Any], arrays: list[Any]) -> Any:
    """Calls `fn` where no array's type says how it is sharded.

    An operator's lanes run on the host, which gathers its inputs; explicit mesh axes are made automatic for it, and its
    results are whole.
    """
    meshes = [jax.typeof(a).sharding.mesh for a in arrays]
    explicit = [m for m in meshes if jax.sharding.AxisType.Explicit in m.axis_types]
    if not explicit:
        return fn(arrays)
    mesh = explicit[0]
    axes = tuple(
        n for n, t in zip(mesh.axis_names, mesh.axis_types, strict=True) if t == jax.sharding.AxisType.Explicit
    )
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.sharding.auto_axes(fn, axes=axes, out_sharding=jax.sharding.PartitionSpec())(arrays)


def _are_numeric(jaxpr: jex.Jaxpr) -> list[bool]:
    """Which outputs are floating-point numbers that depend on none which a call gives."""
    given: set[Any] = set()
    for eqn in jaxpr.eqns:
        if calls_host(eqn) or any(v in given for v in eqn.invars if not isinstance(v, jex.Literal)):
            given.update(v for v in eqn.outvars if is_inexact(v.aval))
    return [is_inexact(v.aval) and (isinstance(v, jex.Literal) or v not in given) for v in jaxpr.outvars]


_NO_REFS = "What an operator writes to one would be lost: give it the array, and return what it is to become."


def _struct(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def _enclosed(plan: ir.Plan, how: ir.How) -> ir.Plan:
    """A plan of one step, which holds a plan."""
    types = (*plan.types[: plan.inputs], *plan.avals, *ir.EXTRAS[how])
    inputs, outputs = tuple(range(plan.inputs)), tuple(range(plan.inputs, len(types)))
    return ir.Plan(plan.inputs, types, {}, (ir.Enclosed(inputs, outputs, "", plan, how),), outputs)


def _has_impure_call(plan: ir.Plan) -> bool:
    for node in plan.nodes:
        match node:
            case ir.Call():
                impure = not node.function.pure
            case ir.Foreign():
                impure = isinstance(node.seen, Host) and not node.seen.is_pure
            case _:
                impure = any(map(_has_impure_call, node.plans))
        if impure:
            return True
    return False


# -- arguments and results as arrays and the rest --------------------------------------------------------------------


def split(tree: Any) -> tuple[Signature, list[Any]]:
    """An argument tree as its static part and its arrays, as `eqx.filter_jit` would split it.

    **Raises:** `TypeError` for a leaf that is neither an array nor hashable, `UnsupportedError` for a mutable array.
    """
    leaves, structure = jax.tree.flatten(tree)
    arrays, static = [], []
    for leaf in leaves:
        if is_ref(leaf):
            raise UnsupportedError(f"an argument is a mutable array, of jax.new_ref. {_NO_REFS}")
        if isinstance(leaf, jax.Array) or (isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind not in "OUST"):
            arrays.append(_strong(jnp.asarray(leaf)))
            static.append(None)
        else:
            static.append(_hashable(leaf))
    return Signature(structure, Alike(structural(structure)), tuple(static)), arrays


def unite(signature: Signature, arrays: Sequence[Any]) -> Any:
    """The inverse of `split`."""
    given = iter(arrays)
    return jax.tree.unflatten(signature.tree, [next(given) if s is None else s.value for s in signature.static])


def _hashable(leaf: Any) -> Alike:
    try:
        hash(leaf)
    except TypeError:
        raise TypeError(
            f"an argument holds {leaf!r:.80} of type {type(leaf).__name__}, which is neither an array nor hashable, so "
            "it can be neither traced nor kept static. Convert it to an array or a Text."
        ) from None
    return Alike(leaf)


def _strong(array: Any) -> Any:
    """Without weak typing: a scalar setting is the same program whether it came as 0.5 or as an array."""
    return jax.lax.convert_element_type(array, array.dtype) if jax.typeof(array).weak_type else array


def split_outputs(tree: Any) -> Any:
    """Outputs as JAX can return them: arrays, and the rest as structure."""
    leaves, structure = jax.tree.flatten(tree)
    arrays = [x for x in leaves if eqx.is_array_like(x)]
    static = Static((structure, tuple(None if eqx.is_array_like(x) else (x,) for x in leaves)))
    return static, [jnp.asarray(a) for a in arrays]


def join_outputs(outputs: Any) -> Any:
    """The inverse of `split_outputs`."""
    static, arrays = outputs
    structure, rest = static.values
    given = iter(arrays)
    return jax.tree.unflatten(structure, [next(given) if r is None else r[0] for r in rest])
