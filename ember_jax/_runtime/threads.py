"""Threads for blocking Python functions.

Design note. `concurrent.futures.ThreadPoolExecutor` joins its threads when the interpreter exits, so one host function
that blocks would keep a program alive after Ctrl-C. These threads are daemons: they cannot hold anybody up.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any

# Blocking functions mostly wait; beyond this many the threads' own cost shows.
_MOST_THREADS = 256


class Threads:
    """A pool of daemon threads that grows as it is needed."""

    def __init__(self, most: int = _MOST_THREADS):
        self._most = most
        self._work: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._pending = 0

    async def run(self, function: Callable[[], Any]) -> Any:
        """Runs a function in a thread; if the caller is cancelled the result is dropped."""
        loop = asyncio.get_running_loop()
        result = loop.create_future()
        with self._lock:
            self._pending += 1
            if self._pending > self._threads < self._most:
                self._threads += 1
                threading.Thread(target=self._serve, name="ember-host", daemon=True).start()
        self._work.put((function, loop, result))
        return await result

    def _serve(self) -> None:
        while True:
            function, loop, result = self._work.get()
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
            del function, loop, result, outcome


def _set_result(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _set_exception(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        # a StopIteration cannot be raised into a future
        future.set_exception(RuntimeError(repr(error)) if isinstance(error, StopIteration) else error)
