"""The order in which a plan is told: each step after those that it waits for."""

from .._plan import ir


def order(plan: ir.Plan) -> list[int]:
    """Nodes in an order in which each stands after what it needs, and close to it."""
    needs = list(plan.waits)
    for index, makers in taken_later(plan).items():
        needs[index] += len(makers)
    ready, steps = [i for i in plan.first if not needs[i]], []
    while ready:
        index = ready.pop()
        steps.append(index)
        for follower in reversed((*plan.followers[index], *plan.takers.get(index, ()))):
            needs[follower] -= 1
            if not needs[follower]:
                ready.append(follower)
    return steps


def sources(plan: ir.Plan) -> list[list[int]]:
    """For each node, those that it waits for."""
    found: list[list[int]] = [[] for _ in plan.nodes]
    for index, followers in enumerate(plan.followers):
        for follower in followers:
            found[follower].append(index)
    return found


def taken_later(plan: ir.Plan) -> dict[int, list[int]]:
    """For the nodes that start without something, those that make it."""
    found: dict[int, list[int]] = {}
    for index, takers in plan.takers.items():
        for taker in takers:
            found.setdefault(taker, []).append(index)
    return found
