"""A step that spreads into lanes: they start in blocks, each goes its own way, and the step ends with the last of them.

Design note. The step only announces its lanes to the window; they start when nothing else is ready and there is room.
For a block of them, the numbers that depend on nothing but the step's inputs are computed at once (`ir.Lanes.first`).
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..._plan import ir
from ..lane import Frame, Lane, Spread
from ..machine import Machine


def start(machine: Machine, frame: Frame, index: int, node: ir.Lanes) -> None:
    machine.window.land(frame.lane.whole)  # which waits for its own lanes now, and must leave its place to them
    if node.meets:
        machine.session.count("barriers")
    spread = Spread(node, (frame, index), functools.partial(_lane_ended, machine))
    machine.window.add(spread)
    if not spread.count:
        _all_ended(machine, spread)


def start_block(machine: Machine, spread: Spread) -> None:
    """Starts the next lanes of a spread, after the segment that is computed for them at once."""
    node, block = spread.node, machine.window.take(spread)
    places = np.unravel_index(np.arange(block.start, block.stop), node.sizes)
    outer = spread.inside[0].lane.index
    lanes = [Lane(outer + at, spread) for at in zip(*(p.tolist() for p in places), strict=True)]
    rows = [_rows(spread, k, places) for k in range(len(spread.inputs))]
    enter = functools.partial(_enter, machine, spread, lanes, rows)
    if node.first is None:
        enter([], {})
        return
    # by the inputs that this segment reads: whether all lanes of the sweep share it, and its rows or value here
    sharing = machine.runners.sharing[node.first]
    given = [(once, v, rows[v]) for v, once in zip(node.first.inputs, sharing, strict=True)]
    shared = [x for once, _, x in given if once]
    # what is the same in these lanes, but not in all lanes of the sweep, is given to each
    columns = [
        x if any(node.mapped[v]) else np.broadcast_to(x, (len(block), *np.shape(x))) for once, v, x in given if not once
    ]
    machine.collected.compute(node.first, shared, columns, len(block), enter)


def _rows(spread: Spread, k: int, places: tuple[np.ndarray, ...]) -> Any:
    """What lanes at some places are given of an input: one row each, or, where they share it, the input itself."""
    if _is_whole(spread.node, k):
        return spread.inputs[k]
    return spread.inputs[k][tuple(at for at, mapped in zip(places, spread.node.mapped[k], strict=True) if mapped)]


def _is_whole(node: ir.Lanes, k: int) -> bool:
    """Whether lanes start with an input as it is: it has no axis of theirs, or they start without it."""
    return k in node.late or not any(node.mapped[k])


def _enter(
    machine: Machine,
    spread: Spread,
    lanes: list[Lane],
    rows: list[Any],
    computed: Sequence[np.ndarray],
    errors: Mapping[int, BaseException],
) -> None:
    """Lets lanes enter their body, except those for which what comes before it could not be computed."""
    node = spread.node
    columns = [itertools.repeat(x) if _is_whole(node, k) else x for k, x in enumerate(rows)]
    starts = list(enumerate(zip(lanes, *columns, *computed)))  # noqa: B905  (shared inputs repeat for ever)
    for i, (lane, *args) in reversed(starts):  # so that the stack gives the first lane first
        if i not in errors:
            machine.stack.enter(node.body, args, lane, None, spread.inside)
    for i, error in errors.items():
        machine.failures.fail(*spread.inside, error, lanes[i])


def _lane_ended(machine: Machine, lane: Lane, outputs: list[Any]) -> None:
    spread = lane.spread
    assert spread is not None
    at = spread.place(lane)
    for array, output in zip(spread.outputs, outputs, strict=True):
        array[at] = output
    machine.repeats.ended(lane)
    machine.window.land(lane)
    for part in lane.attempts():
        part.lanes.discard(lane)
    spread.left -= 1
    if not spread.left:
        _all_ended(machine, spread)


def _all_ended(machine: Machine, spread: Spread) -> None:
    frame, index = spread.inside
    machine.window.fly(frame.lane.whole)
    told = {step for step, left in spread.awaited.items() if not left}
    machine.stack.complete(frame, index, spread.outputs, told)
