"""What a plan's sweeps share: the executables of its segments, and what is known of its steps beforehand."""

import functools
from collections.abc import Sequence

from .._plan import ir
from .._plan.counts import asked, count
from .._plan.paths import paths
from .._plan.walk import Walk
from .._runtime.scheduler import Path
from .segments import SegmentRunner, given_once, runner_for


class Runners(dict[ir.Segment, SegmentRunner]):
    """The executables of a plan's segments, made on first use.

    **Attributes:**

    - `sharing`: for each segment, which inputs are given once for all lanes.
    - `more`: how many calls more than the least there are by a decision: for a branch by which one is taken, for a
        loop by each further turn.
    - `x64`: whether 64-bit types were enabled where the program was traced; the loop's thread knows nothing of it.
    """

    def __init__(self, plan: ir.Plan, x64: bool):
        super().__init__()
        self._plan = plan
        self.x64 = x64
        shared = _Sharing()
        shared.through(plan, [True] * plan.inputs, False, {})
        self.sharing = {segment: given_once(segment, inputs) for segment, inputs in shared.found.items()}
        self.more = _More()

    @functools.cached_property
    def paths(self) -> dict[ir.Call, Path]:
        """Where the plan's calls stand in it, for sessions with a scheduler."""
        return paths(self._plan)

    def __missing__(self, segment: ir.Segment) -> SegmentRunner:
        runner = self[segment] = runner_for(segment, self.sharing[segment], self.x64)
        return runner


class _More(dict[ir.Node, tuple[int, ...]]):
    """How many calls more than the least a decision makes."""

    def __missing__(self, node: ir.Node) -> tuple[int, ...]:
        least = [count(held.plan, asked).least for held in node.held]
        more = tuple(n - min(least) for n in least) if node.runs == "one" else (sum(least),)
        self[node] = more
        return more


class _Sharing(Walk[bool, None]):
    """Which values are given once for all lanes, and what segments are given in these terms."""

    def __init__(self) -> None:
        self.found: dict[ir.Segment, tuple[bool, ...]] = {}

    def carried(self, value: bool, is_kept: bool, begin: bool) -> bool:
        return False

    def together(self, runs: Sequence[None], begin: bool) -> None:
        return None

    def step(self, plan: ir.Plan, node: ir.Node, given: Sequence[bool], begin: bool) -> tuple[Sequence[bool], None]:
        if isinstance(node, ir.Segment):
            # A plan that stands in two places is given two different "shared" inputs.
            self.found[node] = (False,) * len(given) if node in self.found else tuple(given)
        return (False,) * len(node.outputs), None
