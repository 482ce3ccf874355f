"""Merges equal steps: the same pure call, text operation or equation on the same values is done once.

Design note. This is value numbering: nodes are walked in order, and one whose function and (already merged) inputs were
seen before gives its outputs' names to the earlier one. XLA merges equal equations inside one executable but cannot see
calls; here equal arithmetic must be merged too, or calls of it would not be seen to be equal. A nested operator needs
it as well: its record and its replay compute the same numbers. Samples are arguments (a key, or none), so merging equal
calls never merges independent ones. Control flow is merged inside, not across.
"""

import dataclasses
from collections.abc import Hashable
from typing import Any

from ..._jax.equal import of_equation
from ..._jax.equations import has_effect
from .. import ir, rewrite


def merge(plan: ir.Plan) -> ir.Plan:
    """A plan in which no two steps that stand side by side are equal."""
    name: dict[int, int] = _equal_constants(plan)
    seen: dict[Hashable, ir.Node] = {}
    kept: list[ir.Node] = []
    asked: dict[ir.Node, int] = {}  # how often a step stood in the plan
    for node in plan.nodes:
        node = rewrite.renamed(node.with_plans(merge), name)
        key = _key(node)
        first = seen.setdefault(key, node) if key is not None else node
        if first is node:
            kept.append(node)
        else:
            name.update(zip(node.outputs, first.outputs, strict=True))
            asked[first] = asked.get(first, 1) + 1
    nodes = tuple(dataclasses.replace(n, asked=asked[n]) if n in asked and isinstance(n, ir.Call) else n for n in kept)
    return dataclasses.replace(plan, nodes=nodes, outputs=tuple(name.get(v, v) for v in plan.outputs))


def _equal_constants(plan: ir.Plan) -> dict[int, int]:
    seen: dict[Hashable, int] = {}
    name: dict[int, int] = {}
    for value, constant in plan.constants.items():
        first = seen.setdefault((constant.dtype.str, constant.shape, constant.tobytes()), value)
        if first != value:
            name[value] = first
    return name


def _key(node: ir.Node) -> Hashable | None:
    """What a node computes; `None` if it must be done each time, or cannot be compared."""
    match node:
        case ir.Words():
            key: Any = (ir.Words, node.function, node.inputs)
        case ir.Call():
            key = (ir.Call, node.function, node.batch, node.inputs) if node.function.pure else None
        case ir.Segment() if len(node.equations) == 1 and not node.calls_python:
            (equation,) = node.equations
            if has_effect(equation.eqn):
                return None
            try:
                key = (of_equation(equation.eqn), equation.inputs)
            except TypeError:  # a parameter that is no value, such as an array
                return None
        case _:
            return None
    return key
