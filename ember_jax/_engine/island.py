"""The island: the host side of an operator, as the callback that JAX sees.

Design note. An operator is bound as `custom_vmap(pure_callback(island))`: `vmap` does not batch the program inside but
makes another island with one more lane axis, so that every lane keeps its own branches and loops. JAX keys its caches
by the callback, so islands are kept by (program, lane axes): the second call makes none.

An island's plan is arranged when it first runs. One that stands in another operator only is lowered into that one's
plan and never runs; nor does the one that `vmap` has made another of.

In somebody's program an operator is two callbacks, one that launches the island's sweep and one that waits for it (see
`tickets`). To whoever lowers that program the second is the operator, which does not use its ticket; so the launch is
a call whose answer nobody needs, and is dropped.
"""

import functools
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import jax
import numpy as np
from jax.custom_batching import custom_vmap

from .. import _callback
from .._plan.arranged import Arranged, arrange
from .._plan.operators import LaneAxis, OperatorCall, Program, mapped_plan
from .._runtime import failures, interrupt
from .._runtime import session as sessions
from .._runtime.garbage import calm
from .._runtime.loop import Work, forbid_in_loop
from .._runtime.progress import Tally
from .._runtime.repeats import Repeated
from .._runtime.session import Session
from ..errors import EmberError
from . import tickets
from .engine import LaneEngine

# Count islands, for tests: the second call with new data must make none, and only those that run are arranged.
made, arranged = 0, 0

# Runs what no session's own runner does.
_LANES = LaneEngine()


class Island(OperatorCall):
    """Runs a program's plan for every lane. Compared by identity; see `record`."""

    def __init__(self, program: Program, lanes: tuple[LaneAxis, ...]):
        global made
        made += 1
        self._program = program
        self._lanes = lanes
        self._x64 = jax.dtypes.canonicalize_dtype(np.int64) == np.int64
        self._lock = threading.Lock()  # callbacks of several devices come at once
        self._arranged: Arranged | None = None

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
        return _wait(loop.work(self.sweep([np.asarray(a) for a in arrays], sessions.current())))

    def sweep(self, values: Sequence[Any], session: Session) -> Coroutine[Any, Any, "_Ran"]:
        """What runs all lanes, on the event loop. They are arranged here and now if they have not run before."""
        return _sweep(self.as_it_runs(), values, session)

    def as_it_runs(self) -> Arranged:
        """Its program with all its lanes, arranged when this is first asked for."""
        global arranged
        with self._lock:
            if self._arranged is None:
                arranged += 1
                with calm():  # what is allocated for it is kept
                    plan = mapped_plan(self._program.plan, self._lanes)
                    self._arranged = arrange(self._program.name, plan, self._x64)
            return self._arranged


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
        sweep = self._island.sweep([np.array(a) for a in arrays], sessions.current())
        return [tickets.launch(sweep, loop)]


class Awaited(OperatorCall):
    """Waits for an island's sweep by its ticket, which is the last input; without one it runs the island.

    To whoever lowers it, it is the operator, which does not use its ticket.
    """

    def __init__(self, island: Island):
        self._island = island

    @property
    def program(self) -> Program:
        return self._island.program

    @property
    def lanes(self) -> tuple[LaneAxis, ...]:
        return self._island.lanes

    def __str__(self) -> str:
        return str(self._island)

    def __call__(self, *arrays: Any) -> list[np.ndarray]:
        work = tickets.take(arrays[-1])
        return self._island(*arrays[:-1]) if work is None else _wait(work)


# What is recorded, with the lane axes in front, and what the user should know.
_Ran = tuple[list[np.ndarray], Repeated | None]


async def _sweep(operator: Arranged, values: Sequence[Any], session: Session) -> _Ran:
    session.count("islands")
    tally = Tally(operator.least)
    runner = _LANES if session.runner is None else session.runner
    with calm(), session.sweeping(operator.name, tally):
        return await runner.run(operator, values, session, tally)


def _wait(work: Work) -> list[np.ndarray]:
    try:
        outputs, repeated = interrupt.wait(work, in_callback=True)
    except Exception as error:  # also a host function's own
        tickets.abandon()
        raise failures.raised(error) from None
    if repeated:
        repeated.warn()
    return outputs


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
    launch, awaited = Launch(island), Awaited(island)

    def bound(*arrays: Any) -> Any:
        (ticket,) = _callback.bind(launch, [tickets.TICKET], *arrays)
        return _callback.bind(awaited, out, *arrays, tickets.later(ticket))

    return bound
