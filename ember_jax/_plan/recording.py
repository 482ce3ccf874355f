"""Record and replay: an operator's jaxpr split into what the host decides and what XLA computes.

Design note. An operator runs twice. The *record* runs on the host, makes the calls, and hands over some values. The
*replay* runs in XLA, makes no call, and computes the operator's outputs from these values, so that they have
derivatives. `Recording` walks a jaxpr backwards from the outputs that are needed and decides for each equation which of
its results are recorded and which the replay computes again:

- Results of host calls are recorded; so is every integer, boolean or key that was computed from floating-point
  numbers or keys (a comparison, `argmax`, a draw). If two compilations computed such a discrete value, it could come
  out differently, and the replay would return something else than what was called. Floating-point numbers are computed
  again, so that they have derivatives.
- A control-flow equation whose needed results are all discrete is recorded whole: nothing inside it is replayed.
  Otherwise its body is split the same way; `scan` stacks its records, branches of a `cond` share theirs by type.
- A `while_loop` with calls is recorded whole. To differentiate its numbers would take a record of unknown length. So a
  guard raises `GradientError` if a tangent reaches the loop's operands, instead of letting the derivative be zero.

Both halves are ordinary JAX functions, `record(*args) -> (outputs, slots)` and `replay(args, slots) -> outputs`. A
*slot* is one recorded array. The plan is lowered from the jaxpr of `record` with the slots as its only outputs; so
whatever only the replay needs is dead code in the plan, and the executor knows nothing of recording. The alternative
was an executor that fills slots as it goes. It was rejected, as it put the layout of the record into every control
node.
"""

import abc
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend import core as jex

from .._jax import equations
from .._jax.equations import Checkpoint, Cond, CustomDerivative, Host, Scan, While, calls_host, facts, leaves_xla
from .._jax.jaxprs import Environment, evaluate
from .._jax.values import Aval, from_raw, is_inexact, raw_aval, to_raw, vary, varying
from .._types import is_key
from ..errors import GradientError

Values = Sequence[Any]


class Step(abc.ABC):
    """What becomes of one equation in the record and in the replay.

    **Attributes:**

    - `slots`: the shapes and dtypes of what is recorded, in the order in which `record` returns them.
    - `reads`: for each operand, whether the replay needs it. An operand that it does not need may be `None` there.
    """

    eqn: jex.JaxprEqn
    slots: tuple[Aval, ...]
    reads: tuple[bool, ...]

    @abc.abstractmethod
    def record(self, values: Values) -> tuple[list[Any], list[Any]]:
        """Evaluates the equation; returns its results and its slots."""

    @abc.abstractmethod
    def replay(self, values: Values, slots: Values) -> list[Any]:
        """The equation's results from its operands and the slots; `None` for results that nothing needs."""


class Recorded(Step):
    """Some results are recorded. If `recompute`, the replay runs the same equation for the others, and all its operands
    are needed there; else only recorded results are known to the replay."""

    def __init__(self, eqn: jex.JaxprEqn, recorded: Sequence[int], recompute: bool):
        self.eqn = eqn
        self._recorded = tuple(recorded)
        self._recompute = recompute
        self.slots = tuple(raw_aval(eqn.outvars[i].aval) for i in recorded)
        self.reads = (recompute,) * len(eqn.invars)

    def record(self, values: Values) -> tuple[list[Any], list[Any]]:
        outs = evaluate(self.eqn, values)
        return outs, [to_raw(outs[i]) for i in self._recorded]

    def replay(self, values: Values, slots: Values) -> list[Any]:
        outs = evaluate(self.eqn, values) if self._recompute else [None] * len(self.eqn.outvars)
        for i, slot in zip(self._recorded, slots, strict=True):
            outs[i] = from_raw(slot, self.eqn.outvars[i].aval)
        return outs


class Guarded(Step):
    """A loop with calls, or an unknown construct with calls, all of whose needed results are recorded.

    Its floating-point results have no derivative. The replay therefore reads its floating-point operands, only to raise
    `GradientError` if one of them is differentiated.
    """

    def __init__(self, eqn: jex.JaxprEqn, needed: Sequence[bool]):
        self.eqn = eqn
        self._recorded = [i for i, n in enumerate(needed) if n]
        self.slots = tuple(raw_aval(eqn.outvars[i].aval) for i in self._recorded)
        numbers = any(is_inexact(eqn.outvars[i].aval) for i in self._recorded)
        self.reads = tuple(numbers and is_inexact(v.aval) for v in eqn.invars)

    def record(self, values: Values) -> tuple[list[Any], list[Any]]:
        outs = evaluate(self.eqn, values)
        return outs, [to_raw(outs[i]) for i in self._recorded]

    def replay(self, values: Values, slots: Values) -> list[Any]:
        operands = [v for v, read in zip(values, self.reads, strict=True) if read]
        what = f"a `{equations.name(self.eqn)}`"
        outs: list[Any] = [None] * len(self.eqn.outvars)
        for i, slot in zip(self._recorded, slots, strict=True):
            aval = self.eqn.outvars[i].aval
            out = from_raw(slot, aval)
            outs[i] = _not_differentiable(what, out, operands) if is_inexact(aval) else out
        return outs


_WAY_OUT = (
    "Make its calls before it and give it what they answer, differentiate inside the operator, as in "
    "`ember.jit(jax.grad(f))`, or put `jax.lax.stop_gradient` around what it is given."
)
_WAYS_OUT = {
    "a `while_loop`": "Use `jax.lax.scan` with a fixed length, which is differentiable, or put "
    "`jax.lax.stop_gradient` around what the loop is given."
}


# Returns a recorded number, and raises if any of the operands that it was computed from has a tangent. `symbolic_zeros`
# tell which operands are not differentiated at all: with ordinary zeros every derivative nearby would raise.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _not_differentiable(what: str, recorded: jax.Array, operands: list[jax.Array]) -> jax.Array:
    return recorded


@functools.partial(_not_differentiable.defjvp, symbolic_zeros=True)
def _(what: str, primals: Any, tangents: Any) -> Any:
    if any(not isinstance(t, SymbolicZero) for t in jax.tree.leaves(tangents[1])):
        raise GradientError(
            f"{what} that makes calls was differentiated. Its numbers are recorded while it runs, so their "
            f"derivative would silently be zero. {_WAYS_OUT.get(what, _WAY_OUT)}"
        )
    return primals[0], tangents[0]


class Called(Step):
    """An equation that means "run this here" (`jit`, a nested operator, `jax.checkpoint`): its body is split in place.

    The replay of a `jax.checkpoint` is under a checkpoint with the same policy. The record has none, as nothing
    differentiates it.
    """

    def __init__(self, eqn: jex.JaxprEqn, body: "Recording"):
        self.eqn = eqn
        self._body = body
        self.slots, self.reads = body.slots, body.reads

    def record(self, values: Values) -> tuple[list[Any], list[Any]]:
        with equations.named(self.eqn):
            return self._body.record(values)

    def replay(self, values: Values, slots: Values) -> list[Any]:
        seen, body = equations.view(self.eqn), self._body.replay
        if isinstance(seen, Checkpoint):
            body = seen.wrap(body)
        with equations.named(self.eqn):
            return body(list(values), list(slots))


class CustomJVP(Step):
    """`jax.custom_jvp` around calls: the replay gives the primal, and the user's rule the tangents.

    It also serves equations whose numbers are recorded although JAX has a derivative of them (see `_step`): then JAX's
    own rule for the equation gives the tangents.
    """

    def __init__(self, eqn: jex.JaxprEqn, body: "Recording | Recorded"):
        self.eqn = eqn
        self._body = body
        self.slots, self.reads = body.slots, (True,) * len(eqn.invars)

    def record(self, values: Values) -> tuple[list[Any], list[Any]]:
        return self._body.record(values)

    def replay(self, values: Values, slots: Values) -> list[Any]:
        @jax.custom_jvp
        def primal(values: Values, slots: Values) -> list[Any]:
            return self._body.replay(values, slots)

        @primal.defjvp
        def _(primals: Any, tangents: Any) -> Any:
            # The original equation is differentiated, so that JAX applies the user's rule to it. That also gives its
            # primal results, which would make the calls again; they are dropped here, and XLA drops the calls with
            # them.
            rule = lambda *xs: evaluate(self.eqn, xs)
            return primal(*primals), jax.jvp(rule, tuple(primals[0]), tuple(tangents[0]))[1]

        return primal(list(values), list(slots))


class CustomVJP(Step):
    """`jax.custom_vjp` around calls: the replay gives the primal, and the user's rule pulls cotangents back."""

    def __init__(self, eqn: jex.JaxprEqn, body: "Recording"):
        self.eqn = eqn
        self._body = body
        self.slots, self.reads = body.slots, (True,) * len(eqn.invars)

    def record(self, values: Values) -> tuple[list[Any], list[Any]]:
        return self._body.record(values)

    def replay(self, values: Values, slots: Values) -> list[Any]:
        @jax.custom_vjp
        def primal(values: Values, slots: Values) -> list[Any]:
            return self._body.replay(values, slots)

        def forward(values: Values, slots: Values) -> tuple[list[Any], Any]:
            _, pullback = jax.vjp(lambda *xs: evaluate(self.eqn, xs), *values)
            return primal(values, slots), (pullback, slots)

        def backward(residuals: Any, cotangents: Any) -> Any:
            pullback, slots = residuals
            zeros = [jnp.zeros(s.shape, s.dtype) if is_inexact(s) else _float0(s) for s in slots]
            return list(pullback(list(cotangents))), zeros

        primal.defvjp(forward, backward)
        return primal(list(values), list(slots))


class Branched(Step):
    """A `cond` or `switch` with numeric results: each branch is split, and the replay takes the branch by the index.

    Only one branch runs, so branches share their slots (see `_share`). `plain` says that no branch records anything or
    calls Python; the equation may then be run again as it stands, which needs no split.
    """

    def __init__(self, cond: Cond, recorded: Sequence[int], needed: Sequence[bool]):
        self.eqn = eqn = cond.eqn
        self._recorded = tuple(recorded)
        self._branches = [Recording(b, needed) for b in cond.branches]
        own = tuple(raw_aval(eqn.outvars[i].aval) for i in recorded)
        shared, self._places = _share([b.slots for b in self._branches])
        self.slots = own + shared
        self._needed = tuple(needed)
        self.reads = (True, *(any(r) for r in zip(*(b.reads for b in self._branches), strict=True)))
        self.plain = not shared and not any(leaves_xla_jaxpr(b.closed) for b in self._branches)

    def record(self, values: Values) -> tuple[list[Any], list[Any]]:
        shared = self.slots[len(self._recorded) :]

        def branch(body: "Recording", places: Sequence[int]) -> Any:
            def run(*operands: Any) -> Any:
                outs, slots = body.record(operands)
                # All branches of a `cond` return the same types: places that this branch does not use hold zeros.
                filled = [jnp.zeros(s.shape, s.dtype) for s in shared]
                for place, slot in zip(places, slots, strict=True):
                    filled[place] = slot
                return outs, filled

            return run

        branches = [branch(b, p) for b, p in zip(self._branches, self._places, strict=True)]
        outs, slots = jax.lax.switch(_index(values[0]), branches, *values[1:])
        return outs, [*(to_raw(outs[i]) for i in self._recorded), *slots]

    def replay(self, values: Values, slots: Values) -> list[Any]:
        own, shared = slots[: len(self._recorded)], list(slots[len(self._recorded) :])
        # An operand that no branch reads in the replay may not have been computed there (it is `None`), so it is left
        # out.
        read = [i for i, r in enumerate(self.reads[1:]) if r]

        def branch(body: "Recording", places: Sequence[int]) -> Any:
            def run(slots: Values, operands: Values) -> Any:
                args: list[Any] = [None] * len(body.reads)
                for i, operand in zip(read, operands, strict=True):
                    args[i] = operand
                outs = body.replay(args, [slots[p] for p in places])
                return [o for o, n in zip(outs, self._needed, strict=True) if n]

            return run

        branches = [branch(b, p) for b, p in zip(self._branches, self._places, strict=True)]
        # In a `shard_map` JAX 0.10 cannot batch a `cond` whose branches cast their operands to vary over the mesh. So
        # the operands are cast before the `cond`, and no branch has to.
        axes = varying(v for v in values if v is not None)
        operands = [vary(values[1 + i], axes) for i in read]
        needed = jax.lax.switch(_index(values[0]), branches, [vary(s, axes) for s in shared], operands)
        outs = _spread(needed, self._needed)
        for i, slot in zip(self._recorded, own, strict=True):
            outs[i] = from_raw(slot, self.eqn.outvars[i].aval)
        return outs


class Scanned(Step):
    """A `scan` with numeric results: the records of its steps are stacked, and the replay scans over the stack.

    The replay carries only the carries that it needs. `plain` says that its steps record nothing and call no Python;
    the equation may then be run again as it stands.
    """

    def __init__(self, scan: Scan, recorded: Sequence[int], needed: Sequence[bool]):
        self.eqn = eqn = scan.eqn
        self._recorded = tuple(recorded)
        self._scan, self._consts, self._carry = scan, scan.constants, scan.carry
        body, first_ys = scan.body, self._carry
        carried = list(needed[:first_ys])
        # A carry is needed if its last value is, or if a step of the replay reads it. To need one more carry may make
        # the steps read others, so the body is split again until no carry is added.
        while True:
            self._body = Recording(body, [*carried, *needed[first_ys:]])
            reads = self._body.reads[self._consts : self._consts + self._carry]
            wider = [c or r for c, r in zip(carried, reads, strict=True)]
            if wider == carried:
                break
            carried = wider
        self._carried, self._needed = carried, tuple(needed)
        own = tuple(raw_aval(eqn.outvars[i].aval) for i in recorded)
        stacked = tuple(Aval((scan.length, *s.shape), s.dtype) for s in self._body.slots)
        self.slots = own + stacked
        reads = list(self._body.reads)
        reads[self._consts : self._consts + self._carry] = carried
        self.reads = tuple(reads)
        self.plain = not stacked and not leaves_xla_jaxpr(body)

    def _parts(self, values: Values) -> tuple[list[Any], list[Any], list[Any]]:
        xs = self._consts + self._carry
        return list(values[: self._consts]), list(values[self._consts : xs]), list(values[xs:])

    def _scanned(self, step: Any, carry: Any, xs: Any) -> Any:
        scan = self._scan
        return jax.lax.scan(step, carry, xs, length=scan.length, reverse=scan.reverse, unroll=scan.unroll)

    def record(self, values: Values) -> tuple[list[Any], list[Any]]:
        consts, carry, xs = self._parts(values)

        def step(carry: Any, x: Any) -> Any:
            outs, slots = self._body.record([*consts, *carry, *x])
            return outs[: self._carry], (outs[self._carry :], slots)

        carry, (ys, stacked) = self._scanned(step, carry, xs)
        outs = [*carry, *ys]
        return outs, [*(to_raw(outs[i]) for i in self._recorded), *stacked]

    def replay(self, values: Values, slots: Values) -> list[Any]:
        consts, carry, xs = self._parts(values)
        own, stacked = slots[: len(self._recorded)], list(slots[len(self._recorded) :])
        wanted = self._needed[self._carry :]

        def step(carry: Any, x: Any) -> Any:
            x, slots = x
            outs = self._body.replay([*consts, *_spread(carry, self._carried), *x], slots)
            return _take(outs[: self._carry], self._carried), _take(outs[self._carry :], wanted)

        carry, ys = self._scanned(step, _take(carry, self._carried), (xs, stacked))
        outs = [*_spread(carry, self._carried), *_spread(ys, wanted)]
        for i, slot in zip(self._recorded, own, strict=True):
            outs[i] = from_raw(slot, self.eqn.outvars[i].aval)
        return outs


class Recording:
    """One jaxpr split into record and replay.

    **Arguments:**

    - `closed`: the jaxpr.
    - `needed`: which of its outputs the replay must give.

    **Attributes:**

    - `slots`: the shapes and dtypes of what is recorded, those of all steps one after another.
    - `reads`: for each of the jaxpr's inputs, whether the replay needs it.
    """

    def __init__(self, closed: jex.ClosedJaxpr, needed: Sequence[bool]):
        self.closed = closed
        self._needed = tuple(needed)
        jaxpr = closed.jaxpr
        # The variables that the replay needs, at the point of the walk. Only an equation that makes one of them gets a
        # step; the others are run by the record alone.
        live = {v for v, n in zip(jaxpr.outvars, needed, strict=True) if n and isinstance(v, jex.Var)}
        steps: dict[int, Step] = {}
        for position in reversed(range(len(jaxpr.eqns))):
            eqn = jaxpr.eqns[position]
            wanted = [v in live for v in eqn.outvars]
            if not any(wanted):
                continue
            live.difference_update(eqn.outvars)
            step = _step(eqn, wanted)
            steps[position] = step
            live.update(v for v, read in zip(eqn.invars, step.reads, strict=True) if read and isinstance(v, jex.Var))
        self._steps = dict(sorted(steps.items()))
        self.slots = tuple(slot for step in self._steps.values() for slot in step.slots)
        self.reads = tuple(v in live for v in jaxpr.invars)

    def record(self, args: Values) -> tuple[list[Any], list[Any]]:
        """Runs the whole jaxpr; returns its outputs and the slots. Traceable."""
        jaxpr, env = self.closed.jaxpr, Environment(self.closed, args)
        slots: list[Any] = []
        for position, eqn in enumerate(jaxpr.eqns):
            step = self._steps.get(position)
            # An idle equation (`stop_gradient`) returns its operands, and would only be in the plan's way.
            if facts(eqn).is_idle and (step is None or not step.slots):
                outs = env.read(eqn.invars)
            elif step is None:
                outs = evaluate(eqn, env.read(eqn.invars))
            else:
                outs, recorded = step.record(env.read(eqn.invars))
                slots += recorded
            env.write(eqn.outvars, outs)
        return env.read(jaxpr.outvars), slots

    def replay(self, args: Values, slots: Values) -> list[Any]:
        """The needed outputs, `None` for the others. Traceable, and makes no call.

        **Arguments:**

        - `args`: the jaxpr's inputs; those that `reads` does not name may be `None`.
        - `slots`: what `record` returned as slots.
        """
        jaxpr, env, at = self.closed.jaxpr, Environment(self.closed, args), 0
        for step in self._steps.values():
            count = len(step.slots)
            outs = step.replay(env.read(step.eqn.invars), slots[at : at + count])
            at += count
            env.write(step.eqn.outvars, outs)
        outs = env.read(jaxpr.outvars)
        return [o if n else None for o, n in zip(outs, self._needed, strict=True)]


def _step(eqn: jex.JaxprEqn, wanted: Sequence[bool]) -> Step:
    """Decides what becomes of an equation, of whose results some are wanted in the replay. The cases go from what must
    be recorded to what may be computed again, and the first that fits is taken."""
    seen, known, calls = equations.view(eqn), facts(eqn), calls_host(eqn)
    discrete = [i for i, w in enumerate(wanted) if w and not is_inexact(eqn.outvars[i].aval)]
    numbers = [w and is_inexact(v.aval) for w, v in zip(wanted, eqn.outvars, strict=True)]
    from_numbers = any(is_inexact(v.aval) or is_key(v.aval) for v in eqn.invars)
    # The discrete results that have to be recorded. Those of integers alone come out the same in every compilation. A
    # loop is an exception even without numbers: it may draw inside by keys of bare integers, and under `vmap` such a
    # draw gives other numbers.
    decided = discrete if calls or from_numbers or isinstance(seen, While) else []
    if isinstance(seen, Host) or known.is_flat or known.draws:
        return Recorded(eqn, [i for i, w in enumerate(wanted) if w], recompute=False)
    # Its numbers may jump where operands hardly differ, so they are recorded; but they have a derivative, which JAX's
    # own rule gives.
    if known.decides and any(numbers):
        return CustomJVP(eqn, Recorded(eqn, range(len(wanted)), recompute=False))
    if decided and not any(numbers):
        return Recorded(eqn, decided, recompute=False)
    rest = [w and i not in decided for i, w in enumerate(wanted)]
    match seen:
        case While() if not calls and (any(numbers) or leaves_xla(eqn)):
            # The loop decides by its numbers when to stop, and another compilation could decide otherwise. So its
            # results are recorded, and the loop is run again only for its tangents.
            return CustomJVP(eqn, Recorded(eqn, range(len(wanted)), recompute=False))
        case Cond():
            split: Branched | Scanned = Branched(seen, decided, rest)
            return Recorded(eqn, decided, recompute=True) if split.plain else split
        case Scan():
            split = Scanned(seen, decided, rest)
            return Recorded(eqn, decided, recompute=True) if split.plain else split
    body = equations.called(eqn)
    if body is None:
        return Guarded(eqn, wanted) if calls else Recorded(eqn, decided, recompute=True)
    rule = {"jvp": CustomJVP, "vjp": CustomVJP}[seen.mode] if isinstance(seen, CustomDerivative) else None
    split_body = Recording(body, [True] * len(wanted) if rule else wanted)
    if not split_body.slots and not leaves_xla_jaxpr(body):
        return Recorded(eqn, (), recompute=True)
    return (rule or Called)(eqn, split_body)


def leaves_xla_jaxpr(closed: jex.ClosedJaxpr) -> bool:
    """Whether any equation of a jaxpr calls Python."""
    return any(map(leaves_xla, closed.jaxpr.eqns))


def _share(groups: Sequence[Sequence[Aval]]) -> tuple[tuple[Aval, ...], list[list[int]]]:
    """Packs the slots of branches of which only one runs.

    **Arguments:**

    - `groups`: for each branch the shapes and dtypes of its slots.

    **Returns:** the shared slots, and for each branch the place of each of its slots among them. Slots of different
    branches share a place if they have one shape and dtype; two slots of one branch never do.
    """
    shared: list[Aval] = []
    places: list[list[int]] = []
    for group in groups:
        free = list(range(len(shared)))
        taken: list[int] = []
        for slot in group:
            place = next((i for i in free if (shared[i].shape, shared[i].dtype) == (slot.shape, slot.dtype)), None)
            if place is None:
                place = len(shared)
                shared.append(slot)
            else:
                free.remove(place)
            taken.append(place)
        places.append(taken)
    return tuple(shared), places


def _index(index: Any) -> Any:
    return jnp.asarray(index, jnp.int32)


def _take(values: Values, mask: Sequence[bool]) -> list[Any]:
    return [v for v, m in zip(values, mask, strict=True) if m]


def _spread(values: Values, mask: Sequence[bool]) -> list[Any]:
    """The inverse of `_take`: the values where the mask holds, `None` elsewhere."""
    taken = iter(values)
    return [next(taken) if m else None for m in mask]


def _float0(aval: Any) -> Any:
    """The cotangent that JAX expects for an array of integers or booleans."""
    return np.zeros(aval.shape, jax.dtypes.float0)
