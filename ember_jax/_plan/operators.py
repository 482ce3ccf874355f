"""An operator inside a program: what it runs, and the callback by which whoever lowers that program knows it.

Design note. An operator is bound as a host function, so that JAX carries it through every transformation (see
`_engine/island.py`). What such a callback stands for is written here, below the lowering: its program, and the lane
axes that `vmap` has given it. So the lowering of an outer operator makes a step of it, and need not know how it is run.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import _callback
from . import ir
from .rewrite import lane_types

# One `vmap`: its size, and which arguments it maps. Outermost last, as JAX adds them.
LaneAxis = tuple[int, tuple[bool, ...]]


@dataclass(frozen=True, eq=False)
class Program:
    """An operator's recorded half, traced and lowered; its outputs are what is recorded.

    `plan` is what is run, simplified. `lowered` is the plan as lowered, for an outer operator to take over into its own
    and to simplify together with what stands around; its first outputs are those of `plan`, and the others show how
    the replay uses them. `effectful` says that it makes calls for their effect, so that JAX must not drop it;
    `launched`, that it may begin before anybody waits for it; `whole`, that it is a step of its own in what it stands
    in.
    """

    name: str
    lowered: ir.Plan
    plan: ir.Plan
    effectful: bool
    launched: bool = False
    whole: bool = False
    records: dict[tuple[LaneAxis, ...], Any] = field(default_factory=dict)


class OperatorCall(_callback.HostFunction):
    """A callback that stands for an operator.

    Its first arguments are the inputs of the program's plan. What comes after them only running it needs.
    """

    @property
    @abc.abstractmethod
    def program(self) -> Program:
        """What is run, in each lane."""

    @property
    @abc.abstractmethod
    def lanes(self) -> tuple[LaneAxis, ...]:
        """Its lane axes; none if it is run once."""


def mapped_plan(plan: ir.Plan, lanes: Sequence[LaneAxis]) -> ir.Plan:
    """A plan as one whose only step is its lanes; without lane axes, as it is."""
    if not lanes:
        return plan
    sizes = tuple(size for size, _ in lanes[::-1])
    mapped = tuple(tuple(m[i] for _, m in lanes[::-1]) for i in range(plan.inputs))
    outputs = tuple(range(plan.inputs, plan.inputs + len(plan.outputs)))
    node = ir.Lanes(tuple(range(plan.inputs)), outputs, "", plan, sizes, mapped)
    return ir.Plan(plan.inputs, lane_types(plan, sizes, mapped), {}, (node,), outputs)
