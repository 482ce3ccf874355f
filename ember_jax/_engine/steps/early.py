"""Outputs that a lane gives before it has ended, and inputs that it takes after it has started.

Design note. Steps wait for whole steps. Where a step of several lanes stands before others, these would wait for its
last lane to end, though they may need only what the lanes knew early; `ir.Give` gives such an output on its own. In the
same way lanes, or a branch, would wait to start until all their inputs are there, though their first calls may need
none of them; they start without, and `ir.Take` takes such an input where it is needed.
"""

from typing import Any

from ..._plan import ir
from ..lane import Frame, Lane, Runs
from ..machine import Machine


def give(machine: Machine, frame: Frame, index: int, node: ir.Give) -> None:
    """Gives an output of the lane, or of a step of a `scan`, that a frame is the body of."""
    value = frame.values[node.inputs[0]]
    if frame.carried is not None:
        frame.carried(node.position, value)
    else:
        _give_of_lane(machine, frame.lane, node.position, value)
    machine.stack.complete(frame, index, ())


def _give_of_lane(machine: Machine, lane: Runs, position: int, value: Any) -> None:
    """Gives one output of a lane. With that of the last lane it is complete, and those go on that wait for it alone."""
    assert isinstance(lane, Lane) and lane.spread is not None
    spread = lane.spread
    spread.outputs[position][spread.place(lane)] = value
    spread.early[position] -= 1
    if spread.early[position]:
        return
    outer, step = spread.inside
    made = outer.plan.nodes[step].outputs[position]
    outer.values[made] = spread.outputs[position]
    if step in outer.plan.takers:
        machine.stack.hand_in(outer, step)
    for follower in spread.awaited:
        if made in outer.plan.nodes[follower].inputs:
            spread.awaited[follower] -= 1
            if not spread.awaited[follower]:
                machine.stack.go_on(outer, [follower])


def take(machine: Machine, frame: Frame, index: int, node: ir.Take) -> None:
    """Takes an input of the lanes or of the branch that a frame is in, or waits for it."""
    assert frame.inside is not None
    outer, step = frame.inside
    holder = outer.plan.nodes[step]
    value = outer.values[holder.inputs[node.position]]
    if value is None:
        machine.stack.await_input(frame.inside, (frame, index))
        return
    if isinstance(holder, ir.Lanes):
        lane = frame.lane
        assert isinstance(lane, Lane) and lane.spread is not None
        places = zip(lane.spread.place(lane), holder.mapped[node.position], strict=True)
        at = tuple(i for i, mapped in places if mapped)
        value = value[at] if at else value
    machine.stack.complete(frame, index, (value,))
