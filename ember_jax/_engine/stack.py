"""The stack: the steps that are ready, of all lanes, and how lanes get from step to step through their plans.

Design note. A frame knows for each node of its plan how many others it still waits for. A step that waits for none lies
on one stack for all lanes, so a lane costs no task, no lock and no polling. A stack, and not a queue, makes it depth
first: a lane that can go on does so before another starts.

Some steps start without all of their inputs (`late` in `ir.Lanes` and `ir.Branch`): their lanes, or their branch, begin
with what needs none of these, and an `ir.Take` inside waits for each.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from .._plan import ir
from .lane import Frame, FrameStep, Lane, Runs


class Stack:
    """The ready steps of a sweep.

    **Arguments:**

    - `name`: the operator that is run, in which all scopes stand.

    **Attributes:**

    - `ready`: the steps that may start; the last one goes first.
    """

    def __init__(self, name: str):
        self.ready: list[FrameStep] = []
        self._name = name
        # By a step that started without an input: the steps inside it that wait for one.
        self._takers: dict[FrameStep, list[FrameStep]] = {}
        # By the scope of a frame and that of a node in its plan. Every call asks for its own.
        self._scopes: dict[tuple[str, str], str] = {}

    def enter(
        self,
        plan: ir.Plan,
        args: Sequence[Any],
        lane: Runs,
        done: Callable[[list[Any]], None] | None,
        inside: FrameStep | None = None,
        carried: Callable[[int, Any], None] | None = None,
    ) -> None:
        """Begins a run of a plan; the arguments are those of `Frame`, and its attribute `carried`."""
        frame = Frame(plan, args, lane, done, inside)
        frame.scope = self.scope(*inside) if inside else self._name
        frame.carried = carried
        if not frame.left:
            _leave(frame)
        for index in plan.first:
            self.ready.append((frame, index))

    def complete(self, frame: Frame, index: int, outputs: Sequence[Any], told: Collection[int] = ()) -> None:
        """Ends a step. Those that wait for it are told, except `told`, which were when an output was given early."""
        plan, values = frame.plan, frame.values
        for value, output in zip(plan.nodes[index].outputs, outputs, strict=True):
            values[value] = output
        if index in plan.takers:
            self.hand_in(frame, index)
        followers = plan.followers[index]
        self.go_on(frame, [f for f in followers if f not in told] if told else followers)
        frame.left -= 1
        if not frame.left:
            _leave(frame)

    def go_on(self, frame: Frame, followers: Iterable[int]) -> None:
        """Tells steps of a frame that one they wait for is done."""
        waits = frame.waits
        for follower in followers:
            waits[follower] -= 1
            if not waits[follower]:
                self.ready.append((frame, follower))

    def hand_in(self, frame: Frame, made: int) -> None:
        """Lets those go on that wait, inside steps which started without it, for what a step has made."""
        for index in frame.plan.takers[made]:
            self.ready += self._takers.pop((frame, index), ())

    def await_input(self, holder: FrameStep, taker: FrameStep) -> None:
        """Starts a step again when `holder`, which it is inside of, has been handed an input."""
        self._takers.setdefault(holder, []).append(taker)

    def scope(self, frame: Frame, index: int) -> str:
        """Where a step stands: the operators it is in, outermost first, joined by `/`."""
        outer, inner = frame.scope, frame.plan.nodes[index].scope
        if not inner:
            return outer
        found = self._scopes.get((outer, inner))
        if found is None:
            found = self._scopes[outer, inner] = f"{outer}/{inner}" if outer else inner
        return found


def _leave(frame: Frame) -> None:
    """Tells the outputs of a frame all of whose nodes have ended."""
    outputs = [frame.values[v] for v in frame.plan.outputs]
    if frame.done is not None:
        frame.done(outputs)
    elif isinstance(frame.lane, Lane) and frame.lane.spread is not None:
        frame.lane.spread.ended(frame.lane, outputs)
