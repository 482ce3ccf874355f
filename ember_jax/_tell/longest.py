"""The longest chain of calls in a plan that wait for one another, and which they are."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from .._plan import ir
from .._plan.counts import Count


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
    return _latest(_ends(plan, End(), {}))


def _ends(plan: ir.Plan, begin: End, late: Mapping[int, End]) -> list[End]:
    """When each node of a plan ends that begins at some time; `late` is when inputs of the step around it are there."""
    ends: list[End] = []
    values: dict[int, End] = {}
    for node in plan.nodes:
        missing = node.late if isinstance(node, ir.Branch | ir.Lanes) else ()
        given = [values.get(v, begin) for v in node.inputs]
        start = _latest([begin, *(end for k, end in enumerate(given) if k not in missing)])
        if isinstance(node, ir.Take):
            end, early = _latest([begin, late[node.position]]), {}
        else:
            end, early = _end(node, start, given)
        ends.append(end)
        values.update({v: early.get(k, end) for k, v in enumerate(node.outputs)})
    return ends


def _end(node: ir.Node, start: End, given: Sequence[End]) -> tuple[End, dict[int, End]]:
    """When a node ends, and when those of its outputs are there that it gives earlier."""
    late = dict(enumerate(given))
    match node:
        case ir.Call():
            n = int(0 not in node.batch)
            return start.then(node, Count(n, n)), {}
        case ir.Branch():
            ends = [_latest([start, *_ends(b, start, late)]) for b in node.branches]
            least = min(end.calls.least for end in ends)
            end = _latest(ends)
            return End(Count(least, end.calls.most), end.path), {}
        case ir.Loop():
            test, body = chain(node.condition), chain(node.body)
            inside = _joined(test.path, body.path)
            most = math.inf if inside else 0
            return start.then(node, Count(test.calls.least, most), inside), {}
        case ir.Scan():
            return _scanned(node, start), {}
        case ir.Enclosed():
            return _latest([start, *_ends(node.body, start, {})]), {}
        case ir.Lanes() if 0 not in node.sizes:
            ends = _ends(node.body, start, late)
            given_early = {n.position: e for n, e in zip(node.body.nodes, ends, strict=True) if isinstance(n, ir.Give)}
            return _latest([start, *ends]), given_early
        case _:
            return start, {}


def _scanned(node: ir.Scan, start: End) -> End:
    ends = _ends(node.body, End(), {})
    step = _latest(ends)
    gives = [e for n, e in zip(node.body.nodes, ends, strict=True) if isinstance(n, ir.Give)]
    if not node.length:
        return start
    # the next step waits for the carry; where it is given early, not for all of the step
    carried = _latest(gives).calls if gives else step.calls
    return start.then(node, carried.times(node.length - 1) + step.calls, step.path)


def _latest(ends: Sequence[End]) -> End:
    if not ends:
        return End()
    last = max(ends, key=lambda end: end.calls.most)  # the first of equals
    return End(Count(max(end.calls.least for end in ends), last.calls.most), last.path)


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
