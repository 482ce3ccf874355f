"""An enclosed plan is entered by a part of the lane: of an attempt, which may fail alone, or of what is metered."""

import numpy as np

from ..._host import Used
from ..._plan import ir
from ..._text.failed import digest_for
from ...errors import SweepError
from ..lane import Enclosure, Frame, inputs_of
from ..machine import Machine

# What an attempt adds to its outputs where nothing has failed.
_NOT_FAILED = [np.zeros(a.shape, a.dtype) for a in ir.EXTRAS["attempt"]]


def start(machine: Machine, frame: Frame, index: int, node: ir.Enclosed) -> None:
    if node.how == "attempt":
        _attempt(machine, frame, index, node)
    else:
        _meter(machine, frame, index, node)


def _attempt(machine: Machine, frame: Frame, index: int, node: ir.Enclosed) -> None:
    def ended(outputs: list[np.ndarray]) -> None:
        machine.stack.complete(frame, index, [*outputs, *_NOT_FAILED])

    def failed(error: BaseException) -> None:
        outputs = [np.zeros(a.shape, a.dtype) for a in node.body.avals]
        digest = np.frombuffer(digest_for(_cause(error)), np.uint32)
        machine.stack.complete(frame, index, [*outputs, digest])

    machine.stack.enter(node.body, inputs_of(frame, node), Enclosure(frame.lane, failed, None), ended, (frame, index))


def _meter(machine: Machine, frame: Frame, index: int, node: ir.Enclosed) -> None:
    used = Used()

    def ended(outputs: list[np.ndarray]) -> None:
        machine.stack.complete(frame, index, [*outputs, *used.arrays()])

    machine.stack.enter(node.body, inputs_of(frame, node), Enclosure(frame.lane, None, used), ended, (frame, index))


def _cause(error: BaseException) -> BaseException:
    """Why a part failed: where a single call of a batch has, or a single lane inside it, that one's error."""
    return error.failures[0].cause if isinstance(error, SweepError) and len(error.failures) == 1 else error
