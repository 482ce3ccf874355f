"""From a jaxpr to a plan.

Call-like equations that hold calls are inlined. A nested operator has been lowered when it was traced, once for all the
places where it stands: its plan is taken over, node by node. Every other equation becomes a node, and one that is not
known a numeric one; the passes do the rest.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from jax.extend import core as jex

from .._host import HostCall, Placed
from .._jax import equations
from .._jax.equations import Checkpoint, ClosedCall, Cond, CustomDerivative, Host, Print, Scan, View, While, leaves_xla
from .._jax.values import raw_aval
from .._text.elementwise import ElementwiseOp
from . import ir, rewrite
from .builder import Builder
from .operators import OperatorCall, Program, mapped_plan

# Counts programs lowered, for tests: one that stands in another is lowered no second time.
lowered = 0


def lower(closed: jex.ClosedJaxpr) -> ir.Plan:
    """Lowers a program: a jaxpr whose constants are concrete."""
    global lowered
    lowered += 1
    return _lower(closed)


def _lower(closed: jex.ClosedJaxpr) -> ir.Plan:
    builder = Builder()
    args = [builder.new(v.aval) for v in closed.jaxpr.invars]
    outputs = _walk(builder, closed, args, "")
    return builder.finish(len(args), outputs)


def _walk(builder: Builder, closed: jex.ClosedJaxpr, args: Sequence[int], scope: str) -> list[int]:
    """Adds a jaxpr's equations; returns the values of its outputs."""
    values = builder.environment(closed, args)
    for eqn in closed.jaxpr.eqns:
        outs = _outside(builder, eqn, values, scope) if leaves_xla(eqn) else builder.numeric(eqn, values)
        values.update(zip(eqn.outvars, outs, strict=True))
    return [builder.value(v, values) for v in closed.jaxpr.outvars]


def _outside(builder: Builder, eqn: jex.JaxprEqn, values: dict[Any, int], scope: str) -> list[int]:
    """Adds an equation that calls Python, or holds what does."""
    scope = _join(scope, equations.scope(eqn))
    inputs = tuple(builder.value(v, values) for v in eqn.invars)
    seen = equations.view(eqn)
    match seen:
        case ClosedCall():  # an operator's, or a function's
            return _walk(builder, seen.body, inputs, _join(scope, seen.name))
        case Checkpoint() | CustomDerivative():
            return _walk(builder, seen.body, inputs, scope)
        case Host(function=OperatorCall() as operator):
            inputs = inputs[: operator.program.plan.inputs]
            if not operator.lanes and not operator.program.whole:
                return _inlined(builder, operator.program, inputs, scope)
    make = _maker(seen)
    if make is None:
        return builder.numeric(eqn, values)
    outputs = tuple(builder.new(v.aval) for v in eqn.outvars)
    builder.add(make(inputs=inputs, outputs=outputs, scope=scope))
    return list(outputs)


def _maker(seen: View | None) -> Any:
    """What makes the node of an equation from its place; `None` for what only XLA can run."""
    match seen:
        case Cond():
            return functools.partial(ir.Branch, branches=tuple(map(_lower, seen.branches)))
        case While():
            return _loop(seen)
        case Scan():
            return _scan(seen)
        case Host(function=OperatorCall() as operator):
            return functools.partial(_operator, operator)
        case Host() | Print():
            return functools.partial(_host_node, seen)
        case _:
            return None


def _inlined(builder: Builder, program: Program, inputs: Sequence[int], scope: str) -> list[int]:
    """Adds the nodes of a nested operator; returns the values of its outputs."""
    plan = program.lowered
    name = builder.names(plan, inputs)
    for node in plan.nodes:
        inner = rewrite.renamed(node, name)
        if not isinstance(inner, ir.Segment):  # numbers are nobody's
            inner = dataclasses.replace(inner, scope=_join(scope, inner.scope))
        builder.add(inner)
    return [name[v] for v in plan.outputs[: len(program.plan.outputs)]]


# -- one equation to one node ----------------------------------------------------------------------------------------


def _host_node(seen: Host | Print, **where: Any) -> ir.Node:
    function = seen.function if isinstance(seen, Host) else None
    line = None
    if isinstance(function, Placed):
        function, line = function.call, function.line
    if isinstance(function, ElementwiseOp):
        batched = len(raw_aval(seen.eqn.invars[0].aval).shape) > function.ranks[0]
        return ir.Words(function=function, batched=batched, **where)
    if isinstance(function, HostCall):
        shape = raw_aval(seen.eqn.invars[0].aval).shape
        return ir.Call(function=function, batch=shape[: len(shape) - function.ranks[0]], line=line, **where)
    return ir.Foreign(seen=seen, **where)


def _operator(operator: OperatorCall, **where: Any) -> ir.Node:
    (node,) = mapped_plan(operator.program.plan, operator.lanes).nodes
    return dataclasses.replace(node, **where)


def _loop(loop: While) -> Any:
    return functools.partial(
        ir.While,
        condition=_lower(loop.condition),
        body=_lower(loop.body),
        condition_constants=loop.condition_constants,
        body_constants=loop.body_constants,
    )


def _scan(scan: Scan) -> Any:
    body, operands = _lower(scan.body), len(scan.eqn.invars)
    if not scan.carry:  # `lax.map`, or `vmap` of a call with an effect: steps that do not depend on each other
        varies = ((False,),) * scan.constants + ((True,),) * (operands - scan.constants)
        return functools.partial(ir.Lanes, body=body, sizes=(scan.length,), mapped=varies)
    return functools.partial(
        ir.Scan, body=body, constants=scan.constants, carry=scan.carry, length=scan.length, reverse=scan.reverse
    )


def _join(scope: str, inner: str) -> str:
    # `vmap()` and `vmap(vmap())` name nobody
    inner = "/".join(part for part in inner.split("/") if part and not part.rstrip(")").endswith("("))
    return f"{scope}/{inner}" if scope and inner else scope or inner
