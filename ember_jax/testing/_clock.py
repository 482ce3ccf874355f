"""A clock for tests: the event loop's time jumps to the next timer as soon as there is nothing left to do.

Design note. The idea is that of trio's `MockClock` with `autojump_threshold=0`. The process's event loop is replaced by
one whose `time()` is a number. An asyncio loop polls for events between two rounds of callbacks. Where it would wait
there for its next timer, time jumps to that timer instead, if three things hold: no callback is ready, no socket or
other thread has sent anything, and no thread has work that somebody awaits. So only timers take time. Work takes none,
also in threads (an XLA compilation, a blocking host function). A thread that itself waits for calls does not hold time
up: the calls may sleep, and the thread would wait for ever.

Timers lie in a heap of this loop's own. They get there by `call_at`, the public method that all other ways to wait end
in. asyncio's own heap was rejected, as it is not exact: it fires whatever is due within the system clock's resolution,
and it reaches a timer by adding a difference to the time. Here time is set to the timer's own time, and timers of one
time fire in the order in which they were set.
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

from .._runtime.loop import get_loop, replaced
from .._runtime.threads import Threads
from ..errors import UnsupportedError


class VirtualClock:
    """While the `with` block lasts, waiting on the event loop takes virtual time, and no real time.

    This holds for `asyncio.sleep`, timeouts and everything else that sets timers, such as `async def` host functions
    and the latencies of simulated models. Work takes no virtual time, that of blocking host functions included.

    !!! danger

        - JAX may return before the calls have begun. Wait for results, with `jax.block_until_ready`, before `now` is
          read; calls that begin after the block take real time.
        - Time does not wait for sockets. While an answer is under way it jumps to the next timer, and that may be the
          request's own timeout. Real servers are for real time.
        - `time.sleep` in a blocking host function takes real time, and no virtual time.
        - A blocking host function may call operators, but only from its own thread, and may not wait for other
          threads that do: time would stand still for ever. Time also stands still while a coroutine spins on
          `asyncio.sleep(0)`.

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
        # A heap: when a timer is due, its number in the order in which timers were set, its handle, and a function that
        # makes its callback ready.
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
            if not handle.cancelled():  # a timer that fired just before it may have cancelled it
                callback(*args)

        ready = functools.partial(self.call_soon, fire, context=context)
        heapq.heappush(self._timers, (when, next(self._numbers), handle, ready))
        return handle

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":
        # The default executor serves `asyncio.to_thread` and name look-ups. It is replaced by our threads, which know
        # when one of them waits for the loop. Another executor's work holds time up until it is done.
        if executor is None:
            return self.create_task(self._threads.run(functools.partial(func, *args)))
        result = super().run_in_executor(executor, func, *args)
        self._threads.working.add(result)
        result.add_done_callback(self._threads.working.discard)
        return result

    def _advance(self, is_idle: bool) -> bool:
        """Makes the callbacks of all due timers ready, and returns whether there were any.

        If `is_idle`, and no thread works for the loop, time jumps to the next timer before.
        """
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
    """Polls for events. Before each wait it calls `advance`, and does not wait if that has made callbacks ready."""

    def __init__(self, advance: Callable[[bool], bool]):
        super().__init__()
        self._advance = advance

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # asyncio's own heap of timers is empty. So `timeout` is 0 if a callback is ready, else `None`.
        events = super().select(0)
        is_idle = timeout is None and not events
        if self._advance(is_idle) or not is_idle:
            return events
        return super().select(None)
