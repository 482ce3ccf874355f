"""Values and nodes of a plan in the making."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex

from .._jax.equations import Select, facts, leaves_xla, view
from .._jax.values import raw_aval
from .._types import is_key
from . import ir


class Builder:
    """Gathers the values, constants and nodes of one plan."""

    def __init__(self) -> None:
        self._avals: list[Any] = []
        self._constants: dict[int, np.ndarray] = {}
        self._nodes: list[ir.Node] = []

    def new(self, aval: Any) -> int:
        """A new value of a type."""
        self._avals.append(aval)
        return len(self._avals) - 1

    def constant(self, value: Any, aval: Any) -> int:
        """A new value that is known."""
        index = self.new(aval)
        if is_key(aval):
            with jax.ensure_compile_time_eval():  # plans are lowered while something is traced
                value = jax.random.key_data(value)
        self._constants[index] = np.asarray(value, raw_aval(aval).dtype)
        return index

    def add(self, node: ir.Node) -> None:
        """Adds a node, on values of this plan."""
        self._nodes.append(node)

    def value(self, atom: Any, values: Mapping[Any, int]) -> int:
        """The value of a variable, or of a literal as a constant."""
        return self.constant(atom.val, atom.aval) if isinstance(atom, jex.Literal) else values[atom]

    def numeric(self, eqn: jex.JaxprEqn, values: Mapping[Any, int]) -> list[int]:
        """Adds a numeric equation; returns the values of its results."""
        if facts(eqn).is_identity:
            return [self.value(v, values) for v in eqn.invars]
        inputs = tuple(None if isinstance(v, jex.Literal) else values[v] for v in eqn.invars)
        if len(set(inputs[1:])) == 1 and inputs[1] is not None and isinstance(view(eqn), Select):
            return [inputs[1]]  # `vmap` of a `cond` selects every operand from itself, for its derivative
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

    def numbers(self, closed: jex.ClosedJaxpr, args: Sequence[int]) -> list[int]:
        """Adds a numeric jaxpr's equations; returns the values of its outputs."""
        values = self.environment(closed, args)
        for eqn in closed.jaxpr.eqns:
            values.update(zip(eqn.outvars, self.numeric(eqn, values), strict=True))
        return [self.value(v, values) for v in closed.jaxpr.outvars]

    def environment(self, closed: jex.ClosedJaxpr, args: Sequence[int]) -> dict[Any, int]:
        """The values of a jaxpr's inputs and constants."""
        values = dict(zip(closed.jaxpr.invars, args, strict=True))
        for var, const in zip(closed.jaxpr.constvars, closed.consts, strict=True):
            values[var] = self.constant(const, var.aval)
        return values

    def names(self, plan: ir.Plan, args: Sequence[int]) -> dict[int, int]:
        """The values of a plan that is to stand in this one, by what they are there; its inputs are `args`."""
        name = dict(enumerate(args))
        for value in range(plan.inputs, plan.size):
            constant, aval = plan.constants.get(value), plan.types[value]
            name[value] = self.new(aval) if constant is None else self.constant(constant, aval)
        return name

    def finish(self, inputs: int, outputs: Sequence[int]) -> ir.Plan:
        """The plan; its first `inputs` values are given."""
        return ir.Plan(
            inputs=inputs,
            types=tuple(map(raw_aval, self._avals)),
            constants=self._constants,
            nodes=tuple(self._nodes),
            outputs=tuple(outputs),
        )
