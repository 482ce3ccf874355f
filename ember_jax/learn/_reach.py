"""Whether a gradient can be other than zero: whether what is learned reaches the loss or a draw through derivatives.

Design note. A gradient that is zero everywhere is no error to JAX: `jax.random.categorical` in the place of
`learn.sample` trains nothing, without a word. The numbers of a gradient do not tell, as a gradient may be zero by
chance. So the program is asked, before anything is paid: from the parameters on, each equation passes a derivative from
its floating-point operands to its floating-point results, except where it has none, as in rounding, comparisons and
calls. Where an equation is not understood it is said to pass on all of it, so that no sound program is refused.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend import core as jex

from .._jax import equations
from .._jax.equations import Checkpoint, ClosedCall, Cond, Scan, host_function, view
from .._plan import unsplit
from ._sample import NAME


def can_learn(closed: jex.ClosedJaxpr, learned: Sequence[Any]) -> bool:
    """Whether some of the constants `learned` of a loss's jaxpr reach its result, or the logits of a draw."""
    constants = [any(value is mine for mine in learned) for value in closed.consts]
    outs, draws = _through(closed.jaxpr, [*constants, *(False for _ in closed.jaxpr.invars)])
    return draws or any(outs)


def _through(jaxpr: jex.Jaxpr, given: Sequence[bool]) -> tuple[list[bool], bool]:
    """Which outputs have a derivative, if these inputs (constants first) have one; and whether a draw has."""
    inputs = (*jaxpr.constvars, *jaxpr.invars)
    given = [False] * (len(inputs) - len(given)) + list(given)  # the constants of an inner jaxpr are numbers
    reached = {v for v, is_reached in zip(inputs, given, strict=True) if is_reached}
    has_draw = False
    for eqn in jaxpr.eqns:
        operands = [isinstance(v, jex.Var) and v in reached for v in eqn.invars]
        if any(operands):
            outs, draws = _equation(eqn, operands)
            reached.update(v for v, is_reached in zip(eqn.outvars, outs, strict=True) if is_reached and _is_float(v))
            has_draw |= draws
    return [isinstance(v, jex.Var) and v in reached for v in jaxpr.outvars], has_draw


def _equation(eqn: jex.JaxprEqn, operands: list[bool]) -> tuple[list[bool], bool]:
    """The same for one equation, of which some operands have a derivative."""
    all_of_it, nothing = [True] * len(eqn.outvars), [False] * len(eqn.outvars)
    if equations.is_named(eqn, NAME):
        return nothing, operands[0]
    if unsplit.found(eqn) is not None:  # an operator that draws
        return all_of_it, True
    if host_function(eqn) is not None or equations.facts(eqn).is_flat or equations.facts(eqn).is_fixed:
        return nothing, False
    seen = view(eqn)
    match seen:
        case ClosedCall() | Checkpoint() if len(seen.body.jaxpr.invars) == len(operands):
            return _through(seen.body.jaxpr, operands)
        case Cond():
            sides = [_through(branch.jaxpr, operands[1:]) for branch in seen.branches]
            outs = [any(side) for side in zip(*(outs for outs, _ in sides), strict=True)]
            return outs, any(draws for _, draws in sides)
        case Scan():
            return _scan(seen, operands)
        case _:
            return all_of_it, unsplit.is_in(eqn, NAME)


def _scan(scan: Scan, operands: list[bool]) -> tuple[list[bool], bool]:
    """Each step passes its carry on to the next, so steps are taken until no more of the carry is reached."""
    carry = slice(scan.constants, scan.xs)
    if not scan.length:
        return [*operands[carry], *(False for _ in scan.eqn.outvars[scan.carry :])], False
    while True:
        outs, draws = _through(scan.body.jaxpr, operands)
        more = [a or b for a, b in zip(operands[carry], outs, strict=False)]
        if operands[carry] == more:
            return outs, draws
        operands[carry] = more


def _is_float(variable: jex.Var) -> bool:
    return jnp.issubdtype(variable.aval.dtype, jnp.inexact)  # pyright: ignore[reportAttributeAccessIssue]
