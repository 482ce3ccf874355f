"""A text operation runs at once, on the lane's words."""

from ..._plan import ir
from ..lane import Frame, inputs_of
from ..machine import Machine


def start(machine: Machine, frame: Frame, index: int, node: ir.Words) -> None:
    try:
        given = inputs_of(frame, node)
        outputs = node.function(*given) if node.batched else (node.function.one(given),)
    except Exception as error:  # whatever it is, it comes of this lane's words, and is its failure alone
        machine.failures.fail(frame, index, error)
    else:
        machine.stack.complete(frame, index, outputs)
