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
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.custom_batching import custom_vmap

from .. import _callback
from .._errors import EmberError, RepeatedSampleWarning
from .._plan.counts import count
from .._plan.operators import LaneAxis, OperatorCall, Program, mapped_plan
from .._plan.passes import arrange
from .._runtime import failures, interrupt
from .._runtime import session as sessions
from .._runtime.garbage import calm
from .._runtime.loop import Loop, Work, forbid_in_loop
from .._runtime.progress import Tally
from .._runtime.session import Session
from . import tickets
from .runners import Runners
from .sweep import Sweep

# Counts islands made, for tests: the second call with new data must make none.
made = 0


class Island(OperatorCall):
    """Runs a program's plan for every lane. Compared by identity; see `record`."""

    def __init__(self, program: Program, lanes: tuple[LaneAxis, ...]):
        global made
        made += 1
        self._program = program
        self._lanes = lanes
        self._plan = arrange(mapped_plan(program.plan, lanes))
        self._runners = Runners(self._plan)
        self._least = count(self._plan).least

    @property
    def program(self) -> Program:
        return self._program

    @property
    def lanes(self) -> tuple[LaneAxis, ...]:
        return self._lanes

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


class Awaited(OperatorCall):
    """Waits for an island's sweep by its ticket, which is the last input; without one it runs the island.

    To whoever lowers it, it is a program around the island, which does not use its ticket.
    """

    def __init__(self, island: Island, out: Sequence[jax.ShapeDtypeStruct]):
        def without_ticket(*arrays: Any) -> Any:
            return _callback.bind(island, out, *arrays[:-1])

        jaxpr = jax.make_jaxpr(without_ticket)(*_inputs(island), tickets.TICKET)
        self._program = replace(island.program, jaxpr=jaxpr, whole=False)
        self._island = island

    @property
    def program(self) -> Program:
        return self._program

    @property
    def lanes(self) -> tuple[LaneAxis, ...]:
        return ()

    def __str__(self) -> str:
        return str(self._island)

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
