"""Tasks: what takes time. A host call is one, and so is what a thread computes for a block of lanes.

Design note. A task that has ended has *landed*. It is not looked at in its callback, but settled when the sweep works
its steps off next, once for all that landed in the same turn of the event loop: their lanes then share the runs of
segments.
"""

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from .failures import Failures
from .lane import Frame, FrameStep
from .stack import Stack


def _starter(loop: asyncio.AbstractEventLoop) -> Callable[[Coroutine[Any, Any, Any]], "asyncio.Task[Any]"]:
    """What makes a task. Since Python 3.12 it begins at once, and one that never waits has ended then."""
    if sys.version_info >= (3, 12):
        return lambda work: asyncio.Task(work, loop=loop, eager_start=True)
    return loop.create_task


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
        self._steps: dict[asyncio.Task[Any], FrameStep] = {}
        self._blocks: dict[asyncio.Task[Any], tuple[Callable[[Any], object], Callable[[BaseException], object]]] = {}
        self._landed: deque[asyncio.Task[Any]] = deque()
        self._land = self._on_end  # bound once: a method is made anew at each use

    def await_step(self, frame: Frame, index: int, work: Coroutine[Any, Any, Any]) -> None:
        """Does what takes time of one lane's step, which ends or fails with it."""
        task = self._create_task(work)
        self._steps[task] = frame, index
        if task.done():
            self._on_end(task)
        else:
            task.add_done_callback(self._land)

    def await_block(
        self,
        work: Coroutine[Any, Any, Any],
        succeed: Callable[[Any], object],
        fail: Callable[[BaseException], object],
    ) -> None:
        """Does what takes time for many lanes; tells its result, or why it failed."""
        task = self._create_task(work)
        self._blocks[task] = succeed, fail
        task.add_done_callback(self._land)

    def are_left(self) -> bool:
        """Whether any has not been settled."""
        return bool(self._steps or self._blocks)

    def settle(self) -> None:
        """Ends the steps whose tasks have landed."""
        while self._landed:
            self._settle(self._landed.popleft())

    def discard(self) -> None:
        """Settles the tasks that have landed without a word: what they wait for does not go on."""
        while self._landed:
            task = self._landed.popleft()
            self._steps.pop(task, None)
            self._blocks.pop(task, None)
            if not task.cancelled():
                task.exception()  # asked for, so that asyncio does not warn of an error that nobody looked at

    async def cancel(self) -> None:
        """Cancels those in flight, and waits until they have ended."""
        tasks = [*self._steps, *self._blocks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _on_end(self, task: asyncio.Task[Any]) -> None:
        self._landed.append(task)
        self._tell_landed()

    def _settle(self, task: asyncio.Task[Any]) -> None:
        step, block = self._steps.pop(task, None), self._blocks.pop(task, None)
        if task.cancelled():
            self._ended.cancel()
            return
        error = task.exception()
        if step is not None:
            if error is None:
                self._stack.complete(*step, task.result())
            else:
                self._failures.fail(*step, error)
        elif block is not None:
            succeed, fail = block
            if error is None:
                succeed(task.result())
            else:
                fail(error)
