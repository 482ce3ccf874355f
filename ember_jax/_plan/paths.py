"""Where each call of a plan stands on its longest chain of calls: how many come before it, and how many after.

Design note. The critical path method, on a graph of moments that one walk makes of a plan: forward for the calls before
a moment, backward for those after. Both are of the plan and not of a run, so they are made once for all lanes: of a
branch that is yet to be chosen the longer one counts, a `while_loop` makes one turn, and a call in a `scan` stands
where it does in the first step, with all further steps after it. So what is ahead of a lane never grows as it goes on.
"""

from collections.abc import Sequence

from .._runtime.scheduler import Path
from . import ir
from .walk import Time


def paths(plan: ir.Plan) -> dict[ir.Call, Path]:
    """How many calls come before and after each call of a plan, one after another; a batch counts as one."""
    moments = _Moments()
    moments.through(plan, (), 0, {})
    after = moments.after()
    found: dict[ir.Call, Path] = {}
    for call, start, end in moments.calls:
        path = found.get(call, Path(moments.before[start], 0))
        found[call] = Path(min(path.depth, moments.before[start]), max(path.ahead, after[end]))
    return found


class _Moments(Time[int]):
    """The moments of a plan as numbers, in an order in which they come; 0 is the beginning.

    **Attributes:**

    - `before`: for each, how many calls come before it, one after another.
    - `calls`: each call with the moments between which it is made.
    """

    def __init__(self) -> None:
        self.before = [0]
        self.calls: list[tuple[ir.Call, int, int]] = []
        self._waits: list[tuple[Sequence[int], int]] = [((), 0)]  # for which moments each waits, and for calls after

    def after(self) -> list[int]:
        """For each moment, how many calls come after it."""
        found = [0] * len(self._waits)
        for moment in reversed(range(len(found))):
            sources, calls = self._waits[moment]
            for source in sources:
                found[source] = max(found[source], found[moment] + calls)
        return found

    def latest(self, moments: Sequence[int]) -> int:
        first, *others = dict.fromkeys(moments)
        return self._moment([first, *others], 0) if others else first

    def either(self, ends: Sequence[int]) -> int:
        return self.latest(ends)

    def called(self, node: ir.Call, start: int) -> int:
        end = self._moment([start], int(0 not in node.batch))  # a batch of no calls makes none
        self.calls.append((node, start, end))
        return end

    def in_turn(self, node: ir.Node, start: int) -> int:
        """After one turn in full: of all further ones it counts how long they are."""
        turn: list[tuple[int, int, int]] = []  # how many more runs of each plan, and how long to the next, to the end
        end = carried = start
        for held in node.held:
            least, most = held.times
            if most:
                begin = end
                outs, end = self.through(held.plan, (), begin, {})
                carried = self.carry(held, outs, end)
                more = least if held.least is not None else least - 1  # what is tested is so once more than done
                turn.append((more, self.before[carried] - self.before[begin], self.before[end] - self.before[begin]))
        for more, to_next, to_end in turn:
            if more:
                carried = self._moment([carried], (more - 1) * to_next + to_end)
        return self.latest([end, carried])

    def _moment(self, sources: Sequence[int], calls: int) -> int:
        self.before.append(max(self.before[source] for source in sources) + calls)
        self._waits.append((sources, calls))
        return len(self._waits) - 1
