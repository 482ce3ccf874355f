"""Asks a scheduler on behalf of a session's calls, and holds it to what it promises.

Design note. A call that has ended sets off others at the same moment, but they come some rounds of the event loop
later: its sweep must hear of it, go on, and begin them. A slot given away before would go to a call that waits, and not
to the one that the policy prefers. So the scheduler is asked, and told of an end, only when that many rounds have
passed. This takes no time that a clock could tell, so what is ready at the same time is compared, as in the schedules
that theorems are about; calls that are set off by work in threads may come later than that, and find the slot taken.

A scheduler is somebody's code. Its first fault ends its work: the calls that wait raise it, later ones do at once, and
those in flight end as they would have. So no call waits for ever, whatever it does short of not returning.
"""

import asyncio
import contextlib
import itertools
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

from .._errors import SchedulerError
from .scheduler import Path, Scheduler, Task

# The rounds of the loop from the end of a call until those that it sets off have come: three, and seven in batches.
_SETTLING = 8


class Turns:
    """The calls of a session that wait for a scheduler, or were started by it. Used from one event loop at a time."""

    def __init__(self, scheduler: Scheduler):
        self._scheduler = scheduler
        self._orders = itertools.count()
        self._waiting: dict[Task, asyncio.Future[None]] = {}
        self._started: set[Task] = set()
        self._ending: set[Task] = set()
        self._asks_soon = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._fault: tuple[str, BaseException | None] | None = None

    def task(self, model: str, lane: tuple[int, ...], scope: str, path: Path, tokens: float = 0.0) -> Task:
        """A call, as the scheduler sees it."""
        return Task(model, lane, scope, path.depth, path.ahead, tokens, next(self._orders))

    @contextlib.asynccontextmanager
    async def turn(self, task: Task) -> AsyncIterator[None]:
        """Within, a call is started. Raises `SchedulerError` if the scheduler fails."""
        try:
            await self.enter(task)
            yield
        finally:
            self.leave(task)

    async def enter(self, task: Task) -> None:
        """Waits until a call is started. It is to be left whether or not this returns.

        **Raises:** `SchedulerError` if the scheduler fails.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # that on which ends were to be told is closed
            self._loop, self._asks_soon = loop, False
            for ending in list(self._ending):
                self._end(ending)
        self._end(task)  # it is tried again so soon that it has not ended yet
        self._check()
        self._tell("add", task)
        future = self._waiting[task] = loop.create_future()
        if not self._asks_soon:
            self._asks_soon = True
            self._settled(_SETTLING, self._ask_again)
        await future

    def priority(self, task: Task) -> float:
        """Whose turn it is at a limit: lower first. Raises `SchedulerError` if the scheduler fails."""
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
            self._settled(_SETTLING, lambda: self._end(task))

    def _end(self, task: Task) -> None:
        if task not in self._ending:
            return
        self._ending.remove(task)
        with contextlib.suppress(SchedulerError):  # raised by the calls that wait
            self._tell("ended", task)
            self._ask()

    def _ask_again(self) -> None:
        self._asks_soon = False
        with contextlib.suppress(SchedulerError):
            self._ask()

    def _ask(self) -> None:
        """Starts what may start now."""
        while self._fault is None and (task := self._tell("next")) is not None:
            future = self._waiting.pop(task, None) if isinstance(task, Task) else None
            if future is None:
                raise self._broken(
                    f"next() gave {self._described(task)}. Give tasks that were added, each once, and give each "
                    "session a scheduler of its own."
                )
            if future.cancelled():
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
        """Calls the scheduler; after its first fault, nothing of it."""
        if self._fault is not None:
            return None
        try:
            return getattr(self._scheduler, method)(*args)
        except BaseException as error:  # also what would end the event loop for everybody
            raise self._broken(f"{method}() raised {type(error).__name__}: {error}", error) from error

    def _broken(self, what: str, cause: BaseException | None = None) -> SchedulerError:
        """Ends the scheduler's work: those who wait raise an error, of which one is returned."""
        self._fault = f"the session's scheduler failed: {type(self._scheduler).__name__}.{what}", cause
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(_error(*self._fault))
                future.exception()  # marked as seen: who waits may be cancelled meanwhile
        self._waiting.clear()
        return _error(*self._fault)

    def _check(self) -> None:
        if self._fault is not None:
            raise _error(*self._fault)

    def _settled(self, rounds: int, then: Callable[[], None]) -> None:
        """Calls a function when so many rounds of the loop have passed."""
        if rounds:
            asyncio.get_running_loop().call_soon(self._settled, rounds - 1, then)
        else:
            then()


def _error(what: str, cause: BaseException | None) -> SchedulerError:
    """An error of its own for each call: a traceback is of one."""
    error = SchedulerError(what)
    error.__cause__ = cause
    return error
