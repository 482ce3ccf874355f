"""Hoists steps that no lane varies out of the lanes, so that they are done once instead of in every lane.

Design note. A sweep over a learned weight with the question held fixed must not repeat the question's calls. Single
flight would merge those calls that are in flight at once. Hoisting also saves the text and the numbers around them, and
the plan then shows that they are made once.

Lanes over several axes are split into lanes of lanes first, so that a step which varies along the outer axis only is
done once for each outer lane. A step is hoisted only if every lane is certain to do it; so nothing is hoisted out of a
branch. A step with an effect is wanted in every lane and stays. Numbers that depend on constants alone stay too, as XLA
folds them.
"""

import dataclasses
import math

import jax
import numpy as np

from .. import ir, rewrite


def hoist(plan: ir.Plan) -> ir.Plan:
    """A plan whose lanes hold only what varies among them."""
    types, constants = list(plan.types), dict(plan.constants)
    nodes: list[ir.Node] = []
    for node in plan.nodes:
        if isinstance(node, ir.Lanes):
            steps, lanes = _hoisted(_split(node), types, constants)
            nodes += [*steps, lanes]
        else:
            nodes.append(node.with_plans(hoist))
    return dataclasses.replace(plan, nodes=tuple(nodes), types=tuple(types), constants=constants)


def _split(node: ir.Lanes) -> ir.Lanes:
    """Lanes over several axes as lanes of lanes, if some step does not vary along the inner ones."""
    inner_mapped = tuple(m[1:] for m in node.mapped)
    if len(node.sizes) < 2 or not _invariant(node.body, inner_mapped):
        return node
    body = node.body
    outputs = tuple(range(body.inputs, body.inputs + len(body.outputs)))
    inner = ir.Lanes(tuple(range(body.inputs)), outputs, node.scope, body, node.sizes[1:], inner_mapped)
    outer = ir.Plan(body.inputs, rewrite.lane_types(body, inner.sizes, inner.mapped), {}, (inner,), outputs)
    return dataclasses.replace(node, body=outer, sizes=node.sizes[:1], mapped=tuple(m[:1] for m in node.mapped))


def _hoisted(
    node: ir.Lanes, types: list[jax.ShapeDtypeStruct], constants: dict[int, np.ndarray]
) -> tuple[list[ir.Node], ir.Lanes]:
    """Hoists out of lanes the steps that no lane varies.

    **Arguments:**

    - `node`: the lanes.
    - `types`, `constants`: those of the outer plan; the values of hoisted steps are added to them.

    **Returns:** the hoisted steps as steps of the outer plan, and the lanes without them.
    """
    body = hoist(node.body)
    moved = _invariant(body, node.mapped)
    if not moved:
        return [], dataclasses.replace(node, body=body)
    outer = dict(enumerate(node.inputs))  # value of the body -> value of the outer plan
    for step in moved:
        for value in (*step.inputs, *step.outputs):
            if value not in outer:
                outer[value] = len(types)
                types.append(body.types[value])
                if value in body.constants:
                    constants[outer[value]] = body.constants[value]
    gone = set(moved)
    rest = [step for step in body.nodes if step not in gone]
    made = {v for step in moved for v in step.outputs}
    passed = sorted(made & ({v for step in rest for v in step.inputs} | set(body.outputs)))
    lanes = dataclasses.replace(
        node,
        inputs=(*node.inputs, *(outer[v] for v in passed)),
        body=rewrite.with_inputs(dataclasses.replace(body, nodes=tuple(rest)), [*range(body.inputs), *passed]),
        mapped=(*node.mapped, *((False,) * len(node.sizes) for _ in passed)),
    )
    return [_outside(step, outer, math.prod(node.sizes)) for step in moved], lanes


def _outside(step: ir.Node, outer: dict[int, int], lanes: int) -> ir.Node:
    """A step on values of the outer plan; a call notes for how many lanes it stands, which reports count."""
    step = rewrite.renamed(step, outer)
    return dataclasses.replace(step, lanes=step.lanes * lanes) if isinstance(step, ir.Call) else step


def _invariant(body: ir.Plan, mapped: tuple[tuple[bool, ...], ...]) -> list[ir.Node]:
    """The steps of lanes that may be hoisted, in order.

    These are the steps that depend on no mapped input and have no effect. A segment of constants alone is among them
    only if another hoisted step needs it.
    """
    given = {i for i, m in enumerate(mapped) if not any(m)}
    known, found = {*given, *body.constants}, []
    for step in body.nodes:
        if known.issuperset(step.inputs) and not rewrite.has_effect(step):
            found.append(step)
            known.update(step.outputs)
    dependent, needed = set(given), set()
    kept: list[ir.Node] = []
    for step in found:
        if not dependent.isdisjoint(step.inputs):
            dependent.update(step.outputs)
    for step in reversed(found):
        folds = isinstance(step, ir.Segment) and dependent.isdisjoint(step.inputs)
        if not folds or not needed.isdisjoint(step.outputs):
            needed.update(step.inputs)
            kept.append(step)
    return kept[::-1]
