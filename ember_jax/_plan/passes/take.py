"""Lets lanes and branches start before all that they are given is there, where something can be done until it is.

Design note. A step that no lane varies stands outside the lanes and is an input to them; a rubric, asked for once, that
every lane's second call is given. To start the lanes when it is there would put it before their first calls. So they
start without it, and take it by a step of their own, behind which stands only what needs it. What all calls of a lane
need anyhow is waited for outside, once. A branch starts when it is known which: `cond(up, lambda: strong(question),
lambda: draft)` asks the strong model while the draft is written.
"""

import dataclasses
import functools
import operator
from collections.abc import Iterable, Sequence

from .. import ir, rewrite


def take(plan: ir.Plan, given: Sequence[int] = ()) -> ir.Plan:
    """A plan whose lanes and branches start without inputs that not all of their calls need.

    **Arguments:**

    - `plan`: the plan.
    - `given`: for each of its inputs, the steps outside that it waits for when the plan has started, as bits.
    """
    waits = dict(enumerate(given))  # value -> the steps that take time which it waits for
    timed = max((bits.bit_length() for bits in given), default=0)
    nodes: list[ir.Node] = []
    for node in plan.nodes:
        before = [waits.get(v, 0) for v in node.inputs]
        waited = _union(before)
        if rewrite.takes_time(node):
            waited |= 1 << timed
            timed += 1
        waits.update(dict.fromkeys(node.outputs, waited))
        nodes.append(_taking(node, before))
    return dataclasses.replace(plan, nodes=tuple(nodes))


def _taking(node: ir.Node, waits: Sequence[int]) -> ir.Node:
    match node:
        case ir.Lanes():
            if len(set(waits)) < 2:
                return dataclasses.replace(node, body=take(node.body))
            # what is inside decides what must be there first, and that, what is late inside
            late = _later(waits, _needed_by_all(take(node.body, waits)))
            body = take(node.body, [bits if k in late else 0 for k, bits in enumerate(waits)])
            return dataclasses.replace(node, body=_with_takes(body, late, 0), late=late)
        case ir.Branch():
            late = _later(waits, {0})
            given = [bits if k in late else 0 for k, bits in enumerate(waits)][1:]
            branches = tuple(_with_takes(take(branch, given), late, 1) for branch in node.branches)
            return dataclasses.replace(node, branches=branches, late=late)
        case _:
            return node.with_plans(take)


def _later(waits: Sequence[int], first: set[int]) -> frozenset[int]:
    """The inputs that may come later than some which have to be waited for."""
    before = _union(waits[position] for position in first)
    return frozenset(k for k, waited in enumerate(waits) if k not in first and waited & ~before)


def _needed_by_all(body: ir.Plan) -> set[int]:
    """The inputs without which no step that takes time can start, nor any output be there."""
    inputs = {v: 1 << v for v in range(body.inputs)}  # value -> the inputs it depends on, as bits
    common = (1 << body.inputs) - 1
    for node in body.nodes:
        to_start = _union(inputs.get(v, 0) for k, v in enumerate(node.inputs) if k not in node.late)
        inputs.update(dict.fromkeys(node.outputs, to_start | _union(inputs.get(v, 0) for v in node.inputs)))
        if rewrite.takes_time(node):
            common &= to_start
    for value in body.outputs:
        common &= inputs.get(value, 0)
    return {v for v in range(body.inputs) if common >> v & 1}


def _union(bits: Iterable[int]) -> int:
    return functools.reduce(operator.or_, bits, 0)


def _with_takes(body: ir.Plan, late: frozenset[int], skipped: int) -> ir.Plan:
    """A plan that takes some of its inputs when they are there; `skipped` inputs of the node do not go into it."""
    if not late:
        return body
    used = rewrite.used(body)
    taken = [k for k in sorted(late) if k - skipped in used]
    name = {k - skipped: body.size + i for i, k in enumerate(taken)}
    takes = [ir.Take((), (name[k - skipped],), "", k) for k in taken]
    nodes = [dataclasses.replace(rewrite.renamed(n, name), outputs=n.outputs) for n in body.nodes]
    types = (*body.types, *(body.types[k - skipped] for k in taken))
    outputs = tuple(name.get(v, v) for v in body.outputs)
    return dataclasses.replace(body, nodes=(*takes, *nodes), types=types, outputs=outputs)
