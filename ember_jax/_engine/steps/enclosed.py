"""An enclosed plan is entered by a part of the lane: of an attempt, which may fail alone, or of what is metered."""

import numpy as np

from ..._errors import SweepError
from ..._host import Used
from ..._plan import ir
from ..._text.failed import digest_for
from ..engine import Engine
from ..lane import Frame, Part, inputs_of

# What an attempt adds to its outputs where nothing has failed.
_NOT_FAILED = [np.zeros(a.shape, a.dtype) for a in ir.EXTRAS["attempt"]]


def start(engine: Engine, frame: Frame, index: int, node: ir.Enclosed) -> None:
    if node.how == "attempt":
        _attempt(engine, frame, index, node)
    else:
        _meter(engine, frame, index, node)


def _attempt(engine: Engine, frame: Frame, index: int, node: ir.Enclosed) -> None:
    def ended(outputs: list[np.ndarray]) -> None:
        engine.stack.complete(frame, index, [*outputs, *_NOT_FAILED])

    def failed(error: BaseException) -> None:
        outputs = [np.zeros(a.shape, a.dtype) for a in node.body.avals]
        digest = np.frombuffer(digest_for(_cause(error)), np.uint32)
        engine.stack.complete(frame, index, [*outputs, digest])

    engine.stack.enter(node.body, inputs_of(frame, node), Part(frame.lane, failed, None), ended, (frame, index))


def _meter(engine: Engine, frame: Frame, index: int, node: ir.Enclosed) -> None:
    used = Used()

    def ended(outputs: list[np.ndarray]) -> None:
        engine.stack.complete(frame, index, [*outputs, *used.arrays()])

    engine.stack.enter(node.body, inputs_of(frame, node), Part(frame.lane, None, used), ended, (frame, index))


def _cause(error: BaseException) -> BaseException:
    """Why a part failed: where a single call of a batch has, or a single lane inside it, that one's error."""
    return error.failures[0].cause if isinstance(error, SweepError) and len(error.failures) == 1 else error
