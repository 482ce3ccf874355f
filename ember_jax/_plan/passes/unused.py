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
    if node.is_whole or not node.holds:
        return node
    held = node.held
    wanted = [w or i < len(held[-1].carried) for i, w in enumerate(wanted)]
    plans = [unused(h.plan if all(wanted) else _selected(h.plan, wanted)) for h in held]
    given, needed = set[int](), set[int]()
    for h, used in zip(held, map(rewrite.used, plans), strict=True):
        given.update(h.inputs)
        needed.update(k for i, k in enumerate(h.inputs) if i in used or i in h.carried)
    kept = [k in needed or k not in given for k in range(len(node.inputs))]
    narrowed = iter([_given(plan, [kept[k] for k in h.inputs]) for h, plan in zip(held, plans, strict=True)])
    return dataclasses.replace(
        node.with_plans(lambda _: next(narrowed)),
        inputs=_take(node.inputs, kept),
        outputs=_take(node.outputs, wanted),
        **node.narrowed(kept),
    )


def _given(plan: ir.Plan, keep: Sequence[bool]) -> ir.Plan:
    """The plan without the inputs that `keep` says no to; nothing in it may read these."""
    return plan if all(keep) else rewrite.with_inputs(plan, [v for v, k in enumerate(keep) if k])


def _selected(plan: ir.Plan, keep: Sequence[bool]) -> ir.Plan:
    return dataclasses.replace(plan, outputs=_take(plan.outputs, keep))


def _take(values: tuple, keep: Sequence[bool]) -> tuple:
    return tuple(v for v, k in zip(values, keep, strict=True) if k)
