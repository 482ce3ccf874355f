"""Functions that several passes share: questions about nodes, and small changes of nodes and plans."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax

from .._jax import equations
from . import ir


def has_effect(node: ir.Node) -> bool:
    """Whether a node must run even if nothing needs its outputs: a print, an impure call, or a node that holds one."""
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
    """The plan with calls that do not warn when, without a key, they are made several times and so give one sample."""
    quiet = lambda node: dataclasses.replace(node, warns=False) if isinstance(node, ir.Call) else node
    return dataclasses.replace(plan, nodes=tuple(quiet(node.with_plans(without_warnings)) for node in plan.nodes))


def takes_time(node: ir.Node) -> bool:
    """Whether a node may take a while: it is a call or may hold one. Segments and text operations do not count."""
    return not isinstance(node, ir.Segment | ir.Words)


def used(plan: ir.Plan, records: frozenset[int] = frozenset()) -> set[int]:
    """The values that something needs: those that the plan's nodes read, and its outputs.

    **Arguments:**

    - `plan`: the plan.
    - `records`: positions of outputs that do not count, since they are only kept for the replay.
    """
    outputs = (v for i, v in enumerate(plan.outputs) if i not in records)
    return {v for node in plan.nodes for v in node.inputs}.union(outputs)


def renamed(node: ir.Node, name: Mapping[int, int]) -> ir.Node:
    """A node with its values renamed: `name` maps an old value to a new one, and other values stay as they are."""
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
    """The same plan with other inputs: it is given the values `given`, in this order. All values are renumbered.

    **Arguments:**

    - `plan`: the plan.
    - `given`: the values that become inputs. The caller sees to two things, which nothing checks here. An old input
        that is not among them must be read by no node, and be no output. A value among them that was no input must be
        made by no node of the plan.
    """
    # The inputs come first, then all other values in their old order. Old inputs that are left out are dropped.
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
    """The type of an array that stacks values of type `aval` along new leading axes of `sizes`."""
    return jax.ShapeDtypeStruct((*sizes, *aval.shape), aval.dtype)


def lane_types(
    body: ir.Plan, sizes: Sequence[int], mapped: Sequence[Sequence[bool]]
) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The types of the values of a plan that consists of one `ir.Lanes` node: its inputs, then its outputs.

    **Arguments:**

    - `body`: the plan of one lane.
    - `sizes`: the lengths of the lanes' axes.
    - `mapped`: for each input, over which of these axes it is mapped. It has a leading axis for each of them.
    """
    axes = ([size for size, m in zip(sizes, mine, strict=True) if m] for mine in mapped)
    given = (stacked(body.types[i], mine) for i, mine in enumerate(axes))
    return (*given, *(stacked(a, sizes) for a in body.avals))


def in_order(nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """Nodes sorted so that each stands after those that make its inputs; otherwise the given order is kept.

    **Raises:** `ValueError` if nodes wait for each other in a circle.
    """
    # A depth-first search with a stack of its own: a plan may be deeper than Python lets functions call each other. A
    # node is pushed a second time, as ready, below the nodes that make its inputs.
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
