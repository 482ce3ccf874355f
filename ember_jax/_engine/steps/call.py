"""A host call, or a batch of them, is a task of the event loop."""

import math

import numpy as np

from ..._host import Caller
from ..._plan import ir
from ..._runtime.scheduler import NOWHERE
from ..engine import Engine
from ..lane import Frame, inputs_of


def start(engine: Engine, frame: Frame, index: int, node: ir.Call) -> None:
    if 0 in node.batch:  # nobody is there to ask
        types = [frame.plan.types[v] for v in node.outputs]
        engine.stack.complete(frame, index, [np.zeros(t.shape, t.dtype) for t in types])
        return
    tally, lane = engine.tally, frame.lane
    tally.begun += math.prod(node.batch)
    if node.meets:
        engine.session.count("barriers")
    scope, path = engine.stack.scope(frame, index), engine.paths.get(node, NOWHERE)
    stands_for = node.asked * node.lanes
    caller = Caller(lane.index, scope, True, engine.saw, lane.whole, node, stands_for, lane.used, path, tally)
    run = node.function.run_batch if node.batch else node.function.run
    engine.tasks.await_step(frame, index, run(engine.session, caller, inputs_of(frame, node)))
