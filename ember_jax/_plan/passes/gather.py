"""Gathers the numbers that depend on inputs alone, to be computed for many lanes at once before those lanes start.

Design note. A segment that waits for no call is ready in every lane at the start. As a step of the lane it would be
collected row by row and stacked again; as the lanes' `first` segment it is given slices of the input arrays as they
lie, for a block of lanes at a time, so that the first calls go out while later blocks are still computed.
"""

import dataclasses

from .. import ir, rewrite


def gather(plan: ir.Plan) -> ir.Plan:
    """A plan whose lanes have their input-only segments in front, where `fuse` has made one of them."""
    return dataclasses.replace(plan, nodes=tuple(map(_gathered, plan.nodes)))


def _gathered(node: ir.Node) -> ir.Node:
    node = node.with_plans(gather)
    if not isinstance(node, ir.Lanes):
        return node
    body = node.body
    starts = [s for i in body.first if isinstance(s := body.nodes[i], ir.Segment) and not s.calls_python]
    if len(starts) != 1:
        return node
    (segment,) = starts
    rest = tuple(step for step in body.nodes if step is not segment)
    given = [*range(body.inputs), *segment.outputs]
    body = rewrite.with_inputs(dataclasses.replace(body, nodes=rest), given)
    return dataclasses.replace(node, body=body, first=segment)
