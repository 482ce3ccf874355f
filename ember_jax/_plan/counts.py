"""How many calls a plan makes."""

import dataclasses
import math

from . import ir


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
        if not self.most:
            return "no call"
        least = f"{self.least:,} call{'s' * (self.least != 1)}"
        if self.least == self.most:
            return least
        if math.isinf(self.most):
            return f"{least} or more"
        return f"{self.least:,} to {int(self.most):,} calls"


def count(plan: ir.Plan) -> Count:
    """How many calls one run of a plan makes."""
    return sum(map(count_of, plan.nodes), Count())


def count_of(node: ir.Node) -> Count:
    """How many calls one run of a step makes."""
    match node:
        case ir.Call():
            n = math.prod(node.batch)
            return Count(n, n)
        case ir.Branch():
            return _either([count(b) for b in node.branches])
        case ir.Loop():
            test, body = count(node.condition), count(node.body)
            return Count(test.least, math.inf if test.most or body.most else 0)
        case ir.Scan():
            return count(node.body).times(node.length)
        case ir.Lanes():
            return count(node.body).times(math.prod(node.sizes))
        case ir.Enclosed():
            return count(node.body)
        case _:
            return Count()


def _either(counts: list[Count]) -> Count:
    return Count(min(c.least for c in counts), max(c.most for c in counts))
