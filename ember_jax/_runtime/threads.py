"""Threads for blocking Python functions.

Design note. `concurrent.futures.ThreadPoolExecutor` joins its threads when the interpreter exits, so one host function
that blocks would keep a program alive after Ctrl-C. These threads are daemons: they cannot hold anybody up.

An event loop whose time is virtual must know whether threads work for it, so what is awaited from them is kept in a
set. What a thread works on is no part of it while the thread itself waits for the loop.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

# Blocking functions mostly wait; beyond this many the threads' own cost shows.
_MOST_THREADS = 256

# In a thread of a pool, `result` is what is awaited from it.
_thread = threading.local()


class Threads:
    """A pool of daemon threads that grows as it is needed.

    **Attributes:**

    - `working`: what is awaited from threads that work. Used from the event loop only.
    """

    def __init__(self, most: int = _MOST_THREADS):
        self._most = most
        self._work: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._pending = 0
        self.working: set[asyncio.Future[Any]] = set()

    async def run(self, function: Callable[[], Any]) -> Any:
        """Runs a function in a thread; if the caller is cancelled the result is dropped."""
        loop = asyncio.get_running_loop()
        result = loop.create_future()
        with self._lock:
            self._pending += 1
            if self._pending > self._threads < self._most:
                self._threads += 1
                threading.Thread(target=self._serve, name="ember-host", daemon=True).start()
        self.working.add(result)
        self._work.put((function, loop, result))
        try:
            return await result
        finally:
            self.working.discard(result)

    @contextlib.contextmanager
    def waiting(self, result: "asyncio.Future[Any] | None") -> Iterator[None]:
        """Within, the thread that works on `result` waits for the loop; `None` is a thread of somebody else's."""
        if result is None:
            yield
            return
        self.working.discard(result)
        try:
            yield
        finally:
            if not result.done():  # nobody awaits it any more
                self.working.add(result)

    def close(self) -> None:
        """Ends the threads, each after what it works on."""
        with self._lock:
            for _ in range(self._threads):
                self._work.put(None)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            function, loop, result = work
            _thread.result = result
            try:
                outcome, settle = function(), _set_result
            except BaseException as error:  # handed to the waiting lane, whatever it is
                outcome, settle = error, _set_exception
            with self._lock:
                self._pending -= 1
            try:
                loop.call_soon_threadsafe(settle, result, outcome)
            except RuntimeError:  # the loop closed while the function ran; nobody waits
                return
            _thread.result = None
            del function, loop, result, outcome, work


def current_result() -> "asyncio.Future[Any] | None":
    """What is awaited from the calling thread, if it is one of a pool."""
    return getattr(_thread, "result", None)


def _set_result(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _set_exception(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        # a StopIteration cannot be raised into a future
        future.set_exception(RuntimeError(repr(error)) if isinstance(error, StopIteration) else error)
