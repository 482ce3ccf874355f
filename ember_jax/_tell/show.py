"""A plan as a text that can be read: what is called, what waits for what."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from .._jax import equations
from .._plan import ir
from .._plan.counts import Count, count_of
from .order import order, sources, taken_later

# The models that calls ask, in words; other calls name their function.
Models = Mapping[ir.Call, str]

_INDENT = "   "
# Steps that are shown at the two ends of a plan, and of a list, that is too long.
_HEAD, _TAIL = 60, 5
_LISTED = 8


def show(plan: ir.Plan, title: str, models: Models) -> str:
    """The plan as lines, in an order in which it could run; `after` names what a step waits for."""
    return "\n".join([title, *_lines(plan, models)])


def _lines(plan: ir.Plan, models: Models) -> Iterator[str]:
    steps, makers = order(plan), sources(plan)
    number = {index: place + 1 for place, index in enumerate(steps)}
    width = len(str(len(steps)))
    taken = taken_later(plan)
    head, hidden, tail = ends(steps)
    for index in (*head, *hidden[:1], *tail):
        if index in hidden[:1]:
            yield f"{'…':>{width}}  {more(plan, hidden)}"
            continue
        waits, late = ([number[s] for s in found] for found in (makers[index], taken.get(index, ())))
        yield from _step(plan.nodes[index], number[index], waits, late, width, models)


def _step(
    node: ir.Node, number: int, waits: Sequence[int], late: Sequence[int], width: int, models: Models
) -> Iterator[str]:
    after = f"  after {ranges(waits)}" if waits else ""
    after += f"  takes {ranges(late)} later" if late else ""
    scope = f"  [{node.scope}]" if node.scope else ""
    yield f"{number:>{width}}  {what(node, models)}{after}{scope}"
    for held in node.held:
        yield f"{_INDENT}{held.role}:"
        lines = list(_lines(held.plan, models))
        yield from (f"{_INDENT}{_INDENT}{line}" for line in lines or ["nothing to do"])


def ends(steps: Sequence[int]) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """Steps as those that are shown first, those that are left out, and those that are shown last."""
    if len(steps) <= 2 * _HEAD:
        return steps, (), ()
    return steps[:_HEAD], steps[_HEAD:-_TAIL], steps[-_TAIL:]


def more(plan: ir.Plan, hidden: Sequence[int]) -> str:
    """What is left out, as a count."""
    calls = sum((count_of(plan.nodes[i]) for i in hidden), Count())
    return f"{len(hidden):,} more steps, {calls}"


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as runs: 1-5, 7."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    words = [f"{a:,}" if a == b else f"{a:,}{'-' if b > a + 1 else ', '}{b:,}" for a, b in runs]
    return ", ".join(shortened(words))


def shortened(words: Sequence[str]) -> list[str]:
    """A list with its middle left out if it is long."""
    return list(words) if len(words) <= _LISTED else [*words[: _LISTED - 2], "…", words[-1]]


def what(node: ir.Node, models: Models) -> str:
    """A node in a few words."""
    match node:
        case ir.Call():
            return asked(node, math.prod(node.batch) if node.batch else None, models)
        case ir.Foreign():
            return f"callback {equations.name(node.seen.eqn)}"
        case ir.Words():
            return f"text {node.function}"
        case ir.Segment():
            count = len(node.equations)
            return f"numbers, {count} equation{'s' * (count != 1)}"
        case ir.Branch():
            return f"one of {len(node.branches)} branches"
        case ir.While():
            return "while loop"
        case ir.Scan():
            steps = f"{node.length:,} step{'s' * (node.length != 1)}"
            return f"scan of {steps}, one after another"
        case ir.Lanes():
            return f"{' × '.join(f'{n:,}' for n in node.sizes)} lanes, each at its own pace"
        case ir.Enclosed():
            return "attempt" if node.how == "attempt" else "meter"
        case ir.Take():
            return f"wait for input {node.position}, which it started without"
        case ir.Give():
            return f"give output {node.position}, for which others wait"
        case _:
            raise TypeError(f"not a node of a plan: {node!r}")


def asked(node: ir.Call, times: int | None, models: Models) -> str:
    """A call in words, or so many of them that are made at once."""
    if times is None:
        return f"ask {models[node]}" if node in models else f"call {node.function}"
    return f"{times:,} call{'s' * (times != 1)} of {models.get(node, node.function)}, at once"
