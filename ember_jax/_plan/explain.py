"""A plan in words: how many calls, what runs at once, what waits for what, where lanes meet."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

from . import ir
from .rewrite import plans_of
from .show import order, what


@dataclasses.dataclass(frozen=True)
class Count:
    """How many calls, from `least` to `most`; `most` is infinite where a loop decides."""

    least: int = 0
    most: float = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(self.least + other.least, self.most + other.most)

    def times(self, n: int) -> "Count":
        """As many for each of n."""
        return Count(self.least * n, self.most * n if n else 0)

    def __str__(self) -> str:
        if self.least == self.most:
            return f"{self.least:,} call{'s' * (self.least != 1)}"
        if math.isinf(self.most):
            return f"at least {self.least:,} calls, and as many more as its loops take"
        return f"{self.least:,} to {int(self.most):,} calls"


def count(plan: ir.Plan) -> Count:
    """How many calls one run of a plan makes."""
    return sum((_count(node) for node in plan.nodes), Count())


def _count(node: ir.Node) -> Count:
    match node:
        case ir.Call():
            n = math.prod(node.batch)
            return Count(n, n)
        case ir.Branch():
            counts = [count(b) for b in node.branches]
            return Count(min(c.least for c in counts), max(c.most for c in counts))
        case ir.Loop():
            test, body = count(node.condition), count(node.body)
            return Count(test.least, math.inf if test.most or body.most else 0)
        case ir.Scan():
            return count(node.body).times(node.length)
        case ir.Lanes():
            return count(node.body).times(math.prod(node.sizes))
        case _:
            return Count()


def depth(plan: ir.Plan) -> tuple[float, list[int]]:
    """The longest chain of calls that wait for each other: its length, and the steps it goes through."""
    longest = [0.0] * len(plan.nodes)
    before: list[int | None] = [None] * len(plan.nodes)
    sources = _sources(plan)
    for index in order(plan):
        start, before[index] = max(((longest[s], s) for s in sources[index]), default=(0.0, None))
        longest[index] = start + _depth(plan.nodes[index])
    if not longest or not max(longest):
        return 0.0, []
    last: int | None = max(range(len(longest)), key=longest.__getitem__)
    path: list[int] = []
    while last is not None:
        if _depth(plan.nodes[last]):
            path.append(last)
        last = before[last]
    return max(longest), path[::-1]


def _depth(node: ir.Node) -> float:
    match node:
        case ir.Call():
            return 1.0
        case ir.Branch():
            return max(depth(b)[0] for b in node.branches)
        case ir.Loop():
            return math.inf if depth(node.condition)[0] or depth(node.body)[0] else 0.0
        case ir.Scan():
            return depth(node.body)[0] * (node.length if node.carry else min(node.length, 1))
        case ir.Lanes():
            return depth(node.body)[0] if math.prod(node.sizes) else 0.0
        case _:
            return 0.0


def explain(plan: ir.Plan, name: str) -> str:
    """The plan in words."""
    return "\n".join([f"{name} makes {count(plan)}.", *_story(plan, "")])


def _story(plan: ir.Plan, margin: str) -> Iterator[str]:
    numbers = {index: place + 1 for place, index in enumerate(order(plan))}
    busy = [i for i in numbers if _depth(plan.nodes[i])]
    if not busy:
        return
    reach = _reach(plan)
    stage: dict[int, int] = {}
    for index in busy:
        stage[index] = 1 + max((stage[j] for j in reach[index] if j in stage), default=0)
    for turn in range(1, max(stage.values()) + 1):
        now = [i for i in busy if stage[i] == turn]
        at_once = " at once:" if len(now) > 1 else ":"
        yield f"{margin}{'First' if turn == 1 else 'Then'}{at_once}"
        for index in now:
            yield from _step(plan, index, numbers, reach, stage, margin + "  ")
    length, path = depth(plan)
    chain = " → ".join(str(numbers[i]) for i in path)
    if len(path) > 1:
        deep = "as deep as its loops go" if math.isinf(length) else f"{length:,.0f} calls deep"
        yield f"{margin}The longest chain is {deep}: steps {chain}. Nothing here can be faster than that."


def _step(
    plan: ir.Plan,
    index: int,
    numbers: dict[int, int],
    reach: Sequence[set[int]],
    stage: dict[int, int],
    margin: str,
) -> Iterator[str]:
    node = plan.nodes[index]
    waited = sorted(numbers[j] for j in _nearest(index, reach, stage))
    scope = f" of {node.scope}" if node.scope else ""
    yield f"{margin}step {numbers[index]}{scope}: {_described(node)}{_waiting(plan, index, waited, reach)}"
    if isinstance(node, ir.Call) and node.lanes > 1:
        yield f"{margin}  The same in all {node.lanes:,} lanes, so it is made once, before they start."
    if isinstance(node, ir.Call) and node.asked > 1:
        yield f"{margin}  It stands {node.asked} times in the program with the same arguments, and is made once."
    if isinstance(node, ir.Lanes):
        meets = [numbers[j] for j in numbers if index in reach[j]]
        yield f"{margin}  Each lane goes at its own pace, takes its own branches and leaves its own loops."
        if meets:
            yield (
                f"{margin}  Barrier: step{'s' * (len(meets) > 1)} {_list(meets)} use{'s' * (len(meets) == 1)} all "
                "lanes together, and so wait for the slowest."
            )
    for label, inner in _inner(node):
        made = count(inner)
        yield f"{margin}  {label}: {made if made.most else 'no call'}."
        yield from _story(inner, margin + "    ")


def _described(node: ir.Node) -> str:
    return what(node) if isinstance(node, ir.Call | ir.Foreign) else f"{what(node)}, {_count(node)}"


def _waiting(plan: ir.Plan, index: int, waited: Sequence[int], reach: Sequence[set[int]]) -> str:
    if not waited:
        return ""
    between = [plan.nodes[j] for j in reach[index]]
    through = [
        word
        for word, kind in (("its text", ir.Words), ("numbers", ir.Segment))
        if any(isinstance(n, kind) for n in between)
    ]
    why = f", through {' and '.join(through)}" if through else ""
    return f"; waits for step{'s' * (len(waited) > 1)} {_list(waited)}{why}"


def _nearest(index: int, reach: Sequence[set[int]], stage: dict[int, int]) -> set[int]:
    """The steps with calls that a step waits for, without those that these wait for themselves."""
    direct = {j for j in reach[index] if j in stage}
    return {j for j in direct if not any(j in reach[k] for k in direct)}


def _inner(node: ir.Node) -> list[tuple[str, ir.Plan]]:
    match node:
        case ir.Branch():
            return [(f"branch {i}", b) for i, b in enumerate(node.branches)]
        case ir.Loop():
            return [("to decide whether to go on", node.condition), ("each turn", node.body)]
        case ir.Scan():
            return [("each step", node.body)]
        case ir.Lanes():
            return [("each lane", node.body)]
        case _:
            return [("inside", p) for p in plans_of(node)]


def _sources(plan: ir.Plan) -> list[list[int]]:
    sources: list[list[int]] = [[] for _ in plan.nodes]
    for index, followers in enumerate(plan.followers):
        for follower in followers:
            sources[follower].append(index)
    return sources


def _reach(plan: ir.Plan) -> list[set[int]]:
    """For each step, all steps that it waits for, near and far."""
    reach: list[set[int]] = [set() for _ in plan.nodes]
    sources = _sources(plan)
    for index in order(plan):
        for source in sources[index]:
            reach[index] |= reach[source] | {source}
    return reach


def _list(numbers: Sequence[int]) -> str:
    words = list(map(str, numbers))
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
