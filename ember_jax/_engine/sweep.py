"""The lane engine: every lane goes through the plan at its own pace.

Design note. A sweep works steps off on the event loop's thread until none is ready: a step of a lane is taken from the
stack (`stack`) and started as the kind of its node says (`steps`). It ends at once, or is collected to be computed
with other lanes' (`collected`), or takes time, and only then is it a task of the event loop (`tasks`). Where nothing is
ready, collected or in flight, the sweep has ended.

Each part of that is an object of its own; `Engine` holds them together. This file orders them: in one turn of the event
loop all steps that are ready start, then one block of lanes if the window has room (`window`), then what was collected
is run, until there is nothing more. A second block waits for the next turn, so that the calls of the first go out.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from .._plan import ir
from .._runtime.progress import Tally
from .._runtime.session import Session
from .._runtime.threads import Threads
from .collected import Collected
from .engine import Engine
from .failures import Failures
from .lane import Lane
from .repeats import Repeats
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
        failures = Failures(stack, places)
        tasks = Tasks(stack, failures, tally, self._ended, self._schedule)
        self._engine = Engine(
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
            self._engine.stack.enter(self._plan, args, Lane(()), outputs.extend)
        except Exception as error:
            self._engine.failures.note_fault(error)
        self._schedule()
        try:
            await self._ended
        except asyncio.CancelledError:
            await self._engine.tasks.cancel()
            raise
        self._engine.failures.raise_any()
        return outputs

    def warning(self) -> str | None:
        """What the user should know of a sweep that ended well."""
        return self._engine.repeats.warning(self._engine.window.total)

    def _schedule(self) -> None:
        """Works steps off soon: what completes in the same turn of the loop is then run together."""
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """What is done in one turn of the event loop; after the last one the sweep has ended."""
        self._is_scheduled = False
        tasks, failures = self._engine.tasks, self._engine.failures
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
        engine = self._engine
        engine.tasks.settle()
        has_started = False
        while True:
            self._start_ready()
            spread = engine.window.next()
            if spread is not None and not has_started:
                lanes.start_block(engine, spread)
                has_started = True
            elif not engine.collected.run():
                break
        if spread is not None:  # its next block starts when the calls of this one have gone out
            self._schedule()

    def _start_ready(self) -> None:
        engine, ready = self._engine, self._engine.stack.ready
        while ready:
            frame, index = ready.pop()
            if not frame.lane.failed:
                node = frame.plan.nodes[index]
                START[type(node)](engine, frame, index, node)
