"""Moves calls that only one side of a choice needs into a branch, so that a lane makes them only if it takes that side.

Design note. `vmap` of a `cond` runs all branches and selects among their results. In the body of one lane the selection
has a single index, so the branch can be restored: a step goes into one side of a selection if all its uses are on that
side, directly or through other steps. Only selections by an int32 come from `cond` and `switch`, and only these are
restored. `jnp.where` selects by a boolean; a user who writes it says that both sides are computed, and they are.

The result of a call is also recorded for the replay, which selects again. The record of a side that was not taken is
never looked at. So a record does not count as a use of a step, and on the other sides it is filled with zeros.
Derivatives do not see the zeros: JAX takes the derivative of a batched `cond` with the operands of the sides that a
lane does not take held fixed.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from ..._jax.equations import Broadcast, Select, view
from .. import ir, rewrite

# On which sides of which selections a value is used: pairs of a selection's index and a side.
Sides = frozenset[tuple[int, int]]


def sink(plan: ir.Plan, records: frozenset[int] = frozenset()) -> ir.Plan:
    """A plan in which selections between results of calls are branches.

    **Arguments:**

    - `plan`: the plan, whose segments have one equation each.
    - `records`: the positions of outputs that are only kept for the replay.
    """
    uses = Uses(plan, records)
    for index in dict.fromkeys(uses.selections.values()):
        branch = _branch(plan, uses, index, records)
        if branch is not None:
            return sink(branch, records)
    return plan


class Uses:
    """Which nodes select between sides, and on which sides nodes are used.

    **Arguments:**

    - `plan`, `records`: as of `sink`.
    - `lane_wise`: `None` if the plan is that of one lane. In a plan with a lane axis it holds the nodes that keep lanes
        apart; only these can be on one side of a selection, since there each lane has an index of its own.

    **Attributes:**

    - `selections`: each node that selects by one integer (of each lane), with the value which that integer is.
    - `sides`: for each node, the sides that all its uses are on, as pairs of a selection's index and a side. The set is
        empty if it is used on no particular side.
    """

    def __init__(self, plan: ir.Plan, records: frozenset[int], lane_wise: Collection[ir.Node] | None = None):
        self.selections = dict(_selections(plan, 0 if lane_wise is None else 1))
        self.sides: dict[ir.Node, Sides] = {}
        used: dict[int, Sides] = {v: frozenset() for i, v in enumerate(plan.outputs) if i not in records}

        def use(value: int, sides: Sides) -> None:
            used[value] = used[value] & sides if value in used else sides

        # Backwards, so that all uses of a node's outputs are known when the node is reached.
        for node in reversed(plan.nodes):
            found = [used[v] for v in node.outputs if v in used]
            apart = lane_wise is None or node in lane_wise
            mine = frozenset.intersection(*found) if found and apart and not rewrite.has_effect(node) else frozenset()
            self.sides[node] = mine
            if apart and node in self.selections:
                index = self.selections[node]
                for side, value in enumerate(_arms(node)):
                    if value is not None:
                        use(value, mine | {(index, side)})
                use(index, mine)
            else:
                for value in node.inputs:
                    use(value, mine)


def _selections(plan: ir.Plan, rank: int) -> Iterator[tuple[ir.Node, int]]:
    """The nodes that select by an int32 of rank `rank`, which may be broadcast first; each with that value."""
    spread: dict[int, int] = {}  # a broadcast value -> the value that is broadcast
    for node in plan.nodes:
        if not isinstance(node, ir.Segment):
            continue
        (equation,) = node.equations
        first = equation.inputs[0] if equation.inputs else None
        if first is None:
            continue
        match view(equation.eqn):
            case Broadcast():
                spread[node.outputs[0]] = spread.get(first, first)
            case Select():
                index = spread.get(first, first)
                if plan.types[index].ndim == rank and plan.types[index].dtype == np.int32:
                    yield node, index


def _arms(node: ir.Node) -> tuple[int | None, ...]:
    """The values that a selection selects from; `None` stands for a literal."""
    assert isinstance(node, ir.Segment)
    return node.equations[0].inputs[1:]


def _branch(plan: ir.Plan, uses: Uses, index: int, records: frozenset[int]) -> ir.Plan | None:
    """The plan with the selections by one index as a branch.

    **Returns:** `None` if no call could be moved into the branch, since a branch that computes numbers alone saves
    none.
    """
    chosen = [node for node, i in uses.selections.items() if i == index]
    arms = len(_arms(chosen[0]))
    chosen = [n for n in chosen if len(_arms(n)) == arms and None not in _arms(n)]
    sunk = {node: side for node, sides in uses.sides.items() for i, side in sides if i == index}
    chosen = _kept_together(plan, chosen, sunk)
    if not any(isinstance(n, ir.Call | ir.Lanes | ir.Branch | ir.Loop | ir.Scan | ir.Enclosed) for n in sunk):
        return None
    chosen = [node for node in chosen if node not in sunk]
    if not chosen:
        return None
    made = {v: side for node, side in sunk.items() for v in node.outputs}
    rest = [node for node in plan.nodes if node not in sunk and node not in chosen]
    kept = [v for v in made if v in plan.outputs]
    inner = [node for node in plan.nodes if node in sunk]
    read = (*(v for n in inner for v in n.inputs), *(v for n in chosen for v in _arms(n) if v is not None))
    selected = {n.outputs[0] for n in chosen}
    given = [v for v in dict.fromkeys(read) if v not in made and v not in plan.constants and v not in selected]
    branches = tuple(_side(plan, side, inner, sunk, chosen, given, kept) for side in range(arms))
    branch = ir.Branch((index, *given), (*(n.outputs[0] for n in chosen), *kept), "", branches)
    return dataclasses.replace(plan, nodes=tuple(rewrite.in_order([*rest, branch])))


def _kept_together(plan: ir.Plan, chosen: list[ir.Node], sunk: dict[ir.Node, int]) -> list[ir.Node]:
    """The selections that one branch can make; drops nodes from `sunk` that it cannot hold.

    A node cannot be in the branch if it reads something that is computed, outside the branch, from the branch's
    results: the branch would wait for itself. Nor can a node whose result is needed outside. To drop a node may make
    others impossible, so this is repeated until none is dropped.
    """
    while True:
        inside = {*chosen, *sunk}
        out = {v for n in chosen if n not in sunk for v in n.outputs}  # the results of the branch
        needed: set[int] = set()  # what nodes outside the branch read
        after: set[int] = set()  # what nodes outside the branch compute from its results
        for node in plan.nodes:
            if node not in inside:
                needed.update(node.inputs)
                if not (out | after).isdisjoint(node.inputs):
                    after.update(node.outputs)
        late = [n for n in inside if not after.isdisjoint(n.inputs)]
        late += [n for n in sunk if not needed.isdisjoint(n.outputs)]
        if not late:
            return chosen
        for node in late:
            sunk.pop(node, None)
        chosen = [n for n in chosen if n not in late]


def _side(
    plan: ir.Plan,
    side: int,
    inner: Sequence[ir.Node],
    sunk: Mapping[ir.Node, int],
    chosen: Sequence[ir.Node],
    given: Sequence[int],
    kept: Sequence[int],
) -> ir.Plan:
    """The plan of one side of a branch.

    **Arguments:**

    - `side`: its number.
    - `inner`, `sunk`: the nodes that go into the branch, and the side of each.
    - `chosen`: the selections that become the branch's first outputs.
    - `given`: the outer values that are the branch's inputs.
    - `kept`: outer values that are its further outputs, as records; those of other sides are zeros here.
    """
    name = {v: i for i, v in enumerate(given)}
    types = [plan.types[v] for v in given]
    constants: dict[int, np.ndarray] = {}
    zero: dict[int, np.ndarray] = {}

    def new(value: int) -> int:
        types.append(plan.types[value])
        return len(types) - 1

    for value, constant in plan.constants.items():
        name[value] = new(value)
        constants[name[value]] = constant
    nodes: list[ir.Node] = []
    selections = {n.outputs[0]: _arms(n)[side] for n in chosen}

    def read(value: int) -> int:
        while value in selections:  # a selection by the same index: on this side it is known what it selects
            value = selections[value]  # type: ignore[assignment]
        return name[value]

    for node in inner:
        if sunk[node] == side:
            name.update((v, new(v)) for v in node.outputs)
            nodes.append(
                rewrite.renamed(node, {**{v: read(v) for v in node.inputs}, **{v: name[v] for v in node.outputs}})
            )
    for value in kept:
        if value not in name:
            aval = plan.types[value]
            name[value] = new(value)
            zero[name[value]] = np.zeros(aval.shape, aval.dtype)
    outputs = (*(read(n.outputs[0]) for n in chosen), *(name[v] for v in kept))
    inside = ir.Plan(len(given), tuple(types), {**constants, **zero}, tuple(nodes), outputs)
    return sink(inside, frozenset(range(len(chosen), len(outputs))))
