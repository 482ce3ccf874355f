"""What each kind of node does when it starts: one function for each, in a file named after it.

A new kind of node is a function and an entry here. The function starts a step whose inputs are known, `late` ones
apart; it sees to it that the step ends, now or later.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

from ..._plan import ir
from ..lane import Frame
from ..machine import Machine
from . import branch, call, early, enclosed, foreign, lanes, loop, scan, segment, words

# Starts the step of a frame at an index of its plan, where the node stands.
Start: TypeAlias = Callable[[Machine, Frame, int, Any], None]

START: dict[type[ir.Node], Start] = {
    ir.Segment: segment.start,
    ir.Words: words.start,
    ir.Call: call.start,
    ir.Foreign: foreign.start,
    ir.Branch: branch.start,
    ir.While: loop.start,
    ir.Scan: scan.start,
    ir.Lanes: lanes.start,
    ir.Enclosed: enclosed.start,
    ir.Give: early.give,
    ir.Take: early.take,
}
