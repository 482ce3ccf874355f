"""Drops what nothing needs: calls whose answers are not used, and everything only they need.

Design note. JAX drops unused equations when it compiles; a plan is not compiled, so it must do so itself. Inside
control flow too: a branch's outputs that nobody reads are no reason to make its calls. What is there for its effect (a
print, an impure call) stays. A loop's carry is left whole, since its condition may read any of it.
"""

import dataclasses
from collections.abc import Sequence

from .. import ir, rewrite


def unused(plan: ir.Plan) -> ir.Plan:
    """A plan without the nodes and inner outputs that none of its outputs needs."""
    wanted = set(plan.outputs)
    kept: list[ir.Node] = []
    for node in reversed(plan.nodes):
        if rewrite.has_effect(node) or not wanted.isdisjoint(node.outputs):
            node = _narrowed(node, [v in wanted for v in node.outputs])
            wanted.update(node.inputs)
            kept.append(node)
    return dataclasses.replace(plan, nodes=tuple(reversed(kept)))


def _narrowed(node: ir.Node, wanted: Sequence[bool]) -> ir.Node:
    match node:
        case ir.Branch():
            branches = tuple(unused(_selected(b, wanted)) for b in node.branches)
            return dataclasses.replace(node, branches=branches, outputs=_take(node.outputs, wanted))
        case ir.Lanes():
            return _read(
                dataclasses.replace(
                    node, body=unused(_selected(node.body, wanted)), outputs=_take(node.outputs, wanted)
                )
            )
        case ir.Scan():
            keep = [True] * node.carry + list(wanted[node.carry :])
            return dataclasses.replace(node, body=unused(_selected(node.body, keep)), outputs=_take(node.outputs, keep))
        case ir.Loop():
            return dataclasses.replace(node, condition=unused(node.condition), body=unused(node.body))
        case _:
            return node


def _read(node: ir.Lanes) -> ir.Lanes:
    """Lanes that are given only what they read."""
    used = rewrite.used(node.body)
    kept = [i for i in range(len(node.inputs)) if i in used]
    if len(kept) == len(node.inputs):
        return node
    return dataclasses.replace(
        node,
        inputs=tuple(node.inputs[i] for i in kept),
        mapped=tuple(node.mapped[i] for i in kept),
        body=rewrite.with_inputs(node.body, kept),
    )


def _selected(plan: ir.Plan, keep: Sequence[bool]) -> ir.Plan:
    return dataclasses.replace(plan, outputs=_take(plan.outputs, keep))


def _take(values: tuple, keep: Sequence[bool]) -> tuple:
    return tuple(v for v, k in zip(values, keep, strict=True) if k)
