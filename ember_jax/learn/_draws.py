"""Evaluates a program that draws: with the log-probability of its draws, or with a given outcome of them.

Design note. JAX derives a jaxpr of any program, and in it every draw is an equation with a name (`_sample.NAME`), in
branches, loops and nested operators too. A gradient is prepared by evaluating the jaxpr once more, equation by
equation, with two changes. The log-probabilities of the draws are added up; and where all outcomes are wanted, a draw
does not draw but returns the index that it is told. Control flow that draws is built anew around bodies that return the
sum as well. An operator that draws is left unsplit (see `_plan/unsplit.py`), and becomes a boundary around such a body,
enclosed as it was. The result is an ordinary program, which a boundary records and replays. So draws are recorded,
their log-probabilities are computed again in the replay, where they have derivatives, and the program's calls, lanes
and branches stay as they were.

An *outcome* is a number that says how all draws of a program come out, in mixed radix. A draw among n has n outcomes.
Equations one after the other have as many as the product of theirs. A scan has the outcomes of its body to the power of
its length. A `cond` has as many as its largest branch. A smaller branch maps each surplus number to one of its own
outcomes (by the remainder) and gives it probability zero. So each way through the program counts once; and the lanes of
surplus numbers make the same calls as other lanes, which are then made once. An index of probability zero is treated in
the same way: the draw returns the most likely index instead, at probability zero.

A draw inside `attempt` is taken out of it. If the attempt failed, nothing that was recorded in it would be left, so it
would be lost which draws led to the failure. Therefore what the draw depends on is attempted first, then the draw is
made, and then the rest is attempted.

`jax.vmap` of a branch that draws computes all sides, and the sum here is over the draws of all of them. Its gradient is
right nevertheless: in the lanes that do not take a side, JAX stops the derivatives of the operands of that side, so the
draws there add to the sum and nothing to its gradient.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from .._jax import equations, jaxprs
from .._jax.equations import Checkpoint, ClosedCall, Cond, CustomDerivative, Scan, While, host_function, jaxprs_in, view
from .._jax.jaxprs import Environment, evaluate
from .._jax.values import from_raw, raw_aval
from .._operator.boundary import Boundary
from .._plan import ir, unsplit
from .._text.elementwise import ElementwiseOp
from ..errors import GradientError
from ._sample import NAME


class Redraw(NamedTuple):
    """Draws are made by their keys, each folded with these bits: other bits draw anew where the keys stay.

    **Fields:**

    - `bits`: `uint32[]`.
    """

    bits: Any


# How the draws of a program come out: `None` if its keys say so, a `Redraw`, or else the number of an outcome.
Outcome = Any
# The results of an equation, and the sum of the log-probabilities of its draws.
Drawn = tuple[list[Any], Any]


def trace(fn: Callable[[], Any]) -> jex.ClosedJaxpr:
    """The jaxpr of a function, in which every draw can be seen: operators that draw are left unsplit."""
    with unsplit.unsplitting(NAME):
        return jax.make_jaxpr(fn)()


def draws(eqn: jex.JaxprEqn) -> bool:
    """Whether an equation draws, or holds one that does."""
    return unsplit.is_in(eqn, NAME)


def evaluated(closed: jex.ClosedJaxpr, args: Sequence[Any], outcome: Outcome = None) -> Drawn:
    """Evaluates a jaxpr. Traceable.

    **Arguments:**

    - `closed`: a jaxpr made by `trace`.
    - `args`: its inputs.
    - `outcome`: an int32 below `outcomes(closed)`, which may be traced; or a `Redraw`. If it is not given, draws are
        made by their keys.

    **Returns:** its outputs, and the sum of the log-probabilities of what it drew, a float of rank 0.

    **Raises:** `GradientError` for a draw whose log-probability cannot be had, as in a `while_loop`.
    """
    env, total = Environment(closed, args), jnp.zeros(())
    for eqn in closed.jaxpr.eqns:
        values = env.read(eqn.invars)
        if not draws(eqn):
            env.write(eqn.outvars, evaluate(eqn, values))
            continue
        outcome, mine = _shared(eqn, outcome)
        outs, score = _evaluated(eqn, values, mine)
        env.write(eqn.outvars, outs)
        total += jnp.sum(score).astype(total.dtype)
    return env.read(closed.jaxpr.outvars), total


def _shared(eqn: jex.JaxprEqn, outcome: Outcome) -> tuple[Outcome, Outcome]:
    """Splits an outcome at an equation that draws: the outcome of the equations after it, and its own."""
    return divmod(outcome, _outcomes(eqn)) if _is_number(outcome) else (outcome, outcome)


def _is_number(outcome: Outcome) -> bool:
    return outcome is not None and not isinstance(outcome, Redraw)


def outcomes(closed: jex.ClosedJaxpr) -> int:
    """In how many ways the draws of a jaxpr may come out.

    **Raises:** `GradientError` for draws under a `vmap`, and for those whose log-probability cannot be had.
    """
    return math.prod(_outcomes(eqn) for eqn in closed.jaxpr.eqns if draws(eqn))


def _outcomes(eqn: jex.JaxprEqn) -> int:
    operator = unsplit.found(eqn)
    if (operator is not None and operator.lanes) or (equations.is_named(eqn, NAME) and _shape(eqn.outvars[0])):
        raise GradientError(
            "a draw stands under a `jax.vmap` inside the loss, and estimator='enumerate' takes draws one by one: use "
            "estimator='score', or a `jax.lax.scan` of fixed length instead of the vmap."
        )
    if operator is not None:
        return outcomes(operator.closed)
    if equations.is_named(eqn, NAME):
        return _shape(eqn.invars[0])[0]
    match view(eqn):
        case Cond() as cond:
            return max(map(outcomes, cond.branches))
        case Scan() as scan:
            return outcomes(scan.body) ** scan.length
        case _:
            return outcomes(_body(eqn))


def _shape(atom: Any) -> tuple[int, ...]:
    return atom.aval.shape


# -- one equation that draws -----------------------------------------------------------------------------------------


def _evaluated(eqn: jex.JaxprEqn, values: Sequence[Any], outcome: Outcome) -> Drawn:
    operator = unsplit.found(eqn)
    if operator is not None:
        return _operator(operator, values, outcome)
    if equations.is_named(eqn, NAME):
        return _draw(eqn, values, outcome)
    seen = view(eqn)
    match seen:
        case Cond():
            return _branch(seen, values, outcome)
        case Scan():
            return _scan(seen, values, outcome)
    body = _body(eqn)
    run = functools.partial(evaluated, body)
    if isinstance(seen, Checkpoint):  # the new body gets the user's policy of what is saved and recomputed
        run = seen.wrap(run)
    # A body that holds an operator gets no name scope of its own, since the operator names its equations itself.
    if any(map(unsplit.found, body.jaxpr.eqns)):
        return run(values, outcome)
    with equations.named(eqn):
        return run(values, outcome)


def _body(eqn: jex.JaxprEqn) -> jex.ClosedJaxpr:
    """The jaxpr of an equation that does nothing but run it: a call or a checkpoint.

    **Raises:** `GradientError` for any other equation, since there the log-probability of a draw cannot be had.
    """
    seen, name = view(eqn), equations.name(eqn)
    if isinstance(seen, ClosedCall | Checkpoint):
        return seen.body
    if isinstance(seen, While):
        raise GradientError(
            "a draw stands inside a `jax.lax.while_loop`. How often it draws is not known before it has run, so the "
            "probability of what it drew has no derivative. Use `jax.lax.scan` with a fixed length; a draw that "
            "nothing is to be learned of may be a `jax.random.categorical`."
        )
    if isinstance(seen, CustomDerivative):
        raise GradientError(
            f"a draw stands inside a `{name}`, whose own rule says what the derivative is. Draw outside of it and pass "
            "the index in; if the rule is all the derivative that is meant, draw with `jax.random.categorical`."
        )
    raise GradientError(f"a draw stands inside a `{name}`, where its log-probability cannot be had. Draw outside it.")


def _draw(eqn: jex.JaxprEqn, values: Sequence[Any], outcome: Outcome) -> Drawn:
    if not _is_number(outcome):
        if outcome is not None:
            values = [values[0], jax.random.fold_in(values[1], outcome.bits)]
        index, score = evaluate(eqn, values)
        return [index, score], score
    logits = values[0]
    scores = jax.nn.log_softmax(logits)
    # NaN counts as possible: what it leads to is unknown, so the value becomes NaN instead of leaving this outcome out.
    possible = scores[outcome] != -jnp.inf
    index = jnp.where(possible, outcome, jnp.argmax(logits).astype(jnp.int32))
    score = scores[index]
    return [index, score], jnp.where(possible, score, -jnp.inf)


def _branch(cond: Cond, values: Sequence[Any], outcome: Outcome) -> Drawn:
    def side(body: jex.ClosedJaxpr) -> Callable[..., Drawn]:
        if not _is_number(outcome):
            return lambda outcome, *operands: evaluated(body, operands, outcome)
        count = outcomes(body)

        def run(outcome: Outcome, *operands: Any) -> Drawn:
            outs, score = evaluated(body, operands, outcome % count)
            return outs, jnp.where(outcome < count, score, -jnp.inf)

        return run

    sides = list(map(side, cond.branches))
    return jax.lax.switch(jnp.asarray(values[0], jnp.int32), sides, outcome, *values[1:])


def _scan(scan: Scan, values: Sequence[Any], outcome: Outcome) -> Drawn:
    constants, carried, start = scan.constants, scan.carry, scan.xs
    digits = None
    if _is_number(outcome):
        count = outcomes(scan.body)
        # The outcome's digits to the base `count`, the lowest first: one outcome of the body for each step.
        digits = outcome // np.array([count**k for k in range(scan.length)], np.int32) % count

    # Each step puts out its log-probability, and they are added up after the scan. They are not carried, because steps
    # that carry nothing run as lanes side by side, and a carry would make them wait for each other.
    def step(carry: Any, x: Any) -> Any:
        x, digit = x
        mine = outcome if digits is None else digit
        outs, score = evaluated(scan.body, [*values[:constants], *carry, *x], mine)
        return outs[:carried], (outs[carried:], score)

    xs = list(values[start:]), digits
    carry, (ys, scores) = jax.lax.scan(
        step, list(values[constants:start]), xs, length=scan.length, reverse=scan.reverse, unroll=scan.unroll
    )
    return [*carry, *ys], jnp.sum(scores)


def _operator(operator: unsplit.Unsplit, values: Sequence[Any], outcome: Outcome) -> Drawn:
    if operator.how == "attempt":
        run = functools.partial(_attempted, operator)
        run = Boundary(run, operator.name) if operator.lanes else run
    else:
        run = functools.partial(_around, operator)
    for size, mapped in operator.lanes:
        run = jax.vmap(run, (None, *(0 if m else None for m in mapped)), axis_size=size)
    return run(outcome, *values)


def _around(operator: unsplit.Unsplit, outcome: Outcome, *values: Any) -> Drawn:
    """An operator as a boundary around a body that also returns the log-probability, enclosed as it was."""
    run = lambda outcome, *args: evaluated(operator.closed, args, outcome)
    out = Boundary(run, operator.name, operator.how)(outcome, *values)
    if operator.how is None:
        return out
    (outs, score), extras = out
    return [*outs, *extras], score


# -- draws inside an attempt -----------------------------------------------------------------------------------------


def _attempted(operator: unsplit.Unsplit, outcome: Outcome, *values: Any) -> Drawn:
    """An attempt in parts: for each draw what it depends on, then the draw itself; at the end all the rest."""
    flat = jax.make_jaxpr(functools.partial(_flat, operator.closed))(*values)
    parts, total = _Parts(flat, values), jnp.zeros(())
    for eqn in flat.jaxpr.eqns:
        if not draws(eqn):
            continue
        if _may_fail(eqn):
            lanes = unsplit.found(eqn)
            where = f"several lanes of {lanes.name}" if lanes else f"a `{equations.name(eqn)}`"
            raise GradientError(
                f"a draw stands in {where} inside `ember.attempt`, beside calls: if one of them failed, what was drawn "
                "would be lost. Draw before the attempt, or attempt the calls alone."
            )
        operands = parts.before(eqn)
        outcome, mine = _shared(eqn, outcome)
        outs, score = _evaluated(eqn, operands, mine)
        parts.env.write(eqn.outvars, outs)
        # If the attempt failed before this draw, the draw was not made. All its outcomes are then the same way through
        # the program, so the first is given probability one and the others zero.
        unmade = jnp.where(mine == 0, 0.0, -jnp.inf) if _is_number(mine) else 0.0
        total += jnp.where(parts.ok, jnp.sum(score), unmade).astype(total.dtype)
    outs = parts.rest()
    return [*outs, parts.cause], total


def _flat(closed: jex.ClosedJaxpr, *args: Any) -> list[Any]:
    """Evaluates a jaxpr with functions and operators that draw inlined, so that their draws are its own equations."""
    env = Environment(closed, args)
    for eqn in closed.jaxpr.eqns:
        values, body, operator = env.read(eqn.invars), None, unsplit.found(eqn)
        if operator is not None and operator.how is None and not operator.lanes:
            body = operator.closed
        elif draws(eqn) and not equations.is_named(eqn, NAME) and equations.is_jit(eqn):
            body = equations.called(eqn)
        env.write(eqn.outvars, evaluate(eqn, values) if body is None else _flat(body, *values))
    return env.read(closed.jaxpr.outvars)


def _may_fail(eqn: jex.JaxprEqn) -> bool:
    """Whether an equation makes calls that may fail; not text operations, nor calls in an attempt of its own."""
    operator = unsplit.found(eqn)
    if operator is not None:
        return operator.how != "attempt" and any(map(_may_fail, operator.closed.jaxpr.eqns))
    function = host_function(eqn)
    if function is not None:
        return not isinstance(function, ElementwiseOp)
    return any(_may_fail(e) for inner in jaxprs_in(eqn) for e in inner.eqns)


class _Parts:
    """The equations of an attempt that do not draw, attempted part by part. After a part has failed no other is made.

    **Attributes:**

    - `env`: the values so far; zeros are the results of a part that failed or was not made.
    - `cause`: `uint32[4]`, the digest of the cause with which a part failed; all zeros if none did.
    """

    def __init__(self, flat: jex.ClosedJaxpr, values: Sequence[Any]):
        self.env = Environment(flat, values)
        self.cause = jnp.zeros(ir.EXTRAS["attempt"][0].shape, jnp.uint32)
        self._jaxpr = flat.jaxpr
        self._waiting = [eqn for eqn in flat.jaxpr.eqns if not draws(eqn)]
        self._attempted = False

    @property
    def ok(self) -> jax.Array:
        return jnp.all(self.cause == np.uint32(0))

    def before(self, eqn: jex.JaxprEqn) -> list[Any]:
        """Makes the part that an equation depends on and that was not made yet; returns the equation's operands."""
        needed, part = _variables(eqn.invars), []
        for earlier in reversed(self._waiting):
            if not needed.isdisjoint(earlier.outvars):
                needed |= _variables(earlier.invars)
                part.append(earlier)
        self._make(part[::-1])
        return self.env.read(eqn.invars)

    def rest(self) -> list[Any]:
        """Makes all that is left; returns the outputs."""
        self._make(self._waiting)
        return self.env.read(self._jaxpr.outvars)

    def _make(self, part: list[jex.JaxprEqn]) -> None:
        """Evaluates some equations as one function, of which only the results are kept that something else reads. The
        function is attempted if it makes calls; otherwise it cannot fail."""
        self._waiting = [eqn for eqn in self._waiting if eqn not in part]
        others = [eqn for eqn in self._jaxpr.eqns if eqn not in part]
        read = _variables(self._jaxpr.outvars).union(*(_variables(eqn.invars) for eqn in others))
        made = [v for eqn in part for v in eqn.outvars if v in read]
        own = {v for eqn in part for v in eqn.outvars}
        free = [
            v for v in dict.fromkeys(v for eqn in part for v in eqn.invars if isinstance(v, jex.Var)) if v not in own
        ]
        run = functools.partial(jaxprs.evaluated, jaxprs.assemble(free, made, part))
        values = self.env.read(free)
        if any(map(_may_fail, part)):
            outs, (self.cause,) = self._attempt(Boundary(run, "attempt", "attempt"), made, values)
        else:
            outs = run(*values)
        self.env.write(made, outs)

    def _attempt(self, attempt: Boundary, made: Sequence[jex.Var], values: Sequence[Any]) -> Any:
        """Attempts a part unless an earlier part has failed. The first part has no earlier one, and needs no `cond`."""
        if not self._attempted:
            self._attempted = True
            return attempt(*values)
        failed = lambda *_: ([_zeros(v.aval) for v in made], [self.cause])
        return jax.lax.cond(self.ok, attempt, failed, *values)


def _variables(atoms: Sequence[Any]) -> set[Any]:
    return {atom for atom in atoms if isinstance(atom, jex.Var)}


def _zeros(aval: Any) -> jax.Array:
    raw = raw_aval(aval)
    return from_raw(jnp.zeros(raw.shape, raw.dtype), aval)
