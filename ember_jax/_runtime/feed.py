"""What work on the event loop gives before it has ended, for a thread that takes it piece by piece.

Design note. The loop puts pieces into a queue and never waits for whoever takes them. The thread that takes them begins
the work with the first one that it asks for. If it stops asking (its iterator is closed or collected, or Ctrl-C comes),
the work is cancelled, as is the work that a thread waits for in `interrupt.wait`.
"""

import concurrent.futures
import queue
from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

from ..errors import CancelledError
from . import interrupt
from .loop import Loop

_T = TypeVar("_T")


class Feed(Generic[_T]):
    """Pieces on their way from the event loop to a thread."""

    def __init__(self) -> None:
        self._pieces: queue.SimpleQueue[_T | Feed[_T]] = queue.SimpleQueue()

    @property
    def waiting(self) -> int:
        """How many pieces were given and not taken."""
        return self._pieces.qsize()

    def give(self, piece: _T) -> None:
        """Gives a piece. Called on the event loop."""
        self._pieces.put(piece)

    def taken(self, loop: Loop, coroutine: Coroutine[Any, Any, Any]) -> Generator[_T, None, Any]:
        """Runs a coroutine that gives pieces, and yields them; returns what the coroutine returns.

        **Raises:** what the coroutine raises, when all pieces that came before it are taken; on Ctrl-C
        `KeyboardInterrupt`, or `CancelledError` where another thread has got that.
        """
        work = loop.work(coroutine)
        interrupt.install()
        interrupt.watch(work)
        loop.works.add(work)
        outcome: concurrent.futures.Future[Any] | None = None
        try:
            outcome = work.start()
            outcome.add_done_callback(lambda _: self._pieces.put(self))
            while True:
                piece = self._pieces.get()
                if isinstance(piece, Feed):
                    break
                yield piece
            try:
                return outcome.result()
            except concurrent.futures.CancelledError:
                raise CancelledError(interrupt.CANCELLED) from None
        finally:
            interrupt.forget(work)
            loop.works.discard(work)
            if outcome is None or not outcome.done():
                work.cancel()
                if not loop.is_current():  # where the iterator may be collected; the work ends when this has returned
                    work.wait_for_end(interrupt.END_SECONDS)


class SpokenWords(Feed[str]):
    """An answer's words as they come.

    **Attributes:**

    - `said`: those that were given so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.said = ""

    def give(self, piece: str) -> None:
        if piece:
            self.said += piece
            super().give(piece)
