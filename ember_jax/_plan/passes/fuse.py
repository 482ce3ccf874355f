"""Fuses numeric equations that become ready together into segments, each one XLA executable.

Design note. Equations are grouped by the *set of steps they wait for*. Equations with equal sets can always run at
one moment, and no set waits for a step that it does not need, so grouping loses no parallelism; grouping by connection
or by program order would. It cannot make a cycle: a segment waits only for steps in its set and for segments of smaller
sets. Sets are the bits of an integer.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from .. import ir, rewrite


def fuse(plan: ir.Plan) -> ir.Plan:
    """A plan with as few segments as its waiting allows; nodes come in an order in which they could run."""
    others: list[ir.Node] = []
    groups: dict[int, list[ir.Segment]] = {}
    waits: dict[int, int] = {}  # value -> the steps it waits for
    group_of: dict[int, int] = {}  # value made by a segment -> its group
    crossing = set(plan.outputs)  # values that are read outside the group that makes them
    for node in plan.nodes:
        waited = 0
        for value in node.inputs:
            waited |= waits.get(value, 0)
        if isinstance(node, ir.Segment) and not node.calls_python:
            groups.setdefault(waited, []).append(node)
            crossing.update(v for v in node.inputs if group_of.get(v, -1) != waited)
            group_of.update(dict.fromkeys(node.outputs, waited))
        else:
            crossing.update(node.inputs)
            waited |= 1 << len(others)
            others.append(node.with_plans(fuse))
        waits.update(dict.fromkeys(node.outputs, waited))
    segments = [_fused(members, crossing, plan.constants) for members in groups.values()]
    return dataclasses.replace(plan, nodes=tuple(rewrite.in_order([*segments, *others])))


def _fused(members: Sequence[ir.Segment], crossing: set[int], constants: Mapping[int, np.ndarray]) -> ir.Segment:
    made = {v: aval for m in members for v, aval in zip(m.outputs, m.avals, strict=True)}
    used = {v for m in members for v in m.inputs}.difference(made)
    outputs = tuple(v for v in made if v in crossing)
    return ir.Segment(
        inputs=tuple(sorted(used.difference(constants))),
        outputs=outputs,
        scope="",
        equations=tuple(e for m in members for e in m.equations),
        avals=tuple(made[v] for v in outputs),
        constants={v: constants[v] for v in sorted(used.intersection(constants))},
    )
