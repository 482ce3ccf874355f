"""The island: the host side of an operator, as the callback that JAX sees.

Design note. An operator is bound as `custom_vmap(pure_callback(island))`: `vmap` does not batch the program inside but
makes another island with one more lane axis, so that every lane keeps its own branches and loops. JAX keys its caches
by the callback, so islands are kept by (program, lane axes): the second call makes none.

In somebody's program an operator is two callbacks, one that launches the island's sweep and one that waits for it (see
`tickets`). To whoever lowers that program the second is an island around the first one's, which does not use its
ticket; so the launch is a call whose answer nobody needs, and is dropped.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jax.custom_batching import custom_vmap
from jax.extend import core as jex

from .. import _callback
from .._errors import EmberError, RepeatedSampleWarning
from .._runtime import failures, interrupt
from .._runtime import session as sessions
from .._runtime.garbage import calm
from .._runtime.loop import Loop, Work, forbid_in_loop
from .._runtime.progress import Tally
from .._runtime.session import Session
from . import ir, tickets
from .counts import count
from .lanes import Runners, Sweep
from .passes import arrange
from .rewrite import lane_types

# One `vmap`: its size, and which arguments it maps. Outermost last, as JAX adds them.
LaneAxis = tuple[int, tuple[bool, ...]]


@dataclass(frozen=True, eq=False)
class Program:
    """An operator's recorded half, traced and lowered; its outputs are what is recorded.

    `effectful` says that it makes calls for their effect, so that JAX must not drop it; `launched`, that it may
    begin before anybody waits for it; `whole`, that it is a step of its own in what it stands in.
    """

    name: str
    jaxpr: jex.ClosedJaxpr
    plan: ir.Plan
    effectful: bool
    launched: bool = False
    whole: bool = False
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
        self._least = count(self._plan).least

    def __str__(self) -> str:
        return self.program.name

    def __call__(self, *arrays: Any) -> list[np.ndarray]:
        forbid_in_loop(self.program.name)  # also here: a compiled program comes by no boundary
        loop = sessions.loop()
        return _wait(loop.work(self.sweep([np.asarray(a) for a in arrays], loop, sessions.current())))

    async def sweep(self, values: Sequence[Any], loop: Loop, session: Session) -> tuple[list[np.ndarray], str | None]:
        """Runs all lanes; returns what is recorded, with the lane axes in front, and what the user should know."""
        session.count("islands")
        tally = Tally(self._least)
        running = Sweep(self._plan, self._runners, session, loop.threads, self.program.name, tally=tally)
        with calm(), session.sweeping(self.program.name, tally):
            return await running.run(values), running.warning()


class Launch(_callback.HostFunction):
    """Launches an island's sweep; returns a ticket for it. Compared by identity, as the island is."""

    def __init__(self, island: Island):
        self._island = island

    def __str__(self) -> str:
        return f"launch of {self._island}"

    def __call__(self, *arrays: Any) -> list[np.ndarray]:
        try:
            forbid_in_loop(str(self._island))
            loop = sessions.loop()
        except EmberError:  # which the wait will raise
            return [tickets.NONE]
        # copies: when this callback has returned, XLA uses its buffers for something else
        sweep = self._island.sweep([np.array(a) for a in arrays], loop, sessions.current())
        return [tickets.launch(sweep, loop)]


class Awaited(Island):
    """An island that takes a ticket, its last input; without one, and to whoever lowers it, the island itself."""

    def __init__(self, island: Island, out: Sequence[jax.ShapeDtypeStruct]):
        def without_ticket(*arrays: Any) -> Any:
            return _callback.bind(island, out, *arrays[:-1])

        jaxpr = jax.make_jaxpr(without_ticket)(*_inputs(island), tickets.TICKET)
        self.program = replace(island.program, jaxpr=jaxpr, whole=False)
        self.lanes = ()
        self._island = island

    def __call__(self, *arrays: Any) -> list[np.ndarray]:
        work = tickets.take(arrays[-1])
        return self._island(*arrays[:-1]) if work is None else _wait(work)


def _wait(work: Work) -> list[np.ndarray]:
    try:
        outputs, warning = interrupt.wait(work, in_callback=True)
    except Exception as error:  # also a host function's own
        tickets.abandon()
        raise failures.raised(error) from None
    if warning:
        warnings.warn(warning, RepeatedSampleWarning, stacklevel=2)
    return outputs


def _inputs(island: Island) -> list[jax.ShapeDtypeStruct]:
    """The types of an island's inputs, with the lane axes in front."""
    return [
        jax.ShapeDtypeStruct((*(size for size, mapped in island.lanes[::-1] if mapped[i]), *aval.shape), aval.dtype)
        for i, aval in enumerate(island.program.jaxpr.in_avals)
    ]


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
    island = Island(program, lanes)
    now = functools.partial(_callback.bind, island, out, effectful=program.effectful)
    bound = _launched(island, out) if program.launched else now

    @custom_vmap
    def recorder(*arrays: Any) -> Any:
        return bound(*arrays)

    @recorder.def_vmap
    def _(size: int, mapped: Sequence[bool], *arrays: Any) -> Any:
        outs = record(program, arrays, (*lanes, (size, tuple(mapped))))
        return tuple(outs), (True,) * len(outs)

    return recorder


def _launched(island: Island, out: Sequence[jax.ShapeDtypeStruct]) -> Callable[..., Any]:
    """Binds an island as two callbacks, side by side in one jaxpr."""
    launch, awaited = Launch(island), Awaited(island, out)

    def bound(*arrays: Any) -> Any:
        (ticket,) = _callback.bind(launch, [tickets.TICKET], *arrays)
        return _callback.bind(awaited, out, *arrays, tickets.later(ticket))

    return bound
