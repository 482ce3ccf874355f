"""The island: the host side of an operator, as the callback that JAX sees.

Design note. An operator is bound as `custom_vmap(pure_callback(island))`: `vmap` does not batch the program inside but
makes another island with one more lane axis, so that every lane keeps its own branches and loops. JAX keys its caches
by the callback, so islands are kept by (program, lane axes): the second call makes none.
"""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.custom_batching import custom_vmap
from jax.extend import core as jex

from .. import _callback
from .._errors import RepeatedSampleWarning
from .._runtime import failures, interrupt
from .._runtime import session as sessions
from .._runtime.garbage import calm
from .._runtime.loop import forbid_in_loop
from . import ir
from .lanes import Runners, Sweep
from .passes import arrange
from .rewrite import lane_types

# One `vmap`: its size, and which arguments it maps. Outermost last, as JAX adds them.
LaneAxis = tuple[int, tuple[bool, ...]]


@dataclass(frozen=True, eq=False)
class Program:
    """An operator's recorded half, traced and lowered; its outputs are what is recorded.

    `effectful` says that it makes calls for their effect, so that JAX must not drop it.
    """

    name: str
    jaxpr: jex.ClosedJaxpr
    plan: ir.Plan
    effectful: bool
    records: dict[tuple[LaneAxis, ...], Any] = field(default_factory=dict)


# Counts islands made, for tests: the second call with new data must make none.
made = 0


class Island(_callback.HostFunction):
    """Runs a program's plan for every lane. Compared by identity; see `record`."""

    def __init__(self, program: Program, lanes: tuple[LaneAxis, ...]):
        global made
        made += 1
        self.program = program
        self.lanes = lanes
        self._plan = arrange(mapped_plan(program.plan, lanes))
        self._runners = Runners(self._plan)

    def __str__(self) -> str:
        return self.program.name

    def __call__(self, *arrays: Any) -> list[np.ndarray]:
        return self.run(arrays, in_callback=True)

    def run(self, arrays: Sequence[Any], *, in_callback: bool) -> list[np.ndarray]:
        """Runs all lanes; returns what is recorded, with the lane axes in front."""
        forbid_in_loop(self.program.name)  # also here: a compiled program comes by no boundary
        values = [np.asarray(a) for a in arrays]
        loop, session = sessions.loop(), sessions.current()

        async def sweep() -> tuple[list[np.ndarray], str | None]:
            session.count("islands")
            running = Sweep(self._plan, self._runners, session, loop.threads, self.program.name)
            with calm():
                return await running.run(values), running.warning()

        work = loop.work(sweep())
        try:
            outputs, warning = interrupt.wait(work, in_callback=in_callback)
        except Exception as error:  # also a host function's own
            raise failures.raised(error) from None
        if warning:
            warnings.warn(warning, RepeatedSampleWarning, stacklevel=2)
        return outputs


def mapped_plan(plan: ir.Plan, lanes: Sequence[LaneAxis]) -> ir.Plan:
    """A plan as one whose only step is its lanes; without lane axes, as it is."""
    if not lanes:
        return plan
    sizes = tuple(size for size, _ in lanes[::-1])
    mapped = tuple(tuple(m[i] for _, m in lanes[::-1]) for i in range(plan.inputs))
    outputs = tuple(range(plan.inputs, plan.inputs + len(plan.outputs)))
    node = ir.Lanes(tuple(range(plan.inputs)), outputs, "", plan, sizes, mapped)
    return ir.Plan(plan.inputs, lane_types(plan, sizes, mapped), {}, (node,), outputs)


def record(program: Program, arrays: Sequence[Any], lanes: tuple[LaneAxis, ...] = ()) -> list[Any]:
    """Binds a program's island: what is recorded of the given raw arguments."""
    if lanes not in program.records:
        program.records[lanes] = _recorder(program, lanes)
    return list(program.records[lanes](*arrays))


def _recorder(program: Program, lanes: tuple[LaneAxis, ...]) -> Any:
    shape = tuple(size for size, _ in lanes[::-1])
    out = [jax.ShapeDtypeStruct((*shape, *a.shape), a.dtype) for a in program.plan.avals]
    bound = functools.partial(_callback.bind, Island(program, lanes), out, effectful=program.effectful)

    @custom_vmap
    def recorder(*arrays: Any) -> Any:
        return bound(*arrays)

    @recorder.def_vmap
    def _(size: int, mapped: Sequence[bool], *arrays: Any) -> Any:
        outs = record(program, arrays, (*lanes, (size, tuple(mapped))))
        return tuple(outs), (True,) * len(outs)

    return recorder
