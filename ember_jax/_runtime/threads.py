"""Threads for blocking Python functions.

Design note. `concurrent.futures.ThreadPoolExecutor` was rejected: it joins its threads when the interpreter exits, so
one host function that blocks would keep a program alive after Ctrl-C. The threads here are daemons, for which the
interpreter does not wait.

An event loop with a virtual clock may let time pass only while no thread works for it. So the futures that are awaited
from threads are kept in a set, `working`. While a thread itself waits for the loop (a host function has called an
operator), its future is taken out of the set. Left in, it would stop the clock that the operator's calls wait for.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

# Blocking functions mostly wait, so there are many more threads than processors. With still more the cost of the
# threads themselves shows.
_MOST_THREADS = 256

# How a function has ended: what is to be called with the future that waits for it, and its outcome.
_Ended: TypeAlias = tuple[Callable[["asyncio.Future[Any]", Any], None], "asyncio.Future[Any]", Any]

# In a thread of a pool, `result` is the future that is awaited from the thread.
_thread = threading.local()


class Threads:
    """A pool of daemon threads that grows as it is needed.

    **Arguments:**

    - `most`: how many threads there may be.

    **Attributes:**

    - `working`: the futures that are awaited from threads that work. Used from the event loop only.
    """

    def __init__(self, most: int = _MOST_THREADS):
        self._most = most
        self._work: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0  # how many were started
        self._pending = 0  # how many functions run or wait for a thread
        self.working: set[asyncio.Future[Any]] = set()
        # By loop, the outcomes that it has not been told yet. A loop is woken for the first of them: it takes
        # microseconds, and much of what runs here takes less.
        self._ended: dict[asyncio.AbstractEventLoop, list[_Ended]] = {}

    async def run(self, function: Callable[[], Any]) -> Any:
        """Runs a function in a thread, and returns or raises its outcome.

        If the caller is cancelled, the function runs on, as a thread cannot be stopped, and its outcome is dropped.
        """
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
        """Within, the thread that is to give `result` waits for the loop. `None` is for a thread of no pool of ours."""
        if result is None:
            yield
            return
        self.working.discard(result)
        try:
            yield
        finally:
            if not result.done():  # if it is done, its caller was cancelled, and nothing would take it out again
                self.working.add(result)

    def close(self) -> None:
        """Ends the threads, each after the function that it runs. It does not wait for them."""
        with self._lock:
            for _ in range(self._threads):
                self._work.put(None)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            function, loop, result = work
            _thread.result = result
            try:
                outcome, settle = function(), _set_result
            except BaseException as error:  # also a SystemExit: raised here it would only end the thread
                outcome, settle = error, _set_exception
            with self._lock:
                self._pending -= 1
                ended = self._ended.setdefault(loop, [])
                ended.append((settle, result, outcome))
                is_first = len(ended) == 1
            if is_first:
                try:
                    loop.call_soon_threadsafe(self._tell, loop)
                except RuntimeError:  # the loop closed while the function ran; nobody waits
                    self._ended.pop(loop, None)
                    return
            # The thread may wait for work for hours, and would keep the last function's values alive so long.
            _thread.result = None
            del function, loop, result, outcome, work, ended

    def _tell(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tells a loop, in its own thread, what has ended."""
        with self._lock:
            ended = self._ended.pop(loop, [])
        for settle, result, outcome in ended:
            settle(result, outcome)


def current_result() -> "asyncio.Future[Any] | None":
    """The future that is awaited from the calling thread, or `None` if the thread is of no pool."""
    return getattr(_thread, "result", None)


def _set_result(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _set_exception(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        # asyncio refuses to set a StopIteration as a future's exception: a coroutine that awaits would seem to end.
        future.set_exception(RuntimeError(repr(error)) if isinstance(error, StopIteration) else error)
