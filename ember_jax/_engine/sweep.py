"""The lane engine: every lane goes through the plan at its own pace.

Design note. A sweep works off steps, on the event loop's thread, until none is ready. Each step is taken from the stack
(`stack`) and started as the kind of its node says (`steps`). It ends at once; or it is collected, to be computed with
other lanes' (`collected`); or it takes time, and only then is it a task of the event loop (`tasks`). The sweep ends
when nothing is ready, collected or in flight.

Each of these is an object of its own, and `Machine` holds them all. This file says in which order they come. In one
turn of the event loop all ready steps start; then one block of lanes, if the window has room (`window`); then what was
collected is run; and so on until there is nothing more. A second block waits for the next turn, so that the calls of
the first go out before it.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from .._plan import ir
from .._runtime.progress import Tally
from .._runtime.repeats import Repeated, Repeats
from .._runtime.session import Session
from .._runtime.threads import Threads
from .collected import Collected
from .failures import Failures
from .lane import Lane
from .machine import Machine
from .runners import Runners
from .stack import Stack
from .steps import lanes
from .steps.table import START
from .tasks import Tasks
from .window import WINDOW, Window


class Sweep:
    """One run of a plan, with all its lanes, on the event loop.

    **Arguments:**

    - `plan`: what is run.
    - `runners`: the executables of its segments.
    - `session`: whom calls are made through.
    - `threads`: where slow work goes.
    - `name`: the operator, for errors.
    - `window`: how many lanes may be in flight.
    - `tally`: counts its calls.
    """

    def __init__(
        self,
        plan: ir.Plan,
        runners: Runners,
        session: Session,
        threads: Threads,
        name: str,
        window: int = WINDOW,
        tally: Tally | None = None,
    ):
        self._plan = plan
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._is_scheduled = False
        tally = tally or Tally()
        stack, places, repeats = Stack(name), Window(window), Repeats(name)
        failures = Failures(stack, places, session.keeping)
        tasks = Tasks(stack, failures, self._ended, self._schedule)
        self._machine = Machine(
            stack=stack,
            window=places,
            failures=failures,
            tasks=tasks,
            collected=Collected(runners, threads, tasks, stack, failures),
            repeats=repeats,
            saw=repeats.saw,
            session=session,
            threads=threads,
            tally=tally,
            runners=runners,
            paths=runners.paths if session.turns is not None else {},
        )

    async def run(self, args: Sequence[Any]) -> list[Any]:
        """Runs the plan on its inputs; returns its outputs.

        **Raises:** the cause if there was only one lane and it failed; `SweepError` if some of several did;
        `InternalError` if the engine itself did, when what was in flight has ended.
        """
        outputs: list[Any] = []
        try:
            self._machine.stack.enter(self._plan, args, Lane(()), outputs.extend)
        except Exception as error:
            self._machine.failures.note_fault(error)
        self._schedule()
        try:
            await self._ended
        except asyncio.CancelledError:
            await self._machine.tasks.cancel()
            raise
        self._machine.failures.raise_any()
        return outputs

    def repeated(self) -> Repeated | None:
        """What the user should know of a sweep that ended well."""
        return self._machine.repeats.found(self._machine.window.total)

    def _schedule(self) -> None:
        """Works steps off soon: what completes in the same turn of the loop is then run together."""
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """What is done in one turn of the event loop; after the last one the sweep has ended."""
        self._is_scheduled = False
        tasks, failures = self._machine.tasks, self._machine.failures
        try:
            if failures.fault is None:
                self._work_off()
        except BaseException as error:  # a fault of the engine: the caller is told when what is in flight has ended
            failures.note_fault(error)
        if failures.fault is not None:  # nothing starts any more, and what is in flight ends for the journal alone
            tasks.discard()
        if not (tasks.are_left() or self._is_scheduled or self._ended.done()):
            self._ended.set_result(None)

    def _work_off(self) -> None:
        machine = self._machine
        machine.tasks.settle()
        has_started = False
        while True:
            self._start_ready()
            spread = machine.window.next()
            if spread is not None and not has_started:
                lanes.start_block(machine, spread)
                has_started = True
            elif not machine.collected.run():
                break
        if spread is not None:  # its next block starts when the calls of this one have gone out
            self._schedule()

    def _start_ready(self) -> None:
        machine, ready = self._machine, self._machine.stack.ready
        while ready:
            frame, index = ready.pop()
            if not frame.lane.failed:
                node = frame.plan.nodes[index]
                START[type(node)](machine, frame, index, node)
