"""The event loop in a thread of its own, on which every call runs.

Design note. There is one loop for the whole process, in a thread of its own. So a notebook's own running loop is left
alone; calls from many threads meet in one place, where equal calls in flight can share one request; and the blocking
code of one thread does not stop the IO of another. The alternative, a loop for each thread that calls, has none of
these. After a fork the child has no such thread, and gets a fresh loop on first use. At interpreter exit work is
cancelled and the thread is joined, so that no callback runs into a half-destroyed interpreter.
"""

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from ..errors import CancelledError, UnsupportedError
from .threads import Threads, current_result

# How long the end of the process waits, for work that is cancelled and for the thread. The thread is a daemon, so that
# it cannot hold up the exit any longer.
_EXIT_SECONDS = 2.0


class Work:
    """A coroutine that is to run on the loop for another thread. It may be cancelled before it has begun.

    It begins when it is waited for, or with `start`, before anybody waits.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], loop: "Loop"):
        self._coroutine = coroutine
        self._loop = loop
        # What is awaited from the thread that makes this work, if that is one of the loop's own pool: an operator that
        # is called in a host function. That thread then waits for the loop, see `Threads.waiting`.
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
        """Waits for the coroutine on the loop, blocks until it has ended, and returns or raises its outcome."""
        self._loop.works.add(self)
        try:
            return self.start().result()
        finally:
            self._loop.works.discard(self)

    def cancel(self) -> None:
        """Stops the coroutine soon; from any thread, at any time."""
        self._cancelled = True  # for `_run`, if the coroutine has not begun
        with contextlib.suppress(RuntimeError):  # the loop is closed, and has cancelled all its tasks before that
            self._loop.call(self._stop)

    def wait_for_end(self, seconds: float) -> None:
        """Waits up to `seconds` until a coroutine that was cancelled has ended.

        The future that `result` waits for is cancelled at once. The coroutine ends later, after its `finally` blocks.
        """
        if self._task is None:  # it never began; closed, it does not warn that it was never awaited
            self._coroutine.close()
        else:
            self._ended.wait(seconds)

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> Any:
        # Set before anything else: `wait_for_end` closes the coroutine if there is no task, and a coroutine that runs
        # must not be closed by another thread.
        self._task = asyncio.current_task()
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

    - `make`: makes the asyncio loop, and is given the threads that work for it. By default the loop is one that keeps
        the machine's time.

    **Attributes:**

    - `threads`: the threads that run blocking host functions for it.
    - `asyncio`: the asyncio loop.
    - `is_virtual`: whether its clock may be another than the machine's. A timer that is set for other than calls, such
        as that of a progress bar, might then change the time that calls take.
    - `works`: the work that other threads wait for.
    - `closers`: coroutine functions that are called, on the loop, before its thread ends.
    """

    def __init__(self, make: Callable[[Threads], asyncio.AbstractEventLoop] | None = None):
        self.threads = Threads()
        self.asyncio = make(self.threads) if make else asyncio.new_event_loop()
        self.is_virtual = make is not None
        self.works: set[Work] = set()
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
        """Starts a coroutine from another thread, and returns the future of its outcome."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.asyncio)

    def work(self, coroutine: Coroutine[Any, Any, Any]) -> Work:
        """Makes work of a coroutine, to be waited for with `interrupt.wait`, which runs it."""
        return Work(coroutine, self)

    def call(self, function: Callable[[], Any]) -> None:
        """Calls a function on the loop's thread, soon."""
        self.asyncio.call_soon_threadsafe(function)

    def close(self) -> None:
        """Cancels what runs, frees connections, ends the thread. It takes four seconds at most."""
        if not self._thread.is_alive():
            return
        with contextlib.suppress(concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            self.submit(self._wind_down()).result(_EXIT_SECONDS)
        self.call(self.asyncio.stop)
        self.threads.close()
        self._thread.join(_EXIT_SECONDS)
        if not self._thread.is_alive():  # a loop that still runs, as something on it blocks, must not be closed
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
    # Looked at without the lock first, as every call comes here. A loop that was once set stays usable.
    if _loop is not None:
        return _loop
    with _lock:
        if _ended:
            raise CancelledError("no calls can be made: the interpreter is exiting.")
        if _loop is None:
            _loop = Loop()
    return _loop


def started() -> Loop | None:
    """The process's loop, if it was started."""
    return _loop


@contextlib.contextmanager
def replaced(make: Callable[[Threads], asyncio.AbstractEventLoop]) -> Iterator[Loop]:
    """Within, all calls run on another loop, which `make` makes; what it still runs at the end is cancelled.

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
    """Raises `UnsupportedError` on the loop's own thread, where blocking would wait for itself.

    `what` is the thing that was called and blocks, for the message.
    """
    if _loop is not None and _loop.is_current():
        raise UnsupportedError(
            f"{what} was called from an `async def` host function. It would wait for the very event loop that runs "
            "that function. Make the host function a plain `def`: it then runs in a thread, where operators work."
        )


def _after_fork() -> None:
    # A new lock too: another thread of the parent may have held the old one, and does not exist in the child.
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
