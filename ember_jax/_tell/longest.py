"""The longest chain of calls in a plan that wait for one another, and which they are."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .._plan import ir
from .._plan.counts import Count, either
from .._plan.walk import Time


class Link(NamedTuple):
    """A step on a chain of calls; `inside` is the chain in a loop or scan, `before` the link that it waits for."""

    step: ir.Node
    inside: "Link | None"
    before: "Link | None"


class End(NamedTuple):
    """When something is there: after how many calls one after another, and which they are if they are the most."""

    calls: Count = Count()
    path: Link | None = None

    def then(self, step: ir.Node, calls: Count, inside: Link | None = None) -> "End":
        """After a step that makes so many calls one after another."""
        return End(self.calls + calls, Link(step, inside, self.path)) if calls.most else self


def chain(plan: ir.Plan) -> End:
    """The longest chain of calls that wait for one another."""
    return _Chains().through(plan, (), End(), {})[1]


class _Chains(Time[End]):
    """The longest chains of a plan."""

    def latest(self, moments: Sequence[End]) -> End:
        last = max(moments, key=lambda end: end.calls.most)  # the first of equals
        return End(Count(max(end.calls.least for end in moments), last.calls.most), last.path)

    def either(self, ends: Sequence[End]) -> End:
        return End(either([end.calls for end in ends]), self.latest(ends).path)

    def called(self, node: ir.Call, start: End) -> End:
        n = int(0 not in node.batch)
        return start.then(node, Count(n, n))

    def in_turn(self, node: ir.Node, start: End) -> End:
        calls, inside = Count(), None
        for held in node.held:
            outs, end = self.through(held.plan, (), End(), {})
            carried = self.carry(held, outs, end).calls
            least, most = held.times
            calls += carried.times(max(least - 1, 0), max(most - 1, 0)) + end.calls.times(min(least, 1), min(most, 1))
            inside = _joined(inside, end.path)
        return start.then(node, calls, inside)


def _joined(first: Link | None, then: Link | None) -> Link | None:
    """One chain after another."""
    for link in [*links(then)][::-1]:
        first = Link(link.step, link.inside, first)
    return first


def links(path: Link | None) -> Iterator[Link]:
    """A chain's links, the last one first."""
    while path is not None:
        yield path
        path = path.before
