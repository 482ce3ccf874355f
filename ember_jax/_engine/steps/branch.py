"""A `cond` or `switch` enters the branch that its index names, and no other."""

import functools

from ..._plan import ir
from ..lane import Frame, inputs_of
from ..machine import Machine


def start(machine: Machine, frame: Frame, index: int, node: ir.Branch) -> None:
    which, *operands = inputs_of(frame, node)
    chosen = min(max(int(which), 0), len(node.branches) - 1)  # as `lax.switch` does with an index out of range
    machine.tally.known += machine.runners.more[node][chosen]
    done = functools.partial(machine.stack.complete, frame, index)
    machine.stack.enter(node.branches[chosen], operands, frame.lane, done, (frame, index))
