"""Takes batched steps apart into lanes again, so that each lane flows from call to call at its own pace.

Design note. An inner `jax.vmap` over a plain function leaves a batched program: calls in batches, lanes of operators,
and between them equations on arrays in which some axis is the lanes' axis. Each such step waits for the slowest lane of
the step before, although the data of one lane does not need the others. So the lanes' axis is followed from every batch
of calls through the steps that keep lanes apart (`_jax/axes.py` says which do). The steps that are connected in this
way become one step: lanes, whose body is what one lane does, without the axis. A step in which lanes meet, or of which
it is not known that they do not, stays as it is and waits for all lanes; the field `meets` of the lanes says why.

A step that needs a result from where lanes met waits for all of them, so it cannot be part of the same lanes: it and
the steps after it become lanes of their own. Nothing else waits longer than it did, see `give.py` and `take.py`.

Axes are taken off one by one, the outermost first; what is left inside is then batched along the next axis.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..._jax import equations
from ..._jax.axes import Crossing, OneLane, one_lane
from .. import ir, rewrite
from ..builder import Builder
from .merge import merge
from .sink import Uses, sink


def unbatch(plan: ir.Plan, records: frozenset[int] = frozenset()) -> ir.Plan:
    """A plan whose batched steps are lanes.

    **Arguments:**

    - `plan`: the plan, whose segments have one equation each.
    - `records`: the positions of outputs that are only kept for the replay. The replay uses them as the plan itself
        does, so on their own they are no reason to make a call.
    """
    for size in dict.fromkeys(filter(None, map(_size, plan.nodes))):
        plan = _Axis(plan, size, records).rewritten()
    used = rewrite.used(plan, records)
    return dataclasses.replace(plan, nodes=tuple(_unbatched(node, used) for node in plan.nodes))


def _unbatched(node: ir.Node, used: set[int]) -> ir.Node:
    """A node with its inner plans unbatched. An inner output is a record if the node's own output is used by nothing;
    but a carry of a `scan` is not, since the next step may read it."""
    if isinstance(node, ir.Branch | ir.Lanes):
        records = frozenset(i for i, v in enumerate(node.outputs) if v not in used)
    elif isinstance(node, ir.Scan):
        records = frozenset(i for i, v in enumerate(node.outputs) if v not in used and i >= node.carry)
    else:
        records = frozenset()
    return node.with_plans(functools.partial(unbatch, records=records))


def _size(node: ir.Node) -> int | None:
    """The length of the outermost lane axis of a node that makes calls in lanes; `None` for any other node."""
    match node:
        case ir.Call() if node.batch:
            return node.batch[0]
        case ir.Lanes():
            return node.sizes[0]
        case _:
            return None


@dataclasses.dataclass(frozen=True)
class _Step:
    """A node that keeps lanes apart.

    **Fields:**

    - `node`: the node.
    - `wants`: the lanes' axis of each input that is taken by lane; an input that is not in it is taken whole.
    - `gives`: the lanes' axis of each output.
    - `lane`: what one lane computes, if the node is an equation.
    """

    node: ir.Node
    wants: Mapping[int, int]
    gives: tuple[int, ...]
    lane: OneLane | None = None


@dataclasses.dataclass(eq=False)
class _Group:
    """Steps whose lanes flow into each other, and which become one step.

    **Fields:**

    - `steps`: positions of their nodes in the plan.
    - `after`: the groups all of whose lanes this group waits for.
    - `calls`: how many of its steps take time.
    - `into`: the group that this one was merged into, if it was.
    """

    steps: list[int]
    after: "set[_Group]"
    calls: int = 0
    into: "_Group | None" = None

    def now(self) -> "_Group":
        """The group that this one is part of now; itself if it was not merged."""
        group = self
        while group.into is not None:
            group = group.into
        return group

    def waits_for(self, others: "set[_Group]") -> bool:
        """Whether this group is one of `others`, or waits for one of them, directly or through other groups."""
        seen: set[_Group] = set()
        stack = [self.now()]
        while stack:
            group = stack.pop()
            if group in others:
                return True
            if group not in seen:
                seen.add(group)
                stack += (g.now() for g in group.after)
        return False


def _joined(before: list[_Group], after: set[_Group]) -> _Group:
    """The group that a step becomes part of; a new one if it cannot be part of any.

    **Arguments:**

    - `before`: the groups with whose lanes the step goes on, lane by lane.
    - `after`: the groups of which it needs all lanes.

    Of the groups in `before`, those that no other of them waits for are merged, and the step joins them. It waits for
    the rest. If the merged group would then wait for itself, nothing is merged and the step begins a group of its own,
    which waits for all.
    """
    flowing = {group.now() for group in before}
    together = {g for g in flowing if not any(h.waits_for({g}) for h in flowing if h is not g)}
    outside = (after | flowing - together).union(*(group.after for group in together))
    if not together or any(group.waits_for(together) for group in outside):
        return _Group([], {*after, *before})
    # The smaller groups are merged into the largest, so that few steps are copied: the whole stays linear in the steps.
    joined, *others = sorted(together, key=lambda group: -len(group.steps))
    joined.after = outside
    for group in others:
        joined.steps += group.steps
        joined.calls += group.calls
        group.into = joined
    return joined


class _Axis:
    """A plan, seen along lane axes of one size.

    **Attributes:**

    - `maker`, `readers`: for each value the position of the node that makes it, and of those that read it.
    - `steps`: the nodes that keep lanes apart, by position.
    """

    def __init__(self, plan: ir.Plan, size: int, records: frozenset[int]):
        self.plan = plan
        self.size = size
        self._records = records
        self._axis: dict[int, int] = {}  # value -> its lanes' axis
        self.maker = {v: i for i, node in enumerate(plan.nodes) for v in node.outputs}
        self.readers: dict[int, set[int]] = {}
        for index, node in enumerate(plan.nodes):
            for value in node.inputs:
                self.readers.setdefault(value, set()).add(index)
        self._reasons: dict[int, str] = {}  # node -> why lanes meet in it
        self.steps = {i: step for i, node in enumerate(plan.nodes) if (step := self._step(i, node)) is not None}
        self._sides = Uses(plan, records, {step.node for step in self.steps.values()}).sides
        self._groups = self._grouped()

    # -- which steps keep lanes apart --------------------------------------------------------------------------------

    def _step(self, index: int, node: ir.Node) -> _Step | None:
        """The node as a step that keeps lanes apart; otherwise `None`, and the reason is noted if it reads lanes."""
        try:
            step = self._lane_wise(node)
        except Crossing as crossing:
            self._reasons[index] = str(crossing)
            return None
        if step is not None:
            self._axis.update(zip(node.outputs, step.gives, strict=True))
        elif any(v in self._axis for v in node.inputs):
            self._reasons[index] = f"{_name(node)} takes all lanes together"
        return step

    def _lane_wise(self, node: ir.Node) -> _Step | None:
        axes = {self._axis[v] for v in node.inputs if v in self._axis}
        match node:
            case ir.Call() if node.batch and node.batch[0] == self.size:
                wants = dict.fromkeys(node.inputs, 0)
            case ir.Lanes() if node.sizes[0] == self.size:
                wants = {v: 0 for v, mapped in zip(node.inputs, node.mapped, strict=True) if mapped[0]}
                whole = {v for v, mapped in zip(node.inputs, node.mapped, strict=True) if not mapped[0]}
                if not whole.isdisjoint(wants):
                    raise Crossing(f"{_name(node)} takes a value both lane by lane and whole")
            case ir.Words() if len(axes) == 1:
                (axis,) = axes
                ranks = zip(node.inputs, node.function.ranks, strict=True)
                if any(axis >= self.plan.types[v].ndim - rank for v, rank in ranks):
                    raise Crossing(f"the text operation {node.function} reads all lanes")
                wants = dict.fromkeys(node.inputs, axis)
                return _Step(node, wants, (axis,) * len(node.outputs))
            case ir.Segment() if axes and not node.calls_python:
                return self._equation(node)
            case _:
                return None
        return _Step(node, wants, (0,) * len(node.outputs))

    def _equation(self, node: ir.Segment) -> _Step:
        (equation,) = node.equations
        given = [None if v is None else self._axis.get(v) for v in equation.inputs]
        lane = one_lane(equation.eqn, given, self.size)
        pairs = {(v, a) for v, a in zip(equation.inputs, lane.inputs, strict=True) if v is not None}
        gives = tuple(a for a in lane.outputs if a is not None)
        name = equations.name(equation.eqn)
        if len(pairs) > len({v for v, _ in pairs}) or len(gives) < len(lane.outputs):
            raise Crossing(f"{name} needs a value both lane by lane and whole")
        return _Step(node, {v: a for v, a in pairs if a is not None}, gives, lane)

    # -- which of them flow into each other --------------------------------------------------------------------------

    def _flows(self, step: _Step, value: int) -> bool:
        """Whether a step takes a value by lane, along the axis on which the value has its lanes."""
        return value in self._axis and step.wants.get(value) == self._axis[value]

    def _grouped(self) -> list[_Group]:
        groups: dict[int, _Group] = {}  # step -> its group
        behind: dict[int, set[_Group]] = {}  # value -> the groups that it is computed from, with no other group between
        for index, node in enumerate(self.plan.nodes):
            step = self.steps.get(index)
            if step is None:
                found = {g for v in node.inputs for g in behind.get(v, ())}
            else:
                # A call on one side of a choice is made once it is known which side a lane takes, so it also waits for
                # the index of the choice. A step that the index itself depends on cannot wait for it: the index is made
                # after that step, and is left out here.
                chosen = [v for v, _ in self._sides[node] if self.maker.get(v, -1) < index]
                flowing = {v for v in node.inputs if self._flows(step, v)}.union(v for v in chosen if v in self._axis)
                before = [groups[self.maker[v]] for v in (*node.inputs, *chosen) if v in flowing]
                after = {g for v in (*node.inputs, *chosen) if v not in flowing for g in behind.get(v, ())}
                group = _joined(before, after)
                group.steps.append(index)
                group.calls += rewrite.takes_time(node)
                groups[index] = group
                found = {group}
            behind.update(dict.fromkeys(node.outputs, found))
        return list(dict.fromkeys(group.now() for group in groups.values()))

    # -- the new plan ------------------------------------------------------------------------------------------------

    def rewritten(self) -> ir.Plan:
        """The plan with each group as one step."""
        types, meets = list(self.plan.types), self._meets()
        wanted = {v for i, v in enumerate(self.plan.outputs) if i not in self._records}
        nodes = dict(enumerate(self.plan.nodes))
        made: list[ir.Node] = []
        for group in self._groups:
            if group.calls > 1 or any(self._sides[nodes[i]] for i in group.steps):
                made += _Body(self, group, types).nodes(wanted, meets[group])
                for index in group.steps:
                    del nodes[index]
            else:  # a group with at most one call and no choice gains nothing as lanes: the batch stays a batch
                for index in group.steps:
                    if isinstance(node := nodes[index], ir.Call | ir.Lanes):
                        nodes[index] = dataclasses.replace(node, meets=meets[group])
        nodes_in_order = rewrite.in_order([*nodes.values(), *made])
        return dataclasses.replace(self.plan, nodes=tuple(nodes_in_order), types=tuple(types))

    def _meets(self) -> dict[_Group, tuple[str, ...]]:
        """For each group, why its lanes meet before other calls are made."""
        group_of = {v: group for group in self._groups for i in group.steps for v in self.plan.nodes[i].outputs}
        reasons: dict[_Group, dict[str, None]] = {group: {} for group in self._groups}
        needed: set[int] = set()  # the values that calls depend on: other meetings of lanes make no call wait
        for index in reversed(range(len(self.plan.nodes))):
            node = self.plan.nodes[index]
            if rewrite.takes_time(node) or not needed.isdisjoint(node.outputs):
                needed.update(node.inputs)
                for value in node.inputs:
                    if index in self._reasons and value in group_of:
                        reasons[group_of[value]][self._reasons[index]] = None
        return {group: tuple(reversed(found)) for group, found in reasons.items()}


class _Body:
    """Builds the plan of what one lane of a group does. `types` are the types of the outer plan; new values that bring
    an axis to the front are added to them."""

    def __init__(self, axis: _Axis, group: _Group, types: list[jax.ShapeDtypeStruct]):
        self._axis, self._plan, self._types = axis, axis.plan, types
        self._inside = set(group.steps)
        self._steps = [axis.steps[i] for i in sorted(group.steps)]
        self._made = {v: a for step in self._steps for v, a in zip(step.node.outputs, step.gives, strict=True)}
        self._builder = Builder()
        self._given: dict[tuple[int, int | None], int] = {}  # an outer value and its lane axis -> the body's input
        self._values: dict[int, int] = {}  # an outer value that the group makes -> the body's
        self._outside: list[ir.Node] = []

    def nodes(self, wanted: set[int], meets: tuple[str, ...]) -> Iterator[ir.Node]:
        """The lanes as a node, and nodes that move the lanes' axis to the front of its inputs and back in its outputs.

        **Arguments:**

        - `wanted`: the outer plan's outputs that are not only kept for the replay.
        - `meets`: why the lanes meet afterwards.
        """
        for value, axis in self._wanted():
            if (value, axis) not in self._given and not (axis is None and value in self._plan.constants):
                self._given[value, axis] = self._builder.new(_without(self._plan.types[value], axis))
        inputs = tuple(self._in_front(v, axis) for v, axis in self._given)
        mapped = tuple((axis is not None,) for _, axis in self._given)
        for step in self._steps:
            outs = self._one_lane(step)
            self._values.update(zip(step.node.outputs, outs, strict=True))
        used = {v for v in self._made if v in wanted or not self._axis.readers.get(v, set()) <= self._inside}
        outputs_of_plan = set(self._plan.outputs)
        kept = [v for v in self._made if v in used or v in outputs_of_plan]
        body = merge(self._builder.finish(len(self._given), [self._values[v] for v in kept]))
        body = sink(body, frozenset(i for i, v in enumerate(kept) if v not in used))
        outputs = tuple(self._from_front(v, self._made[v]) for v in kept)
        yield ir.Lanes(inputs, outputs, "", body, (self._axis.size,), mapped, meets=meets)
        yield from self._outside

    def _wanted(self) -> Iterator[tuple[int, int | None]]:
        """The values that the steps take and the group does not make, each with its lanes' axis or `None`."""
        for step in self._steps:
            for value in step.node.inputs:
                if value not in self._made:
                    yield self._source(value, step.wants.get(value))

    def _source(self, value: int, axis: int | None) -> tuple[int, int | None]:
        """What the lanes are given in place of a value, and its lanes' axis. If the value is a broadcast that repeats
        another value for each lane, the other value is given whole."""
        if axis is None or value not in self._axis.maker:
            return value, axis
        maker = self._plan.nodes[self._axis.maker[value]]
        if not isinstance(maker, ir.Segment):
            return value, axis
        (equation,) = maker.equations
        source = equation.inputs[0] if equation.inputs else None
        spread = equations.view(equation.eqn)
        if not isinstance(spread, equations.Broadcast) or source is None:
            return value, axis
        rest = tuple(d for d in range(self._plan.types[value].ndim) if d != axis)
        same = self._plan.types[source] == _without(self._plan.types[value], axis)
        return (source, None) if same and spread.dimensions == rest else (value, axis)

    # -- one lane of each step ---------------------------------------------------------------------------------------

    def _one_lane(self, step: _Step) -> list[int]:
        node = step.node
        inputs = tuple(self._read(v, step.wants.get(v)) for v in node.inputs)
        match node:
            case ir.Segment():
                assert step.lane is not None
                return self._equation(node.equations[0], step.lane, dict(zip(node.inputs, inputs, strict=True)))
            case ir.Lanes() if len(node.sizes) == 1:
                return self._inlined(node, inputs)
            case ir.Lanes():
                mapped = tuple(m[1:] for m in node.mapped)
                return self._added(node, inputs, sizes=node.sizes[1:], mapped=mapped)
            case ir.Call():
                return self._added(node, inputs, batch=node.batch[1:])
            case ir.Words():
                rank = self._plan.types[node.inputs[0]].ndim - node.function.ranks[0]
                return self._added(node, inputs, batched=rank > 1)
            case _:
                return self._added(node, inputs)

    def _read(self, value: int, axis: int | None) -> int:
        if value in self._made:
            return self._values[value]
        value, axis = self._source(value, axis)
        if (value, axis) in self._given:
            return self._given[value, axis]
        return self._builder.constant(self._plan.constants[value], self._plan.types[value])

    def _added(self, node: ir.Node, inputs: tuple[int, ...], **changed: Any) -> list[int]:
        outputs = tuple(self._builder.new(_without(self._plan.types[v], self._made[v])) for v in node.outputs)
        self._builder.add(dataclasses.replace(node, inputs=inputs, outputs=outputs, **changed))
        return list(outputs)

    def _inlined(self, node: ir.Lanes, inputs: tuple[int, ...]) -> list[int]:
        """Adds the body of lanes as it stands, since it is one lane's already; returns its outputs."""
        body = node.body
        name = dict(enumerate(inputs))
        for value in range(body.inputs, body.size):
            constant = body.constants.get(value)
            aval = body.types[value]
            name[value] = self._builder.new(aval) if constant is None else self._builder.constant(constant, aval)
        for step in body.nodes:
            scope = "/".join(filter(None, (node.scope, step.scope)))
            self._builder.add(dataclasses.replace(rewrite.renamed(step, name), scope=scope))
        return [name[v] for v in body.outputs]

    def _equation(self, equation: ir.Equation, lane: OneLane, values: Mapping[int, int]) -> list[int]:
        eqn = equation.eqn
        operands: list[tuple[int | None, Any, int | None]] = [
            *zip(equation.inputs, eqn.invars, lane.inputs, strict=True)
        ]

        def run(*given: Any) -> list[Any]:
            known = iter(given)
            return lane.run(*(var.val if v is None else next(known) for v, var, _ in operands))

        avals = [
            _without(jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype), a) for v, var, a in operands if v is not None
        ]
        closed = jax.make_jaxpr(run)(*avals)
        return self._builder.numbers(closed, [values[v] for v, _, _ in operands if v is not None])

    # -- the lanes' axis in front ------------------------------------------------------------------------------------

    def _in_front(self, value: int, axis: int | None) -> int:
        """An outer value with its lanes' axis in front, where `ir.Lanes` takes lanes from; it is moved if need be."""
        if not axis:
            return value
        moved = self._with_axis_in_front(value, axis)
        self._outside.append(_move(value, moved, axis, 0, self._types))
        return moved

    def _from_front(self, value: int, axis: int) -> int:
        """The value that the lanes give for an outer value: the lanes' axis is in front, and it is moved to `axis`."""
        if not axis:
            return value
        stacked = self._with_axis_in_front(value, axis)
        self._outside.append(_move(stacked, value, 0, axis, self._types))
        return stacked

    def _with_axis_in_front(self, value: int, axis: int) -> int:
        """A new outer value, whose type is that of `value` with its lanes' axis in front."""
        aval = self._plan.types[value]
        self._types.append(rewrite.stacked(_without(aval, axis), aval.shape[axis : axis + 1]))
        return len(self._types) - 1


def _move(value: int, moved: int, axis: int, to: int, types: list[jax.ShapeDtypeStruct]) -> ir.Segment:
    """A node of the outer plan that makes `moved` of `value` by moving one axis from `axis` to `to`."""
    (eqn,) = jax.make_jaxpr(lambda x: jnp.moveaxis(x, axis, to))(types[value]).jaxpr.eqns
    equation = ir.Equation(eqn, (value,), (moved,))
    return ir.Segment((value,), (moved,), "", (equation,), (types[moved],), {})


def _without(aval: jax.ShapeDtypeStruct, axis: int | None) -> jax.ShapeDtypeStruct:
    """The type of one lane's value."""
    if axis is None:
        return aval
    return jax.ShapeDtypeStruct((*aval.shape[:axis], *aval.shape[axis + 1 :]), aval.dtype)


def _name(node: ir.Node) -> str:
    match node:
        case ir.Call() | ir.Words():
            return str(node.function)
        case ir.Segment():
            return equations.name(node.equations[0].eqn)
        case ir.Foreign():
            return equations.name(node.seen.eqn)
        case _:
            return {ir.Branch: "a branch", ir.Loop: "a while loop", ir.Scan: "a scan"}.get(type(node), "another vmap")
