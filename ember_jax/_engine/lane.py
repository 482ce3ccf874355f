"""What a lane is while it runs: its own failures, the plan it is in, the step that it is one of many of."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .._host import Used
from .._plan import ir


class Lane:
    """One lane: its index (outermost `vmap` first), what it is one of, whether it failed or is in flight.

    `used` are the counts of plans around it; `attempt` is the innermost part around it that may fail alone.
    """

    __slots__ = ("attempt", "failed", "flying", "index", "parent", "spread", "used")

    def __init__(self, index: tuple[int, ...], spread: "Spread | None" = None):
        self.index = index
        self.spread = spread
        self.parent = spread.inside[0].lane if spread else None
        self.used: tuple[Used, ...] = self.parent.used if self.parent else ()
        self.attempt: Part | None = self.parent.attempt if self.parent else None
        self.failed = False
        self.flying = spread is not None
        for part in self.attempts():
            part.lanes.add(self)

    def attempts(self) -> "Iterator[Part]":
        """The parts around it that may fail alone, innermost first."""
        part = self.attempt
        while part is not None:
            yield part
            part = part.outer

    def is_in(self, part: "Part") -> bool:
        """Whether this is something that a part of a lane does."""
        lane: Lane | None = self
        while lane is not None and lane is not part:
            lane = lane.parent
        return lane is part

    @property
    def whole(self) -> "Lane":
        """The lane that this is, or is a part of."""
        return self

    @property
    def seen(self) -> "Lane":
        """The lane that the user sees: this one, or the one that it is inside of, see `is_seen`."""
        lane = self.whole
        while lane.parent is not None and not (lane.spread and lane.spread.is_seen):
            lane = lane.parent.whole
        return lane


class Part(Lane):
    """What a lane does in an enclosed plan: it may fail without the lane, and what it uses is counted.

    `caught` is told why it failed, or is `None` where that is the lane's failure; `used` counts, or is `None`. `lanes`
    are those in it that have not ended, if it may fail alone, and `outer` is the next part around it that may.
    """

    __slots__ = ("_failed", "caught", "lanes", "outer")

    def __init__(self, lane: Lane, caught: Callable[[BaseException], object] | None, used: Used | None):
        self._failed = False
        super().__init__(lane.index)
        self.parent = lane
        self.caught = caught
        self.lanes: set[Lane] = set()
        self.outer = lane.attempt
        self.attempt = lane.attempt if caught is None else self
        self.used = lane.used if used is None else (*lane.used, used)

    @property
    def failed(self) -> bool:  # type: ignore[override]
        """Whether it is to stop: it has failed, or what it is part of."""
        return self._failed or (self.parent is not None and self.parent.failed)

    @failed.setter
    def failed(self, value: bool) -> None:
        self._failed = value

    @property
    def whole(self) -> Lane:
        assert self.parent is not None
        return self.parent.whole


class Frame:
    """One run of a plan by a lane.

    `inside` is the frame and step that hold it; `done` is told its outputs, and is `None` for that of a whole lane;
    `carried` is told what a step of a `scan` carries on; `scope` is the operators that it stands in.
    """

    __slots__ = ("carried", "done", "inside", "lane", "left", "plan", "scope", "values", "waits")

    def __init__(
        self,
        plan: ir.Plan,
        args: Sequence[Any],
        lane: Lane,
        done: Callable[[list[Any]], None] | None,
        inside: "tuple[Frame, int] | None",
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


class Spread:
    """A step that spreads into lanes: which of them have started, and what they gave.

    `early` counts, for outputs that are given before lanes end, the lanes that are yet to give; `awaited`, for steps
    that wait for such outputs only, how many. `is_seen` says whether the user sees its lanes as such.
    """

    __slots__ = ("awaited", "early", "inputs", "inside", "is_seen", "left", "node", "outputs", "started")

    def __init__(self, node: ir.Lanes, inside: tuple[Frame, int]):
        self.node = node
        self.inputs = inputs_of(inside[0], node)
        self.inside = inside
        self.is_seen = is_seen(*inside)
        self.left = math.prod(node.sizes)
        self.started = 0
        self.outputs = [np.zeros((*node.sizes, *a.shape), a.dtype) for a in node.body.avals]
        self.early = {n.position: self.left for n in node.body.nodes if isinstance(n, ir.Give)}
        frame, index = inside
        given = {node.outputs[k] for k in self.early}
        self.awaited: dict[int, int] = {}
        if given:
            for follower in frame.plan.followers[index]:
                needed = set(frame.plan.nodes[follower].inputs).intersection(node.outputs)
                if needed <= given:
                    self.awaited[follower] = len(needed)

    def place(self, lane: Lane) -> tuple[int, ...]:
        """Where a lane's outputs stand."""
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
