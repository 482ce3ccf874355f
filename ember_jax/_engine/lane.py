"""What runs plans: lanes, and the parts of lanes that may fail alone or are metered; and what they run: frames.

Design note. A `Frame` is one run of one plan. A lane starts with a frame of the plan that its spread holds; each
control node pushes a frame of its own plan, inside the step that it is. Who runs a frame is a `Lane`, or an
`Enclosure` of one: the engine asks either whether it has failed, where it stands, and what counts its calls. An
`Enclosure` wraps the lane or part that it belongs to and is no `Lane` itself: it starts and ends with its step, is
never counted as in flight, and fails with what it wraps.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from .._host import Used
from .._plan import ir


class Lane:
    """One element of a `vmap`, or the whole program outside any.

    **Attributes:**

    - `index`: its place along the axes of lanes, the outermost `vmap` first.
    - `spread`: the lanes it is one of; `None` for the whole program.
    - `parent`: the lane or part that its spread is a step of.
    - `used`: the counts of the metered parts around it.
    - `attempt`: the innermost part around it that may fail alone.
    - `failed`: whether it is to stop.
    - `flying`: whether the window counts it as in flight.
    """

    __slots__ = ("attempt", "failed", "flying", "index", "parent", "spread", "used")

    def __init__(self, index: tuple[int, ...], spread: "Spread | None" = None):
        self.index = index
        self.spread = spread
        self.parent = spread.inside[0].lane if spread else None
        self.used: tuple[Used, ...] = self.parent.used if self.parent else ()
        self.attempt: Enclosure | None = self.parent.attempt if self.parent else None
        self.failed = False
        self.flying = spread is not None
        for part in self.attempts():
            part.lanes.add(self)

    def attempts(self) -> "Iterator[Enclosure]":
        """The parts around it that may fail alone, innermost first."""
        part = self.attempt
        while part is not None:
            yield part
            part = part.outer

    @property
    def whole(self) -> "Lane":
        """The lane that this is."""
        return self

    @property
    def seen(self) -> "Lane":
        """The lane that the user sees: this one, or the one that it is inside of, see `is_seen`."""
        lane = self
        while lane.parent is not None and not (lane.spread and lane.spread.is_seen):
            lane = lane.parent.whole
        return lane


class Enclosure:
    """What a lane does in an enclosed plan, which may fail without the lane, or whose calls are counted.

    **Arguments:**

    - `parent`: the lane, or the part of one, that the enclosed plan is a step of.
    - `caught`: told why this failed; `None` where its failure is its parent's.
    - `used`: counts its calls; `None` where nothing does.

    **Attributes:**

    - `index`, `used`, `attempt`: as a lane's.
    - `lanes`: if it may fail alone, the lanes inside it that have not ended.
    - `outer`: the next part around it that may fail alone.
    - `whole`: the lane that it is a part of.
    """

    __slots__ = ("_failed", "attempt", "caught", "index", "lanes", "outer", "parent", "used", "whole")

    def __init__(self, parent: "Lane | Enclosure", caught: Callable[[BaseException], object] | None, used: Used | None):
        self._failed = False
        self.parent = parent
        self.caught = caught
        self.index = parent.index
        self.whole: Lane = parent.whole
        self.lanes: set[Lane] = set()
        self.outer = parent.attempt
        self.attempt = parent.attempt if caught is None else self
        self.used = parent.used if used is None else (*parent.used, used)

    @property
    def failed(self) -> bool:
        """Whether it is to stop: it has failed, or what it is part of."""
        return self._failed or self.parent.failed

    @failed.setter
    def failed(self, value: bool) -> None:
        self._failed = value


# Who runs a frame.
Runs: TypeAlias = Lane | Enclosure


def is_within(runs: Runs, part: Enclosure) -> bool:
    """Whether a lane or a part is a given part, or is something that happens in it."""
    around: Runs | None = runs
    while around is not None and around is not part:
        around = around.parent
    return around is part


class Frame:
    """One run of a plan.

    **Arguments:**

    - `plan`: what is run.
    - `args`: the plan's inputs.
    - `lane`: the lane, or the part of one, that runs it.
    - `done`: told its outputs; `None` for the body of a whole lane, whose spread is told.
    - `inside`: the step that holds the plan; `None` for the plan of the whole program.

    **Attributes:**

    - `values`: the plan's values; `None` for what is not known yet.
    - `waits`: for each node how many others it still waits for.
    - `left`: how many nodes have not ended.
    - `scope`: the operators that it stands in, outermost first.
    - `carried`: of a step of a `scan`, told each carry that is given before the step has ended.
    """

    __slots__ = ("carried", "done", "inside", "lane", "left", "plan", "scope", "values", "waits")

    def __init__(
        self,
        plan: ir.Plan,
        args: Sequence[Any],
        lane: Runs,
        done: Callable[[list[Any]], None] | None,
        inside: "FrameStep | None",
    ):
        self.plan = plan
        self.lane = lane
        self.inside = inside
        self.carried: Callable[[int, Any], None] | None = None
        self.scope = ""
        self.done = done
        self.values: list[Any] = [*args, *itertools.repeat(None, plan.size - plan.inputs)]
        for value, constant in plan.constants.items():
            self.values[value] = constant
        self.waits = list(plan.waits)
        self.left = len(plan.nodes)


# A step: a frame, and the index of a node in its plan. It is a pair and no class, as one is made for every step of
# every lane.
FrameStep: TypeAlias = tuple[Frame, int]


class Spread:
    """A step that spreads into lanes: which of them have started, and what they gave.

    **Arguments:**

    - `node`: what says how many lanes there are, and what they run.
    - `inside`: the step that this is.
    - `ended`: told each lane that has ended, and its outputs.

    **Attributes:**

    - `count`: how many lanes there are.
    - `started`: how many of them have started.
    - `left`: how many of them have not ended.
    - `is_seen`: whether the user sees them as lanes of the program.
    - `inputs`: the step's inputs, with the axes of lanes in front.
    - `outputs`: the step's outputs, filled as lanes end.
    - `early`: by the position of an output that lanes give before they end, how many lanes are yet to give it.
    - `awaited`: by a step that needs early outputs of this one alone, how many of them are not complete.
    """

    __slots__ = (
        "awaited",
        "count",
        "early",
        "ended",
        "inputs",
        "inside",
        "is_seen",
        "left",
        "node",
        "outputs",
        "started",
    )

    def __init__(self, node: ir.Lanes, inside: FrameStep, ended: Callable[[Lane, list[Any]], None]):
        self.node = node
        self.inputs = inputs_of(inside[0], node)
        self.inside = inside
        self.is_seen = is_seen(*inside)
        self.ended = ended
        self.count = self.left = math.prod(node.sizes)
        self.started = 0
        self.outputs = [np.zeros((*node.sizes, *a.shape), a.dtype) for a in node.body.avals]
        self.early = dict.fromkeys(node.body.gives, self.left)
        self.awaited = self._awaited()

    def _awaited(self) -> dict[int, int]:
        if not self.early:
            return {}
        frame, index = self.inside
        outputs = self.node.outputs
        early = {outputs[position] for position in self.early}
        needed = {f: set(frame.plan.nodes[f].inputs).intersection(outputs) for f in frame.plan.followers[index]}
        return {follower: len(values) for follower, values in needed.items() if values <= early}

    def place(self, lane: Lane) -> tuple[int, ...]:
        """Where along the spread's own axes a lane stands."""
        return lane.index[len(lane.index) - len(self.node.sizes) :]


def is_seen(frame: Frame, index: int) -> bool:
    """Whether the user sees the lanes, or the batch, that a step spreads into as lanes of the program.

    They are those of the program itself, such as a sweep over questions. Those inside a lane, such as several samples
    of a question, are so where the lane does nothing else: its results are theirs, as in a `vmap` of a `vmap`.
    """
    lane = frame.lane.whole
    if lane.parent is None:
        return True
    results = frame.plan.nodes[index].outputs
    return frame.done is None and lane.seen is lane and set(frame.plan.outputs) <= set(results)


def inputs_of(frame: Frame, node: ir.Node) -> list[Any]:
    """The values that a step of a frame is given."""
    values = frame.values
    return [values[v] for v in node.inputs]
