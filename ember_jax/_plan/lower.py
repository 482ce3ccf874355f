"""From a jaxpr to a plan.

Call-like equations that hold calls are inlined, a nested operator's island too; numeric equations are grouped into
segments; what nothing needs is dropped. An unknown primitive is numeric.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend import core as jex

from .._errors import UnsupportedError
from .._host import HostCall
from .._text.elementwise import ElementwiseOp
from . import ir
from .island import Island
from .jaxprs import called, close, host_function, is_host, is_print, leaves_xla, raw_aval

# On raw values, where keys are their key data, these change nothing.
_IDENTITIES = frozenset({"stop_gradient", "random_wrap", "random_unwrap", "copy", "copy_p", "optimization_barrier"})


def lower(closed: jex.ClosedJaxpr) -> ir.Plan:
    """Lowers a jaxpr whose constants are concrete.

    **Raises:** `UnsupportedError` for collectives and for callbacks that have no meaning lane by lane.
    """
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
        self._nodes: list[ir.Node | ir.Equation] = []

    def new(self, aval: Any) -> int:
        self._avals.append(aval)
        return len(self._avals) - 1

    def _constant(self, value: Any, aval: Any) -> int:
        index = self.new(aval)
        self._constants[index] = np.asarray(value, raw_aval(aval).dtype)
        return index

    # -- walking -----------------------------------------------------------------------------------------------------

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
        _refuse(eqn)
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
        self._nodes.append(ir.Equation(eqn, inputs, outputs))
        return list(outputs)

    # -- grouping ----------------------------------------------------------------------------------------------------

    def finish(self, inputs: int, outputs: Sequence[int]) -> ir.Plan:
        """Drops what nothing needs and groups equations into segments by what they wait for."""
        nodes: list[ir.Node] = []
        groups: dict[int, list[ir.Equation]] = {}
        waits: dict[int, int] = {}  # value -> the nodes it waits for, as the bits of an integer
        group_of: dict[int, int] = {}  # value made by an equation -> its group
        crossing = set(outputs)  # values that are read outside the group that makes them
        for item in self._alive(outputs):
            waited = 0
            for value in item.inputs:
                waited |= waits.get(value, 0) if value is not None else 0
            if isinstance(item, ir.Equation):
                groups.setdefault(waited, []).append(item)
                crossing.update(v for v in item.inputs if v is not None and group_of.get(v) != waited)
                group_of.update(dict.fromkeys(item.outputs, waited))
            else:
                crossing.update(item.inputs)
                waited |= 1 << len(nodes)
                nodes.append(item)
            waits.update(dict.fromkeys(item.outputs, waited))
        segments = [self._segment(equations, crossing) for equations in groups.values()]
        return ir.Plan(
            inputs=inputs,
            size=len(self._avals),
            constants=dict(self._constants),
            nodes=(*segments, *nodes),
            outputs=tuple(outputs),
            avals=tuple(raw_aval(self._avals[v]) for v in outputs),
        )

    def _alive(self, outputs: Sequence[int]) -> list[Any]:
        wanted, alive = set(outputs), []
        for item in reversed(self._nodes):
            if _has_effect(item) or not wanted.isdisjoint(item.outputs):
                wanted.update(v for v in item.inputs if v is not None)
                alive.append(item)
        return alive[::-1]

    def _segment(self, equations: Sequence[ir.Equation], crossing: set[int]) -> ir.Segment:
        made = [v for e in equations for v in e.outputs]
        used = {v for e in equations for v in e.inputs if v is not None}
        constants = {v: self._constants[v] for v in used if v in self._constants}
        inputs = tuple(sorted(used.difference(made, constants)))
        outputs = tuple(v for v in made if v in crossing)
        return ir.Segment(
            inputs=inputs,
            outputs=outputs,
            scope="",
            equations=tuple(equations),
            avals=tuple(raw_aval(self._avals[v]) for v in outputs),
            constants=constants,
            calls_python=any(leaves_xla(e.eqn) for e in equations),
        )


def _has_effect(item: ir.Node | ir.Equation) -> bool:
    match item:
        case ir.Call():
            return not item.function.pure
        case ir.Foreign():
            return bool(item.eqn.effects)
        case ir.Branch():
            return any(_plan_has_effect(b) for b in item.branches)
        case ir.Loop():
            return _plan_has_effect(item.condition) or _plan_has_effect(item.body)
        case ir.Scan() | ir.Lanes():
            return _plan_has_effect(item.body)
        case ir.Equation():
            return leaves_xla(item.eqn) and bool(item.eqn.effects)
        case _:
            return False


def _plan_has_effect(plan: ir.Plan) -> bool:
    return any(_has_effect(node) for node in plan.nodes)


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
    outermost_first = island.lanes[::-1]
    mapped = tuple(zip(*(m for _, m in outermost_first), strict=True))
    return ir.Lanes(body=island.program.plan, sizes=tuple(s for s, _ in outermost_first), mapped=mapped, **where)


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


def _refuse(eqn: jex.JaxprEqn) -> None:
    if any(type(effect).__name__ == "NamedAxisEffect" for effect in eqn.effects):
        axes = sorted({str(e.name) for e in eqn.effects if type(e).__name__ == "NamedAxisEffect"})  # type: ignore[attr-defined]
        raise UnsupportedError(
            f"`{eqn.primitive.name}` over the axis {', '.join(axes)!r} stands inside an operator. An operator's lanes "
            "run side by side and do not meet, so collectives and `axis_index` have no meaning in it. Return the "
            "values and reduce them outside, or pass the index in as an argument."
        )
    if type(eqn.params.get("effect")).__name__ == "OrderedDebugEffect" or eqn.params.get("ordered"):
        raise UnsupportedError(
            f"an ordered `{eqn.primitive.name}` stands inside an operator. Its lanes run side by side, so there is no "
            "one order. Use ordered=False."
        )
