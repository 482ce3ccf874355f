"""A `scan` enters its body once for each step: when the step before has ended, or has given all that it carries.

Design note. A body with `ir.Give` nodes gives what it carries before it ends; the next step then starts while this one
is still under way, and steps may end in another order than they began.
"""

import functools
from typing import Any

import numpy as np

from ..._plan import ir
from ..lane import Frame, inputs_of
from ..machine import Machine


def start(machine: Machine, frame: Frame, index: int, node: ir.Scan) -> None:
    run = _Run(machine, frame, index, node)
    if not node.body.nodes:
        run.hand_on()
    elif node.length:
        run.advance()
    else:
        run.finish()


class _Run:
    """One run of a `scan` by a lane: the carry that the next step starts with, and what the steps gave."""

    def __init__(self, machine: Machine, frame: Frame, index: int, node: ir.Scan):
        inputs = inputs_of(frame, node)
        first = node.constants + node.carry
        self._machine, self._frame, self._index, self._node = machine, frame, index, node
        self._constants, self._carry = inputs[: node.constants], inputs[node.constants : first]
        self._xs = inputs[first:]
        self._order = iter(range(node.length)[:: -1 if node.reverse else 1])
        self._left = node.length
        self._ys: list[list[Any]] = [[]] * node.length
        self._gives = bool(node.body.gives)

    def advance(self) -> None:
        """Starts the next step, if there is one."""
        step = next(self._order, None)
        if step is None:
            return
        frame, inside = self._frame, (self._frame, self._index)
        ended = functools.partial(self._ended, step)
        carried = functools.partial(self._carried, {}) if self._gives else None
        self._machine.stack.enter(self._node.body, self._args(step), frame.lane, ended, inside, carried)

    def hand_on(self) -> None:
        """Does all steps of a body without nodes, which may only hand values on: no step needs a frame."""
        carry, body = self._node.carry, self._node.body
        for step in self._order:
            args = self._args(step)
            outputs = [args[v] if v < len(args) else body.constants[v] for v in body.outputs]
            self._carry, self._ys[step] = outputs[:carry], outputs[carry:]
        self.finish()

    def finish(self) -> None:
        """Ends the scan with the last carry and what all steps gave."""
        ys = self._ys
        stacked = [
            np.stack([y[k] for y in ys]) if ys else np.zeros((0, *aval.shape), aval.dtype)
            for k, aval in enumerate(self._node.body.avals[self._node.carry :])
        ]
        self._machine.stack.complete(self._frame, self._index, [*self._carry, *stacked])

    def _args(self, step: int) -> list[Any]:
        return [*self._constants, *self._carry, *(x[step] for x in self._xs)]

    def _carried(self, given: dict[int, Any], position: int, value: Any) -> None:
        """Takes what a step carries on before it has ended; the next step starts when that is all."""
        given[position] = value
        if len(given) == self._node.carry:
            self._carry = [given[k] for k in range(self._node.carry)]
            self.advance()

    def _ended(self, step: int, outputs: list[Any]) -> None:
        carry = self._node.carry
        self._ys[step] = outputs[carry:]
        self._left -= 1
        if not self._gives:
            self._carry = outputs[:carry]
            self.advance()
        if not self._left:
            self.finish()
