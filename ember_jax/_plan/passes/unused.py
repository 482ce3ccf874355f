"""Drops calls whose answers are not used, and everything that only they need.

Design note. XLA drops unused equations when a program is compiled; a plan is not compiled, so this pass drops them. It
does so inside control flow too: an output of a branch that nobody reads is no reason to make the branch's calls. A node
that runs for its effect (a print, an impure call) stays. The carry of a `while_loop` or a `scan` is left whole, since
the condition or the next step may read any of it.
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
    """A node that computes only those of its outputs that are wanted, and is given only the inputs that these need.
    Nodes that hold no plan stay as they are."""
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
    """For each input of plans that are given the same inputs, whether any of them reads it."""
    used = set[int]().union(*map(rewrite.used, plans))
    return [v in used for v in range(plans[0].inputs)]


def _given(plan: ir.Plan, keep: Sequence[bool]) -> ir.Plan:
    """The plan without the inputs that `keep` says no to; nothing in it may read these."""
    return plan if all(keep) else rewrite.with_inputs(plan, [v for v, k in enumerate(keep) if k])


def _selected(plan: ir.Plan, keep: Sequence[bool]) -> ir.Plan:
    return dataclasses.replace(plan, outputs=_take(plan.outputs, keep))


def _take(values: tuple, keep: Sequence[bool]) -> tuple:
    return tuple(v for v, k in zip(values, keep, strict=True) if k)
