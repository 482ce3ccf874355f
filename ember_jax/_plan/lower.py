"""From a jaxpr to a plan.

Call-like equations that hold calls are inlined, a nested operator's island too. Every other equation becomes a node,
and an unknown primitive a numeric one; the passes do the rest.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from jax.extend import core as jex

from .._host import HostCall
from .._text.elementwise import ElementwiseOp
from . import ir
from .builder import Builder
from .island import Island, mapped_plan
from .jaxprs import called, close, host_function, is_host, is_print, leaves_xla, raw_aval, scan_counts


def lower(closed: jex.ClosedJaxpr) -> ir.Plan:
    """Lowers a jaxpr whose constants are concrete."""
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
    scope = _join(scope, str(eqn.source_info.name_stack))
    inputs = tuple(builder.value(v, values) for v in eqn.invars)
    body = called(eqn)
    if body is not None:
        return _walk(builder, body, inputs, _join(scope, eqn.params.get("name", "")))  # an operator's, or a function's
    function = host_function(eqn) if is_host(eqn) else None
    if isinstance(function, Island) and not function.lanes and not function.program.whole:
        return _walk(builder, function.program.jaxpr, inputs, scope)
    make = _maker(eqn, function)
    if make is None:
        return builder.numeric(eqn, values)
    outputs = tuple(builder.new(v.aval) for v in eqn.outvars)
    builder.add(make(inputs=inputs, outputs=outputs, scope=scope))
    return list(outputs)


def _maker(eqn: jex.JaxprEqn, function: Any) -> Any:
    """What makes the node of an equation from its place; `None` for what only XLA can run."""
    if isinstance(function, Island):
        return functools.partial(_island, function)
    if eqn.primitive.name in _CONTROL:
        return _CONTROL[eqn.primitive.name](eqn)
    return functools.partial(_host_node, eqn) if is_host(eqn) or is_print(eqn) else None


def _sub_plan(jaxpr: Any) -> ir.Plan:
    return lower(close(jaxpr))


# -- one equation to one node ----------------------------------------------------------------------------------------


def _host_node(eqn: jex.JaxprEqn, **where: Any) -> ir.Node:
    function = None if is_print(eqn) else host_function(eqn)
    if isinstance(function, ElementwiseOp):
        batched = len(raw_aval(eqn.invars[0].aval).shape) > function.ranks[0]
        return ir.Words(function=function, batched=batched, **where)
    if isinstance(function, HostCall):
        shape = raw_aval(eqn.invars[0].aval).shape
        return ir.Call(function=function, batch=shape[: len(shape) - function.ranks[0]], **where)
    return ir.Foreign(eqn=eqn, **where)


def _island(island: Island, **where: Any) -> ir.Node:
    (node,) = mapped_plan(island.program.plan, island.lanes).nodes
    return dataclasses.replace(node, **where)


def _branch(eqn: jex.JaxprEqn) -> Any:
    return functools.partial(ir.Branch, branches=tuple(_sub_plan(b) for b in eqn.params["branches"]))


def _loop(eqn: jex.JaxprEqn) -> Any:
    p = eqn.params
    return functools.partial(
        ir.Loop,
        condition=_sub_plan(p["cond_jaxpr"]),
        body=_sub_plan(p["body_jaxpr"]),
        condition_constants=p["cond_nconsts"],
        body_constants=p["body_nconsts"],
    )


def _scan(eqn: jex.JaxprEqn) -> Any:
    p = eqn.params
    consts, carry = scan_counts(eqn)
    if not carry:  # `lax.map`, or `vmap` of a call with an effect: steps that do not depend on each other
        varies = ((False,),) * consts + ((True,),) * (len(eqn.invars) - consts)
        return functools.partial(ir.Lanes, body=_sub_plan(p["jaxpr"]), sizes=(p["length"],), mapped=varies)
    return functools.partial(
        ir.Scan,
        body=_sub_plan(p["jaxpr"]),
        constants=consts,
        carry=carry,
        length=p["length"],
        reverse=p["reverse"],
    )


_CONTROL = {"cond": _branch, "while": _loop, "scan": _scan}


def _join(scope: str, inner: str) -> str:
    inner = "/".join(part for part in inner.split("/") if part and not part.endswith("()"))  # `vmap()` names nobody
    return f"{scope}/{inner}" if scope and inner else scope or inner
