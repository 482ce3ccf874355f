"""The walk through plans that are not run: abstract interpretation, of which each use is a domain.

Design note. P. Cousot and R. Cousot, "Abstract interpretation", 1977. A domain says what stands for a value and what
for a run of a plan: digests and nothing, digests and what calls come to, moments and moments. Which value goes where is
said by the steps themselves, see `ir.Held`; that is walked here, and a domain adds what its own idea needs: whether the
steps of a `scan` are gone through one by one or as any of them, whether a run begins anew or after what came before.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

from . import ir

Value = TypeVar("Value")
Total = TypeVar("Total")


class Walk(abc.ABC, Generic[Value, Total]):
    """A domain, and the walk through plans in it."""

    @abc.abstractmethod
    def step(self, plan: ir.Plan, node: ir.Node, given: Sequence[Value], begin: Value) -> tuple[Sequence[Value], Total]:
        """What a step that holds no plan makes of what it is given, and what it comes to.

        Outputs that it does not tell are like what is there when the plan begins.
        """

    @abc.abstractmethod
    def together(self, runs: Sequence[Total], begin: Value) -> Total:
        """What all of several come to in one plan."""

    def constants(self, plan: ir.Plan) -> Mapping[int, Value]:
        """What is said of a plan's constants."""
        return {}

    def part(self, value: Value, begin: Value) -> Value:
        """Any part of a value."""
        return begin

    def carried(self, value: Value, is_kept: bool, begin: Value) -> Value:
        """What any of several runs in turn is given, where the first is given a value; `is_kept` if they hand it on."""
        return value if is_kept else begin

    def control(self, node: ir.Node, given: Sequence[Value], begin: Value) -> tuple[Sequence[Value], Total]:
        """The same of a step that holds plans. By default of each plan any one run is walked."""
        return (), self.together([self.enter(h, self.any_run(h, given, begin), begin)[1] for h in node.held], begin)

    def any_run(self, held: ir.Held, given: Sequence[Value], begin: Value) -> list[Value]:
        """What any run of a plan is given, by the step that holds it."""
        values = [given[k] for k in held.inputs]
        for i in held.parts:
            values[i] = self.part(values[i], begin)
        for i, is_kept in held.carried.items():
            values[i] = self.carried(values[i], is_kept, begin)
        return values

    def enter(self, held: ir.Held, given: Sequence[Value], begin: Value) -> tuple[list[Value], Total]:
        """One run of a plan that a step holds."""
        late = dict(zip(held.inputs, given, strict=True))
        if held.first is not None:
            given = [*given, *self.step(held.plan, held.first, [given[v] for v in held.first.inputs], begin)[0]]
        return self.through(held.plan, given, begin, late)

    def through(
        self, plan: ir.Plan, given: Sequence[Value], begin: Value, late: Mapping[int, Value]
    ) -> tuple[list[Value], Total]:
        """One run of a plan: its outputs, and what it comes to.

        **Arguments:**

        - `plan`: the plan.
        - `given`: what it is given; what is missing is like `begin`.
        - `begin`: what stands for a value of which nothing is said; in time, when the run begins.
        - `late`: what it takes when it has begun, by the position at the step that holds it.
        """
        values: dict[int, Value] = {**dict(enumerate(given)), **self.constants(plan)}
        runs: list[Total] = []
        for node in plan.nodes:
            mine = [values.get(v, begin) for v in node.inputs]
            if isinstance(node, ir.Take):
                mine = [late[node.position]]
            outs, run = self.control(node, mine, begin) if node.holds else self.step(plan, node, mine, begin)
            values.update(zip(node.outputs, outs, strict=False))
            runs.append(run)
        return [values.get(v, begin) for v in plan.outputs], self.together(runs, begin)


class Time(Walk[Value, Value]):
    """The domains in which a value stands for when it is there, and a run for when it has ended.

    The walk goes through what steps hold as the lane engine does: what is given early is waited for alone, and what is
    taken late delays only who takes it.
    """

    @abc.abstractmethod
    def latest(self, moments: Sequence[Value]) -> Value:
        """When all of some moments have come."""

    @abc.abstractmethod
    def either(self, ends: Sequence[Value]) -> Value:
        """When one of several runs has ended, each of which begins at the same moment."""

    @abc.abstractmethod
    def called(self, node: ir.Call, start: Value) -> Value:
        """When a call has ended."""

    @abc.abstractmethod
    def in_turn(self, node: ir.Node, start: Value) -> Value:
        """When a step has ended that runs its plans again and again."""

    def together(self, runs: Sequence[Value], begin: Value) -> Value:
        return self.latest([begin, *runs])

    def step(self, plan: ir.Plan, node: ir.Node, given: Sequence[Value], begin: Value) -> tuple[Sequence[Value], Value]:
        start = self.latest([begin, *given])
        end = self.called(node, start) if isinstance(node, ir.Call) else start
        return [end] * len(node.outputs), end

    def control(self, node: ir.Node, given: Sequence[Value], begin: Value) -> tuple[Sequence[Value], Value]:
        start = self.latest([begin, *(moment for k, moment in enumerate(given) if k not in node.late)])
        if node.runs == "in turn":
            end = self.in_turn(node, start)
            return [end] * len(node.outputs), end
        ends, early = [start], {}
        late = dict(enumerate(given))
        for held in node.held:
            if held.times[1]:
                outs, end = self.through(held.plan, (), start, late)
                ends.append(end)
                early.update((k, outs[k]) for k in held.plan.gives)
        end = self.either(ends[1:]) if node.runs == "one" else self.latest(ends)
        return [early.get(k, end) for k in range(len(node.outputs))], end

    def carry(self, held: ir.Held, outs: Sequence[Value], end: Value) -> Value:
        """When a run in turn lets the next one begin: it may give what it carries before it has ended."""
        given = [outs[k] for k in held.plan.gives]
        return self.latest(given) if given else end
