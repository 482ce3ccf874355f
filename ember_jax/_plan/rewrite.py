"""What passes share: questions about nodes, and small changes to them."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax

from .._jax import equations
from . import ir


def has_effect(node: ir.Node) -> bool:
    """Whether a node is wanted even if its outputs are not: a print, an impure call, or what holds one."""
    match node:
        case ir.Call():
            return not node.function.pure
        case ir.Foreign():
            return equations.has_effect(node.seen.eqn)
        case ir.Give():
            return True
        case ir.Segment():
            return any(equations.leaves_xla(e.eqn) and equations.has_effect(e.eqn) for e in node.equations)
        case _:
            return any(has_effect(inner) for plan in node.plans for inner in plan.nodes)


def without_warnings(plan: ir.Plan) -> ir.Plan:
    """A plan whose calls without a key are known to be one sample, however often they are made."""
    quiet = lambda node: dataclasses.replace(node, warns=False) if isinstance(node, ir.Call) else node
    return dataclasses.replace(plan, nodes=tuple(quiet(node.with_plans(without_warnings)) for node in plan.nodes))


def takes_time(node: ir.Node) -> bool:
    """Whether a node may be waited for: a call, or what may hold one."""
    return not isinstance(node, ir.Segment | ir.Words)


def used(plan: ir.Plan, records: frozenset[int] = frozenset()) -> set[int]:
    """The values that a plan's nodes read, and its outputs other than some."""
    outputs = (v for i, v in enumerate(plan.outputs) if i not in records)
    return {v for node in plan.nodes for v in node.inputs}.union(outputs)


def renamed(node: ir.Node, name: Mapping[int, int]) -> ir.Node:
    """A node on other values; those that `name` does not hold stay."""
    get = lambda values: tuple(name.get(v, v) for v in values)
    if not isinstance(node, ir.Segment):
        return dataclasses.replace(node, inputs=get(node.inputs), outputs=get(node.outputs))
    equations = tuple(
        ir.Equation(e.eqn, tuple(None if v is None else name.get(v, v) for v in e.inputs), get(e.outputs))
        for e in node.equations
    )
    constants = {name.get(v, v): c for v, c in node.constants.items()}
    values = {"inputs": get(node.inputs), "outputs": get(node.outputs)}
    return dataclasses.replace(node, equations=equations, constants=constants, **values)


def with_inputs(plan: ir.Plan, given: Sequence[int]) -> ir.Plan:
    """A plan that is given some of its values, in this order.

    What is left out of its inputs nothing reads, and what it is given beyond them no node makes.
    """
    there = set(given)
    order = [*given, *(v for v in range(plan.inputs, plan.size) if v not in there)]
    name = {v: i for i, v in enumerate(order)}
    return ir.Plan(
        inputs=len(given),
        types=tuple(plan.types[v] for v in order),
        constants={name[v]: c for v, c in plan.constants.items()},
        nodes=tuple(renamed(node, name) for node in plan.nodes),
        outputs=tuple(name[v] for v in plan.outputs),
    )


def stacked(aval: jax.ShapeDtypeStruct, sizes: Sequence[int]) -> jax.ShapeDtypeStruct:
    """The type of an array of such values."""
    return jax.ShapeDtypeStruct((*sizes, *aval.shape), aval.dtype)


def lane_types(
    body: ir.Plan, sizes: Sequence[int], mapped: Sequence[Sequence[bool]]
) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The types of a plan whose only step is lanes of a body: what they are given, and what they give."""
    axes = ([size for size, m in zip(sizes, mine, strict=True) if m] for mine in mapped)
    given = (stacked(body.types[i], mine) for i, mine in enumerate(axes))
    return (*given, *(stacked(a, sizes) for a in body.avals))


def in_order(nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """Nodes in an order in which each stands after those that make its inputs; otherwise as given.

    **Raises:** `ValueError` if they go in a circle.
    """
    maker = {v: i for i, node in enumerate(nodes) for v in node.outputs}
    order: list[ir.Node] = []
    done, open_ = [False] * len(nodes), [False] * len(nodes)
    for start in range(len(nodes)):
        stack = [(start, False)]
        while stack:
            index, ready = stack.pop()
            if done[index]:
                continue
            if ready:
                done[index] = True
                order.append(nodes[index])
                continue
            stack.append((index, True))
            open_[index] = True
            sources = {maker[v] for v in nodes[index].inputs if v in maker}
            if any(open_[s] and not done[s] for s in sources):
                raise ValueError(f"the steps of a plan wait for each other in a circle, at {nodes[index]!r:.200}")
            stack += [(s, False) for s in sorted(sources, reverse=True) if not done[s]]
    return order
