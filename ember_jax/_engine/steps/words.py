"""A text operation runs at once, on the lane's words."""

from ..._plan import ir
from ..engine import Engine
from ..lane import Frame, inputs_of


def start(engine: Engine, frame: Frame, index: int, node: ir.Words) -> None:
    try:
        given = inputs_of(frame, node)
        outputs = node.function(*given) if node.batched else (node.function.one(given),)
    except Exception as error:  # whatever it is, it comes of this lane's words, and is its failure alone
        engine.failures.fail(frame, index, error)
    else:
        engine.stack.complete(frame, index, outputs)
