"""A `while_loop` enters its condition and its body by turns, for as many turns as the lane needs."""

import functools
from typing import Any

from ..._plan import ir
from ..lane import Frame, inputs_of
from ..machine import Machine


def start(machine: Machine, frame: Frame, index: int, node: ir.While) -> None:
    inputs, inside = inputs_of(frame, node), (frame, index)
    first = node.condition_constants + node.body_constants
    of_condition, of_body = inputs[: node.condition_constants], inputs[node.condition_constants : first]
    (more,) = machine.runners.more[node]

    def test(carry: list[Any]) -> None:
        machine.stack.enter(
            node.condition, [*of_condition, *carry], frame.lane, functools.partial(tested, carry), inside
        )

    def tested(carry: list[Any], outputs: list[Any]) -> None:
        if bool(outputs[0]):
            machine.tally.known += more
            machine.stack.enter(node.body, [*of_body, *carry], frame.lane, test, inside)
        else:
            machine.stack.complete(frame, index, carry)

    test(inputs[first:])
