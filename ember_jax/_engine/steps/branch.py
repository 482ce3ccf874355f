"""A `cond` or `switch` enters the branch that its index names, and no other."""

import functools

from ..._plan import ir
from ..engine import Engine
from ..lane import Frame, inputs_of


def start(engine: Engine, frame: Frame, index: int, node: ir.Branch) -> None:
    which, *operands = inputs_of(frame, node)
    chosen = min(max(int(which), 0), len(node.branches) - 1)  # as `lax.switch` does with an index out of range
    engine.tally.known += engine.runners.more[node][chosen]
    done = functools.partial(engine.stack.complete, frame, index)
    engine.stack.enter(node.branches[chosen], operands, frame.lane, done, (frame, index))
