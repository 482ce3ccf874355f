"""Gives what comes out of lanes, and is carried on by a `scan`, as soon as it is there.

Design note. A step of several lanes that flow through many calls ends when the last lane does. What stands after it may
need only what an early call answered, and must not wait for the later ones. Such an output is given by a step of its
own inside the lane; all others come when the lane ends, at no cost. The same holds for a `scan`: its next step waits
for the carry, not for what the last one only puts out. A scan that splits a key in every step asks all steps at once.
"""

import dataclasses
from collections.abc import Collection, Iterable

from .. import ir, rewrite


def give(plan: ir.Plan, wanted: Collection[int] = ()) -> ir.Plan:
    """A plan whose lanes give early what others wait for, and whose scans go on as soon as they can.

    **Arguments:**

    - `plan`: the plan.
    - `wanted`: which of its outputs are themselves given early.
    """
    used = rewrite.used(plan, frozenset(range(len(plan.outputs)))).union(plan.outputs[k] for k in wanted)
    return dataclasses.replace(plan, nodes=tuple(_giving(node, used) for node in plan.nodes))


def _giving(node: ir.Node, used: set[int]) -> ir.Node:
    match node:
        case ir.Lanes():
            asked = [k for k, v in enumerate(node.outputs) if v in used]
            early: Collection[int] = [k for k in asked if _is_early(node.body, [node.body.outputs[k]])]
        case ir.Scan() if node.length > 1 and _is_early(node.body, node.body.outputs[: node.carry]):
            early = range(node.carry)
        case _:
            return node.with_plans(give)
    return dataclasses.replace(node, body=_with_gives(give(node.body, early), early))


def _with_gives(body: ir.Plan, early: Iterable[int]) -> ir.Plan:
    gives = (ir.Give((body.outputs[k],), (), "", k) for k in early)
    return dataclasses.replace(body, nodes=(*body.nodes, *gives))


def _is_early(body: ir.Plan, values: Iterable[int]) -> bool:
    """Whether some step that takes time does not come before some values."""
    needed = set(values)
    for node in reversed(body.nodes):
        asked = [k for k, v in enumerate(node.outputs) if v in needed]
        if not asked:
            if rewrite.takes_time(node):
                return True
        elif isinstance(node, ir.Lanes) and _is_early(node.body, [node.body.outputs[k] for k in asked]):
            return True  # lanes inside give it early
        else:
            needed.update(node.inputs)
    return False
