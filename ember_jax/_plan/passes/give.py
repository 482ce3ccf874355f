"""Gives what comes out of lanes, and is carried on by a `scan`, as soon as it is there.

Design note. A step of several lanes that flow through many calls ends when the last lane does. What stands after it may
need only what an early call answered, and must not wait for the later ones. Such an output is given by a step of its
own inside the lane; all others come when the lane ends, at no cost. The same holds for a `scan`: its next step waits
for the carry, not for what the last one only puts out. A scan that splits a key in every step asks all steps at once.
"""

import dataclasses
from collections.abc import Iterable

from .. import ir, rewrite


def give(plan: ir.Plan) -> ir.Plan:
    """A plan whose lanes give early what others wait for, and whose scans go on as soon as they can."""
    used = {v for node in plan.nodes for v in node.inputs}
    return dataclasses.replace(plan, nodes=tuple(_giving(node, used) for node in plan.nodes))


def _giving(node: ir.Node, used: set[int]) -> ir.Node:
    node = rewrite.with_plans(node, give)
    match node:
        case ir.Lanes():
            outputs = enumerate(zip(node.outputs, node.body.outputs, strict=True))
            early = [k for k, (outer, inner) in outputs if outer in used and _is_early(node.body, [inner])]
            return dataclasses.replace(node, body=_with_gives(node.body, early)) if early else node
        case ir.Scan() if node.carry and node.length > 1 and _is_early(node.body, node.body.outputs[: node.carry]):
            return dataclasses.replace(node, body=_with_gives(node.body, range(node.carry)))
        case _:
            return node


def _with_gives(body: ir.Plan, early: Iterable[int]) -> ir.Plan:
    gives = (ir.Give((body.outputs[k],), (), "", k) for k in early)
    return dataclasses.replace(body, nodes=(*body.nodes, *gives))


def _is_early(body: ir.Plan, values: Iterable[int]) -> bool:
    """Whether some step that takes time does not come before some values."""
    needed = set(values)
    for node in reversed(body.nodes):
        if not needed.isdisjoint(node.outputs):
            needed.update(node.inputs)
        elif not isinstance(node, ir.Segment | ir.Words):
            return True
    return False
