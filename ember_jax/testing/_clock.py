"""A clock for tests: the event loop's time jumps to the next timer as soon as there is nothing left to do.

Design note. After trio's `MockClock` with `autojump_threshold=0`. The process's event loop is replaced by one whose
`time()` is a number. An asyncio loop polls for events between two rounds of callbacks; where it would wait there for
its next timer, time jumps instead, if three things hold: no callback is ready, no socket or other thread has sent
anything, and no thread has work that somebody awaits. So work takes no time, in threads too (an XLA compilation, a
blocking host function); only timers do. A thread that itself waits for calls does not hold time up: they may sleep.

Timers lie in a heap of the loop's own, through `call_at`, the public method that every other way to wait ends in.
asyncio's heap fires what is due within the system clock's resolution and reaches a timer by adding a difference to
the time; here time is set to the timer's own, and what is due at the same time fires in the order it was set.
"""

import asyncio
import contextlib
import contextvars
import functools
import heapq
import itertools
import math
import selectors
from collections.abc import Callable
from types import TracebackType
from typing import Any

from .._errors import UnsupportedError
from .._runtime.loop import get_loop, replaced
from .._runtime.threads import Threads


class VirtualClock:
    """While the `with` block lasts, what calls wait for on the event loop takes virtual time, and no real time.

    Covers `asyncio.sleep`, timeouts and everything else that sets timers: `async def` host functions, simulated models'
    latencies. Work takes no virtual time, blocking host functions included.

    !!! danger

        - JAX may return before the calls have begun. Wait for results, with `jax.block_until_ready`, before `now` is
          read; calls that begin after the block take real time.
        - Time does not wait for sockets. While an answer is under way it jumps to the next timer, and that may be the
          request's own timeout. Real servers are for real time.
        - `time.sleep` in a blocking host function takes real time, and no virtual time.
        - A blocking host function may call operators, but only from its own thread, and may not wait for other
          threads that do: time would stand still, for ever. So it does while a coroutine spins on `asyncio.sleep(0)`.

    **Attributes:**

    - `now`: the virtual seconds since it was opened. A timer fires exactly at its time, so sums of durations that
        floating point adds exactly, such as multiples of 1/64, are met exactly.

    **Raises:** `UnsupportedError` when it is opened while calls run, or another one is open. When it is closed, calls
    that other threads still wait for raise `CancelledError`.

    **Example:**

        with VirtualClock() as clock:
            answers = jax.block_until_ready(jax.vmap(op)(questions))
        assert clock.now < 60
    """

    def __init__(self) -> None:
        self._events: _Events | None = None
        self._open = contextlib.ExitStack()

    @property
    def now(self) -> float:
        return 0.0 if self._events is None else self._events.time()

    def __enter__(self) -> "VirtualClock":
        if isinstance(get_loop().asyncio, _Events):
            raise UnsupportedError("A VirtualClock is open already, and calls have one time. Close it first.")
        loop = self._open.enter_context(replaced(_Events))
        assert isinstance(loop.asyncio, _Events)
        self._events = loop.asyncio
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()


class _Events(asyncio.SelectorEventLoop):
    """An event loop whose time is virtual; `threads` work for it."""

    def __init__(self, threads: Threads):
        self._threads = threads
        self._now = 0.0
        # When, in which order they were set, and what to do.
        self._timers: list[tuple[float, int, asyncio.TimerHandle, Callable[[], object]]] = []
        self._numbers = itertools.count()
        super().__init__(_Selector(self._advance))

    def time(self) -> float:
        return self._now

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        context = contextvars.copy_context() if context is None else context
        handle = asyncio.TimerHandle(when, callback, args, self, context)

        def fire() -> None:
            if not handle.cancelled():  # by what fired just before
                callback(*args)

        ready = functools.partial(self.call_soon, fire, context=context)
        heapq.heappush(self._timers, (when, next(self._numbers), handle, ready))
        return handle

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":
        if executor is None:  # `asyncio.to_thread` and name look-ups: in threads that are known by who waits for them
            return self.create_task(self._threads.run(functools.partial(func, *args)))
        result = super().run_in_executor(executor, func, *args)
        self._threads.working.add(result)
        result.add_done_callback(self._threads.working.discard)
        return result

    def _advance(self, is_idle: bool) -> bool:
        """Makes what is due ready, after a jump to the next timer if nothing else is to be done; whether any was."""
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if is_idle and timers and timers[0][0] < math.inf and not self._threads.working:
            self._now = max(self._now, timers[0][0])
        found = False
        while timers and timers[0][0] <= self._now:
            heapq.heappop(timers)[3]()
            found = True
        return found


class _Selector(selectors.DefaultSelector):
    """Polls for events; `advance` is called before each wait, and instead of it where it makes something ready."""

    def __init__(self, advance: Callable[[bool], bool]):
        super().__init__()
        self._advance = advance

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # asyncio knows of no timers, so the timeout is 0 if a callback is ready, and else there is none.
        events = super().select(0)
        is_idle = timeout is None and not events
        if self._advance(is_idle) or not is_idle:
            return events
        return super().select(None)
