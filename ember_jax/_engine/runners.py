"""What a plan's sweeps share: the executables of its segments, and what is known of its steps beforehand."""

import functools
from collections.abc import Sequence

from .._plan import ir
from .._plan.counts import count
from .._plan.paths import paths
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
        shared: dict[ir.Segment, tuple[bool, ...]] = {}
        _find_sharing(plan, [True] * plan.inputs, shared)
        self.sharing = {segment: given_once(segment, inputs) for segment, inputs in shared.items()}
        self.more = _More()

    @functools.cached_property
    def paths(self) -> dict[ir.Call, Path]:
        """Where the plan's calls stand in it, for sessions with a scheduler."""
        return paths(self._plan)

    def __missing__(self, segment: ir.Segment) -> SegmentRunner:
        runner = self[segment] = runner_for(segment, self.sharing[segment], self.x64)
        return runner


class _More(dict[ir.Branch | ir.Loop, tuple[int, ...]]):
    """How many calls more than the least a decision makes."""

    def __missing__(self, node: ir.Branch | ir.Loop) -> tuple[int, ...]:
        if isinstance(node, ir.Branch):
            least = [count(branch).least for branch in node.branches]
            more = tuple(n - min(least) for n in least)
        else:
            more = (count(node.condition).least + count(node.body).least,)
        self[node] = more
        return more


def _find_sharing(plan: ir.Plan, shared: Sequence[bool], found: dict[ir.Segment, tuple[bool, ...]]) -> None:
    is_shared = dict(enumerate(shared))
    for node in plan.nodes:
        mine = [is_shared.get(v, False) for v in node.inputs]
        match node:
            case ir.Segment():
                # A plan that stands in two places is given two different "shared" inputs.
                found[node] = (False,) * len(mine) if node in found else tuple(mine)
            case ir.Branch():
                for branch in node.branches:
                    _find_sharing(branch, mine[1:], found)
            case ir.Loop():
                first = node.condition_constants + node.body_constants
                varying = [False] * (len(mine) - first)
                _find_sharing(node.condition, mine[: node.condition_constants] + varying, found)
                _find_sharing(node.body, mine[node.condition_constants : first] + varying, found)
            case ir.Scan():
                varying = [False] * (len(mine) - node.constants)
                _find_sharing(node.body, mine[: node.constants] + varying, found)
            case ir.Enclosed():
                _find_sharing(node.body, mine, found)
            case ir.Lanes():
                inner = [s and not any(m) for s, m in zip(mine, node.mapped, strict=True)]
                if node.first is not None:
                    found[node.first] = tuple(inner[v] for v in node.first.inputs)
                    inner += [False] * len(node.first.outputs)
                _find_sharing(node.body, inner, found)
