"""Asks a scheduler on behalf of a session's calls, and holds it to what it promises.

Design note. When a call ends, the calls that depend on it are ready at that moment. But they arrive here only some
rounds of the event loop later: the call's sweep must first hear of the end, go on, and begin them. If the free slot
were given away before, it would go to a call that waits already, though the scheduler might prefer one that is about to
arrive. So the scheduler is told of an end, and asked for the next call, only when that many rounds have passed. On a
virtual clock the rounds take no time. So all calls that are ready at one time are compared, as in the schedules that
theorems are about. Calls that are set off by work in threads may arrive still later, and find the slot taken.

A scheduler is a user's code, and may be at fault. Its first fault ends its work: calls that wait raise a
`SchedulerError`, later calls raise one at once, and calls in flight end as they would have. So no call waits for ever,
unless a method of the scheduler does not return.
"""

import asyncio
import contextlib
import itertools
import math
from collections.abc import AsyncIterator
from typing import Any

from ..errors import SchedulerError
from .rounds import after
from .scheduler import Path, Scheduler, Task

# How many rounds of the loop pass after a call has ended before the scheduler hears of it. The calls that it sets off
# arrive after three rounds, and in batches after seven (counted); samples that are gathered, after four more.
_SETTLING = 12


class Turns:
    """The calls of a session that wait for a scheduler, or were started by it. Used from one event loop at a time."""

    def __init__(self, scheduler: Scheduler):
        self._scheduler = scheduler
        self._orders = itertools.count()
        # A task is in one of these at a time: added and not started; started and in flight; ended, but the scheduler
        # has yet to hear of it.
        self._waiting: dict[Task, asyncio.Future[None]] = {}
        self._started: set[Task] = set()
        self._ending: set[Task] = set()
        # Whether the scheduler will be asked anyway, as calls were added some rounds ago.
        self._asks_soon = False
        self._loop: asyncio.AbstractEventLoop | None = None
        # The message and the cause of the error that all calls get after the scheduler's first fault.
        self._fault: tuple[str, BaseException | None] | None = None

    def task(self, model: str, lane: tuple[int, ...], scope: str, path: Path, tokens: float = 0.0) -> Task:
        """A call, as the scheduler sees it."""
        return Task(model, lane, scope, path.depth, path.ahead, tokens, next(self._orders))

    @contextlib.asynccontextmanager
    async def turn(self, task: Task) -> AsyncIterator[None]:
        """Within, a call is started. Raises `SchedulerError` if the scheduler fails."""
        try:
            await self.enter(task)  # inside `try`: it may be cancelled just when the scheduler has started the call
            yield
        finally:
            self.leave(task)

    async def enter(self, task: Task) -> None:
        """Waits until a call is started. The caller must call `leave` afterwards, also if this raises.
        **Raises:** `SchedulerError` if the scheduler fails.
        """
        loop = asyncio.get_running_loop()
        # After a change of the loop, what was to happen some rounds later on the old loop, which is closed, never
        # happens. So it is made up for here.
        if loop is not self._loop:
            self._loop, self._asks_soon = loop, False
            for ending in list(self._ending):
                self._end(ending)
        # A call that is tried again may come back before the scheduler has heard that its last attempt ended. The
        # scheduler hears of it first, as it is told of each end once.
        self._end(task)
        self._check()
        self._tell("add", task)
        future = self._waiting[task] = loop.create_future()
        if not self._asks_soon:
            self._asks_soon = True
            after(_SETTLING, self._ask_again, asyncio.get_running_loop())
        await future

    def priority(self, task: Task) -> float:
        """The call's priority at a limit: lower goes first. Raises `SchedulerError` if the scheduler fails."""
        self._check()
        said = self._tell("priority", task)
        try:
            number = float(said)
        except (TypeError, ValueError):
            number = math.nan
        if math.isnan(number):
            raise self._broken(f"priority() gave {said!r:.60}. Give a number.")
        return number

    def leave(self, task: Task) -> None:
        """Ends the turn of a call, if it was started."""
        if task in self._started:
            self._started.remove(task)
            self._ending.add(task)
            after(_SETTLING, lambda: self._end(task), asyncio.get_running_loop())

    def _end(self, task: Task) -> None:
        if task not in self._ending:
            return
        self._ending.remove(task)
        with contextlib.suppress(SchedulerError):  # the calls that wait raise it; here it would reach the event loop
            self._tell("ended", task)
            self._ask()

    def _ask_again(self) -> None:
        self._asks_soon = False
        with contextlib.suppress(SchedulerError):
            self._ask()

    def _ask(self) -> None:
        """Asks the scheduler until it starts no more calls.

        **Raises:** `SchedulerError` if it fails, or if it starts none while calls wait and none is in flight.
        """
        while self._fault is None and (task := self._tell("next")) is not None:
            future = self._waiting.pop(task, None) if isinstance(task, Task) else None
            if future is None:
                raise self._broken(
                    f"next() gave {self._described(task)}. Give tasks that were added, each once, and give each "
                    "session a scheduler of its own."
                )
            if future.cancelled():  # its caller was cancelled while it waited: the scheduler hears that it ended
                self._tell("ended", task)
            else:
                self._started.add(task)
                future.set_result(None)
        if not (self._started or self._ending):
            waiting = sum(not future.cancelled() for future in self._waiting.values())
            if waiting:
                raise self._broken(
                    f"next() gave None while nothing was in flight and {waiting} calls waited, so nothing would ever "
                    "start. Give a task whenever all that were given have ended."
                )

    def _described(self, task: Any) -> str:
        if task in self._started or task in self._ending:
            return "a task a second time, which is in flight"
        return "a task that does not wait here" if isinstance(task, Task) else f"{task!r:.60}, which is no task"

    def _tell(self, method: str, *args: Task) -> Any:
        """Calls a method of the scheduler. After the scheduler's first fault it is not called any more.

        **Raises:** `SchedulerError` for whatever the method raises.
        """
        if self._fault is not None:
            return None
        try:
            return getattr(self._scheduler, method)(*args)
        except BaseException as error:  # also KeyboardInterrupt and SystemExit, which would end everybody's event loop
            raise self._broken(f"{method}() raised {type(error).__name__}: {error}", error) from error

    def _broken(self, what: str, cause: BaseException | None = None) -> SchedulerError:
        """Ends the scheduler's work: the calls that wait raise an error each. Returns one more to raise."""
        self._fault = f"the session's scheduler failed: {type(self._scheduler).__name__}.{what}", cause
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(_error(*self._fault))
                # Marks it as retrieved. If the waiting call is cancelled before it runs, asyncio would log that nobody
                # retrieved it.
                future.exception()
        self._waiting.clear()
        return _error(*self._fault)

    def _check(self) -> None:
        if self._fault is not None:
            raise _error(*self._fault)


def _error(what: str, cause: BaseException | None) -> SchedulerError:
    """A new exception for each call: raised in several, one would gather the tracebacks of all."""
    error = SchedulerError(what)
    error.__cause__ = cause
    return error
