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
    """A control node that computes only what is wanted of it, and is given only what that needs."""
    match node:
        case ir.Branch():
            branches = [unused(_selected(b, wanted)) for b in node.branches]
            read = _read(*branches)
            return dataclasses.replace(
                node,
                inputs=(node.inputs[0], *_take(node.inputs[1:], read)),
                outputs=_take(node.outputs, wanted),
                branches=tuple(_given(b, read) for b in branches),
            )
        case ir.Lanes():
            body = unused(_selected(node.body, wanted))
            read = _read(body)
            return dataclasses.replace(
                node,
                inputs=_take(node.inputs, read),
                outputs=_take(node.outputs, wanted),
                mapped=_take(node.mapped, read),
                body=_given(body, read),
            )
        case ir.Scan():
            wanted = [True] * node.carry + list(wanted[node.carry :])
            body = unused(_selected(node.body, wanted))
            first, last = node.constants, node.constants + node.carry
            read = [r or first <= i < last for i, r in enumerate(_read(body))]
            return dataclasses.replace(
                node,
                inputs=_take(node.inputs, read),
                outputs=_take(node.outputs, wanted),
                body=_given(body, read),
                constants=sum(read[:first]),
            )
        case ir.Loop():
            return _narrowed_loop(node)
        case _:
            return node


def _narrowed_loop(node: ir.Loop) -> ir.Loop:
    condition, body = unused(node.condition), unused(node.body)
    first, last = node.condition_constants, node.condition_constants + node.body_constants
    carry = [True] * (len(node.inputs) - last)
    of_condition, of_body = _read(condition)[:first], _read(body)[: node.body_constants]
    return dataclasses.replace(
        node,
        inputs=_take(node.inputs, [*of_condition, *of_body, *carry]),
        condition=_given(condition, [*of_condition, *carry]),
        body=_given(body, [*of_body, *carry]),
        condition_constants=sum(of_condition),
        body_constants=sum(of_body),
    )


def _read(*plans: ir.Plan) -> list[bool]:
    """Which of the same inputs any of some plans reads."""
    used = set[int]().union(*map(rewrite.used, plans))
    return [v in used for v in range(plans[0].inputs)]


def _given(plan: ir.Plan, keep: Sequence[bool]) -> ir.Plan:
    """A plan that is given only some of its inputs."""
    return plan if all(keep) else rewrite.with_inputs(plan, [v for v, k in enumerate(keep) if k])


def _selected(plan: ir.Plan, keep: Sequence[bool]) -> ir.Plan:
    return dataclasses.replace(plan, outputs=_take(plan.outputs, keep))


def _take(values: tuple, keep: Sequence[bool]) -> tuple:
    return tuple(v for v, k in zip(values, keep, strict=True) if k)
