"""A numeric segment is collected, and run with those of other lanes."""

from ..._plan import ir
from ..lane import Frame
from ..machine import Machine


def start(machine: Machine, frame: Frame, index: int, node: ir.Segment) -> None:
    machine.collected.add(frame, index, node)
