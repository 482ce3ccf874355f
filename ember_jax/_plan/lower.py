"""From a jaxpr to a plan.

Call-like equations that hold calls are inlined, a nested operator's island too. Every other equation becomes a node,
and an unknown primitive a numeric one; the passes do the rest.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend import core as jex

from .._host import HostCall
from .._text.elementwise import ElementwiseOp
from . import ir
from .island import Island, mapped_plan
from .jaxprs import called, close, host_function, is_host, is_print, leaves_xla, raw_aval

# On raw values, where keys are their key data, these change nothing.
_IDENTITIES = frozenset({"stop_gradient", "random_wrap", "random_unwrap", "copy", "copy_p", "optimization_barrier"})


def lower(closed: jex.ClosedJaxpr) -> ir.Plan:
    """Lowers a jaxpr whose constants are concrete."""
    builder = _Builder()
    args = [builder.new(v.aval) for v in closed.jaxpr.invars]
    outputs = builder.walk(closed, args, "")
    return builder.finish(len(args), outputs)


def _sub_plan(jaxpr: Any) -> ir.Plan:
    return lower(close(jaxpr))


class _Builder:
    """Values and nodes of one plan, in the making."""

    def __init__(self) -> None:
        self._avals: list[Any] = []
        self._constants: dict[int, np.ndarray] = {}
        self._nodes: list[ir.Node] = []

    def new(self, aval: Any) -> int:
        self._avals.append(aval)
        return len(self._avals) - 1

    def _constant(self, value: Any, aval: Any) -> int:
        index = self.new(aval)
        self._constants[index] = np.asarray(value, raw_aval(aval).dtype)
        return index

    def walk(self, closed: jex.ClosedJaxpr, args: Sequence[int], scope: str) -> list[int]:
        """Adds a jaxpr's equations; returns the values of its outputs."""
        jaxpr = closed.jaxpr
        values = dict(zip(jaxpr.invars, args, strict=True))
        for var, const in zip(jaxpr.constvars, closed.consts, strict=True):
            values[var] = self._constant(const, var.aval)
        for eqn in jaxpr.eqns:
            outs = self._add(eqn, values, scope)
            values.update(zip(eqn.outvars, outs, strict=True))
        return [self._value(v, values) for v in jaxpr.outvars]

    def _value(self, atom: Any, values: dict[Any, int]) -> int:
        return self._constant(atom.val, atom.aval) if isinstance(atom, jex.Literal) else values[atom]

    def _add(self, eqn: jex.JaxprEqn, values: dict[Any, int], scope: str) -> list[int]:
        name = eqn.primitive.name
        if name in _IDENTITIES:
            return [self._value(v, values) for v in eqn.invars]
        if not leaves_xla(eqn):
            return self._numeric(eqn, values)
        scope = _join(scope, str(eqn.source_info.name_stack))
        body = called(eqn)
        if body is not None:
            scope = _join(scope, eqn.params.get("name", ""))  # an operator's, or a jitted function's
            return self.walk(body, [self._value(v, values) for v in eqn.invars], scope)
        inputs = tuple(self._value(v, values) for v in eqn.invars)
        if is_host(eqn) and isinstance(function := host_function(eqn), Island):
            if not function.lanes:
                return self.walk(function.program.jaxpr, inputs, scope)
            return self._emit(eqn, functools.partial(_lanes, function), inputs, scope)
        make = _CONTROL.get(name)
        if make is not None:
            return self._emit(eqn, make(eqn), inputs, scope)
        if is_host(eqn) or is_print(eqn):
            return self._emit(eqn, functools.partial(_host_node, eqn), inputs, scope)
        return self._numeric(eqn, values)

    def _emit(self, eqn: jex.JaxprEqn, make: Any, inputs: tuple[int, ...], scope: str) -> list[int]:
        outputs = tuple(self.new(v.aval) for v in eqn.outvars)
        self._nodes.append(make(inputs=inputs, outputs=outputs, scope=scope))
        return list(outputs)

    def _numeric(self, eqn: jex.JaxprEqn, values: dict[Any, int]) -> list[int]:
        inputs = tuple(None if isinstance(v, jex.Literal) else values[v] for v in eqn.invars)
        outputs = tuple(self.new(v.aval) for v in eqn.outvars)
        segment = ir.Segment(
            inputs=tuple(dict.fromkeys(v for v in inputs if v is not None)),
            outputs=outputs,
            scope="",
            equations=(ir.Equation(eqn, inputs, outputs),),
            avals=tuple(raw_aval(v.aval) for v in eqn.outvars),
            constants={},
            calls_python=leaves_xla(eqn),
        )
        self._nodes.append(segment)
        return list(outputs)

    def finish(self, inputs: int, outputs: Sequence[int]) -> ir.Plan:
        """The plan, one node for each equation."""
        return ir.Plan(
            inputs=inputs,
            types=tuple(map(raw_aval, self._avals)),
            constants=self._constants,
            nodes=tuple(self._nodes),
            outputs=tuple(outputs),
        )


# -- one equation to one node ----------------------------------------------------------------------------------------


def _host_node(eqn: jex.JaxprEqn, **where: Any) -> ir.Node:
    function = None if is_print(eqn) else host_function(eqn)
    if isinstance(function, ElementwiseOp):
        return ir.Words(function=function, **where)
    if isinstance(function, HostCall):
        shape = raw_aval(eqn.invars[0].aval).shape
        return ir.Call(function=function, batch=shape[: len(shape) - function.ranks[0]], **where)
    return ir.Foreign(eqn=eqn, **where)


def _lanes(island: Island, **where: Any) -> ir.Node:
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
    return functools.partial(
        ir.Scan,
        body=_sub_plan(p["jaxpr"]),
        constants=p["num_consts"],
        carry=p["num_carry"],
        length=p["length"],
        reverse=p["reverse"],
    )


_CONTROL = {"cond": _branch, "while": _loop, "scan": _scan}


def _join(scope: str, inner: str) -> str:
    inner = "/".join(part for part in inner.split("/") if part and not part.endswith("()"))  # `vmap()` names nobody
    return f"{scope}/{inner}" if scope and inner else scope or inner
