"""A plan as a text that can be read: what is called, what waits for what."""

import math
from collections.abc import Iterator

from . import ir

_INDENT = "   "


def show(plan: ir.Plan, title: str) -> str:
    """The plan as lines, in an order in which it could run; `after` names what a step waits for."""
    return "\n".join([title, *_lines(plan)])


def _lines(plan: ir.Plan) -> Iterator[str]:
    steps = order(plan)
    number = {index: str(place + 1) for place, index in enumerate(steps)}
    sources: list[list[int]] = [[] for _ in plan.nodes]
    for index, followers in enumerate(plan.followers):
        for follower in followers:
            sources[follower].append(index)
    width = len(str(len(steps)))
    for index in steps:
        node = plan.nodes[index]
        waits = ", ".join(sorted((number[s] for s in sources[index]), key=int))
        scope = f"  [{node.scope}]" if node.scope else ""
        yield f"{number[index]:>{width}}  {what(node)}{f'  after {waits}' if waits else ''}{scope}"
        for label, inner in labelled(node):
            yield f"{_INDENT}{label}"
            lines = list(_lines(inner))
            yield from (f"{_INDENT}{_INDENT}{line}" for line in lines or ["nothing to do"])


def order(plan: ir.Plan) -> list[int]:
    """Nodes in an order in which each stands after what it waits for."""
    waits, ready, steps = list(plan.waits), list(plan.first), []
    while ready:
        index = ready.pop()
        steps.append(index)
        for follower in reversed(plan.followers[index]):
            waits[follower] -= 1
            if not waits[follower]:
                ready.append(follower)
    return steps


def what(node: ir.Node) -> str:
    """A node in a few words."""
    match node:
        case ir.Call():
            return (
                f"{math.prod(node.batch)} calls of {node.function}, at once" if node.batch else f"call {node.function}"
            )
        case ir.Foreign():
            return f"callback {node.eqn.primitive.name}"
        case ir.Words():
            return f"text {node.function}"
        case ir.Segment():
            count = len(node.equations)
            return f"numbers, {count} equation{'s' * (count != 1)}"
        case ir.Branch():
            return f"one of {len(node.branches)} branches"
        case ir.Loop():
            return "while loop"
        case ir.Scan():
            steps = f"{node.length} step{'s' * (node.length != 1)}"
            return f"scan of {steps}, one after another" if node.carry else f"map of {steps}, at once"
        case ir.Lanes():
            return f"lanes {' × '.join(map(str, node.sizes))}, each at its own pace"
        case _:
            raise TypeError(f"not a node of a plan: {node!r}")


def labelled(node: ir.Node) -> list[tuple[str, ir.Plan]]:
    """The plans that a control node holds, each with what it is there."""
    match node:
        case ir.Branch():
            return [(f"branch {i}:", branch) for i, branch in enumerate(node.branches)]
        case ir.Loop():
            return [("while:", node.condition), ("do:", node.body)]
        case ir.Scan():
            return [("each step:", node.body)]
        case ir.Lanes():
            return [("each lane:", node.body)]
        case _:
            return []
