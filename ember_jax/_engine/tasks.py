"""Tasks: what takes time. A host call is one, and so is what a thread computes for a block of lanes.

Design note. A task that has ended has *landed*. It is not looked at then, but settled when the sweep works
its steps off next, once for all that landed in the same turn of the event loop: their lanes then share the runs of
segments.
"""

import asyncio
import functools
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from .failures import Failures
from .lane import Frame, FrameStep
from .stack import Stack


class _Journey:
    """What takes time, on its way.

    **Attributes:**

    - `work`: the coroutine that does it.
    - `step`: the step that ends with it; `None` for a block of lanes.
    - `succeed`, `fail`: of a block, told how it has ended.
    - `task`: carries it; `None` before that has begun.
    - `result`, `error`: how it has ended.
    """

    __slots__ = ("error", "fail", "result", "step", "succeed", "task", "work")

    def __init__(
        self,
        work: Coroutine[Any, Any, Any],
        step: FrameStep | None = None,
        succeed: Callable[[Any], object] | None = None,
        fail: Callable[[BaseException], object] | None = None,
    ):
        self.work, self.step, self.succeed, self.fail = work, step, succeed, fail
        self.task: asyncio.Task[None] | None = None
        self.result: Any = None
        self.error: BaseException | None = None


def _starter(loop: asyncio.AbstractEventLoop) -> Callable[[Coroutine[Any, Any, Any]], "asyncio.Task[Any]"]:
    """What makes a task. Since Python 3.12 it begins at once, and one that never waits has ended then."""
    if sys.version_info >= (3, 12):
        return functools.partial(asyncio.Task, loop=loop, eager_start=True)
    return functools.partial(asyncio.Task, loop=loop)


class Tasks:
    """The tasks of a sweep that are in flight, or have landed and are not settled.

    **Arguments:**

    - `stack`, `failures`: told how steps have ended.
    - `ended`: what is awaited by whoever waits for the sweep; cancelled with any of the tasks.
    - `landed`: called when one has landed.
    """

    def __init__(
        self,
        stack: Stack,
        failures: Failures,
        ended: "asyncio.Future[None]",
        landed: Callable[[], None],
    ):
        self._stack, self._failures = stack, failures
        self._ended, self._tell_landed = ended, landed
        self._create_task = _starter(ended.get_loop())
        self._journeys: set[_Journey] = set()
        self._landed: deque[_Journey] = deque()

    def await_step(self, frame: Frame, index: int, work: Coroutine[Any, Any, Any]) -> None:
        """Does what takes time of one lane's step, which ends or fails with it."""
        self._begin(_Journey(work, (frame, index)))

    def await_block(
        self,
        work: Coroutine[Any, Any, Any],
        succeed: Callable[[Any], object],
        fail: Callable[[BaseException], object],
    ) -> None:
        """Does what takes time for many lanes; tells its result, or why it failed."""
        self._begin(_Journey(work, None, succeed, fail))

    def are_left(self) -> bool:
        """Whether any has not been settled."""
        return bool(self._journeys)

    def settle(self) -> None:
        """Ends the steps whose tasks have landed."""
        while self._landed:
            self._settle(self._landed.popleft())

    def discard(self) -> None:
        """Settles the tasks that have landed without a word: what they wait for does not go on."""
        self._journeys.difference_update(self._landed)
        self._landed.clear()

    async def cancel(self) -> None:
        """Cancels those in flight, and waits until they have ended."""
        journeys = list(self._journeys)
        tasks = [journey.task for journey in journeys if journey.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for journey in journeys:  # of a task that never began, the coroutine would warn that it was never awaited
            journey.work.close()

    def _begin(self, journey: _Journey) -> None:
        self._journeys.add(journey)
        journey.task = self._create_task(self._carry(journey))

    async def _carry(self, journey: _Journey) -> None:
        """Does the work, and tells that it has landed: a callback of the task would take a turn of the loop for it."""
        try:
            journey.result = await journey.work
        except Exception as error:
            journey.error = error
        except BaseException as error:  # the task is cancelled, or the process is to end
            journey.error = error
            raise
        finally:
            self._landed.append(journey)
            self._tell_landed()

    def _settle(self, journey: _Journey) -> None:
        self._journeys.discard(journey)
        error = journey.error
        if isinstance(error, asyncio.CancelledError):
            self._ended.cancel()
        elif journey.step is not None:
            if error is None:
                self._stack.complete(*journey.step, journey.result)
            else:
                self._failures.fail(*journey.step, error)
        elif error is not None and journey.fail is not None:
            journey.fail(error)
        elif journey.succeed is not None:
            journey.succeed(journey.result)
