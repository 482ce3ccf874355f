"""The event loop in a thread of its own, on which every call runs.

Design note. One loop for the whole process: a notebook's own running loop is left alone, calls from many threads meet
in one place (so that equal calls in flight can share one request), and nobody's blocking code stops another's IO.
After a fork the child has no threads; it gets a fresh loop on first use. At interpreter exit work is cancelled and the
thread joined, so that no callback runs into a half-destroyed interpreter.
"""

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from .._errors import CancelledError, UnsupportedError
from .threads import Threads, current_result

_EXIT_SECONDS = 2.0


class Work:
    """A coroutine that is to run on the loop for another thread, and may be cancelled before it has begun.

    It begins when it is waited for, or with `start`, before anybody waits.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], loop: "Loop"):
        self._coroutine = coroutine
        self._loop = loop
        self._waiting = current_result()
        self._outcome: concurrent.futures.Future[Any] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False
        self._ended = threading.Event()

    def start(self) -> "concurrent.futures.Future[Any]":
        """Begins it, unless it has begun; returns its outcome to come."""
        if self._outcome is None:
            self._outcome = self._loop.submit(self._run())
        return self._outcome

    def result(self) -> Any:
        """Waits for it; returns or raises its outcome."""
        self._loop.works.add(self)
        try:
            return self.start().result()
        finally:
            self._loop.works.discard(self)

    def cancel(self) -> None:
        """Stops it soon; from any thread, at any time."""
        self._cancelled = True
        with contextlib.suppress(RuntimeError):  # the loop is closed, and has stopped it
            self._loop.call(self._stop)

    def wait_for_end(self, seconds: float) -> None:
        """Waits until what was cancelled has ended, which is later than its future knows."""
        if self._task is None:
            self._coroutine.close()
        else:
            self._ended.wait(seconds)

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> Any:
        self._task = asyncio.current_task()  # first: who cancels it without a task closes the coroutine
        try:
            if self._cancelled:
                self._coroutine.close()
                raise asyncio.CancelledError
            with self._loop.threads.waiting(self._waiting):
                return await self._coroutine
        finally:
            self._ended.set()


class Loop:
    """An asyncio loop in a daemon thread.

    **Arguments:**

    - `make`: makes the loop, given the threads that work for it; by default one that keeps the machine's time.

    **Attributes:**

    - `is_virtual`: whether its time may be another, so that a timer would change it.
    """

    def __init__(self, make: Callable[[Threads], asyncio.AbstractEventLoop] | None = None):
        self.threads = Threads()
        self.asyncio = make(self.threads) if make else asyncio.new_event_loop()
        self.is_virtual = make is not None
        # What other threads wait for.
        self.works: set[Work] = set()
        # What to do before the thread ends: coroutine functions, called in the loop.
        self.closers: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._thread = threading.Thread(target=self._serve, name="ember-loop", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.asyncio)
        self.asyncio.run_forever()

    def is_current(self) -> bool:
        """Whether the caller runs on the loop's thread."""
        return threading.current_thread() is self._thread

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
        """Starts a coroutine from another thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.asyncio)

    def work(self, coroutine: Coroutine[Any, Any, Any]) -> Work:
        """A coroutine that somebody is going to wait for, with `interrupt.wait`."""
        return Work(coroutine, self)

    def call(self, function: Callable[[], Any]) -> None:
        """Calls a function on the loop's thread, soon."""
        self.asyncio.call_soon_threadsafe(function)

    def close(self) -> None:
        """Cancels what runs, frees connections, ends the thread."""
        if not self._thread.is_alive():
            return
        with contextlib.suppress(concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            self.submit(self._wind_down()).result(_EXIT_SECONDS)
        self.call(self.asyncio.stop)
        self.threads.close()
        self._thread.join(_EXIT_SECONDS)
        if not self._thread.is_alive():
            self.asyncio.close()

    async def _wind_down(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for closer in self.closers:
            await closer()


_lock = threading.Lock()
_loop: Loop | None = None
_ended = False


def get_loop() -> Loop:
    """The process's loop, started on first use.

    **Raises:** `CancelledError` once the interpreter is exiting.
    """
    global _loop
    if _loop is not None:
        return _loop
    with _lock:
        if _ended:
            raise CancelledError("no calls can be made: the interpreter is exiting.")
        if _loop is None:
            _loop = Loop()
    return _loop


@contextlib.contextmanager
def replaced(make: Callable[[Threads], asyncio.AbstractEventLoop]) -> Iterator[Loop]:
    """Lets another loop run all calls within; what it still runs at the end is cancelled.

    **Raises:** `UnsupportedError` while calls run: they belong to the loop on which they began.
    """
    global _loop
    own = get_loop()
    if own.works or own.is_current():
        raise UnsupportedError(
            "The event loop's clock cannot be changed while calls run. Change it before they start, and not inside "
            "a host function."
        )
    other = Loop(make)
    with _lock:
        _loop = other
    try:
        yield other
    finally:
        with _lock:
            if _loop is other:  # not so in a process forked within
                _loop = own
        other.close()


def forbid_in_loop(what: str) -> None:
    """Raises where blocking would wait for itself: on the loop's own thread."""
    if _loop is not None and _loop.is_current():
        raise UnsupportedError(
            f"{what} was called from an `async def` host function. It would wait for the very event loop that runs "
            "that function. Make the host function a plain `def`: it then runs in a thread, where operators work."
        )


def _after_fork() -> None:
    global _loop, _lock
    _loop, _lock = None, threading.Lock()


@atexit.register
def _at_exit() -> None:
    global _ended
    with _lock:
        _ended = True
    if _loop is not None:
        _loop.close()


os.register_at_fork(after_in_child=_after_fork)
