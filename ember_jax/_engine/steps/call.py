"""A host call, or a batch of them, is a task of the event loop."""

import numpy as np

from ..._host import Caller
from ..._plan import ir
from ..._runtime.scheduler import NOWHERE
from ..lane import Frame, inputs_of
from ..machine import Machine


def start(machine: Machine, frame: Frame, index: int, node: ir.Call) -> None:
    if 0 in node.batch:  # nobody is there to ask
        types = [frame.plan.types[v] for v in node.outputs]
        machine.stack.complete(frame, index, [np.zeros(t.shape, t.dtype) for t in types])
        return
    lane = frame.lane
    if node.meets:
        machine.session.count("barriers")
    scope, path = machine.stack.scope(frame, index), machine.paths.get(node, NOWHERE)
    stands_for = node.asked * node.lanes
    caller = Caller(lane.index, scope, True, machine.saw, lane.whole, node, stands_for, lane.used, path, machine.tally)
    run = node.function.run_batch if node.batch else node.function.run
    machine.tasks.await_step(frame, index, run(machine.session, caller, inputs_of(frame, node)))
