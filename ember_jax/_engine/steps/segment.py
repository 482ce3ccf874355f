"""A numeric segment is collected, and run with those of other lanes."""

from ..._plan import ir
from ..engine import Engine
from ..lane import Frame


def start(engine: Engine, frame: Frame, index: int, node: ir.Segment) -> None:
    engine.collected.add(frame, index, node)
