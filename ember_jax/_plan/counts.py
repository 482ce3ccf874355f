"""How many calls a plan makes. No value matters to that, so it is summed up over what steps hold, without a walk."""

import dataclasses
import math
from collections.abc import Callable

from . import ir


@dataclasses.dataclass(frozen=True)
class Count:
    """How many calls, from `least` to `most`; `most` is infinite where a loop decides."""

    least: int = 0
    most: float = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(self.least + other.least, self.most + other.most)

    def times(self, least: int, most: float | None = None) -> "Count":
        """As many for each of so many, or of a number between two."""
        most = least if most is None else most
        return Count(self.least * least, self.most * most if self.most and most else 0)

    def __str__(self) -> str:
        if not self.most:
            return "no call"
        least = f"{self.least:,} call{'s' * (self.least != 1)}"
        if self.least == self.most:
            return least
        if math.isinf(self.most):
            return f"{least} or more"
        return f"{self.least:,} to {int(self.most):,} calls"


def made(node: ir.Call) -> int:
    """How many calls a step is, of models and of Python functions, equal ones counted once."""
    return math.prod(node.batch)


def asked(node: ir.Call) -> int:
    """How many calls of models a step is, as a session's report counts them: with all that it stands for."""
    return math.prod(node.batch) * node.asked * node.lanes if node.function.asks_model else 0


def count(plan: ir.Plan, each: Callable[[ir.Call], int] = made) -> Count:
    """How many calls one run of a plan makes, with so many for each step that is one."""
    return sum((count_of(node, each) for node in plan.nodes), Count())


def count_of(node: ir.Node, each: Callable[[ir.Call], int] = made) -> Count:
    """How many calls one run of a step makes."""
    if isinstance(node, ir.Call):
        calls = each(node)
        return Count(calls, calls)
    counts = [count(held.plan, each).times(*held.times) for held in node.held]
    return either(counts) if node.runs == "one" else sum(counts, Count())


def either(counts: list[Count]) -> Count:
    """How many calls one of several makes."""
    return Count(min(c.least for c in counts), max(c.most for c in counts))
