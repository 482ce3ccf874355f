"""Waiting for the event loop, and Ctrl-C.

Design note. Where a signal lands depends on where JAX runs a callback. On one CPU device it runs on the main thread,
inside the callback: JAX turns whatever is raised there into an error of its own, which `except Exception` swallows. On
several devices the callbacks run on XLA's threads: the main thread gets `KeyboardInterrupt` and the callbacks would run
on as orphans. So a SIGINT handler, put in place of Python's default one only, cancels all work that anybody waits for.
Then it does what the default one does, unless JAX's callback is on the main thread's stack: then nothing is raised
there, and a watcher sends the signal again as soon as the callback has left the stack. (A real signal: it wakes the
main thread from whatever it waits for next. One that comes just before the main thread begins to wait does not, so it
is sent until it has arrived.) Where another handler raises inside a callback, `wait` does the same.
"""

import concurrent.futures
import contextlib
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from .._errors import CancelledError
from .._jax.internals import is_jaxs, runs_callback
from .loop import Work

_CANCELLED = "the calls were stopped before they finished; what was answered so far is kept in the journal."
# How long to wait for what was cancelled to end.
_END_SECONDS = 0.5

_waiting: dict[int, Work] = {}
_watcher: threading.Thread | None = None
_pending = False  # whether the watcher is yet to send Ctrl-C again
_unheard = False  # whether what it has sent is yet to arrive


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def install() -> None:
    """Makes Ctrl-C stop work. Cheap; called whenever an operator or its callback is."""
    if _is_main() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_interrupt)


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    global _unheard
    _unheard = False
    with contextlib.suppress(RuntimeError):  # another thread began or ended to wait; the next look finds all
        for work in list(_waiting.values()):
            work.cancel()
    inside = _callback_frames(frame)
    if not inside:
        signal.default_int_handler(number, frame)
    _raise_again_outside(inside)


def watch(work: Work) -> None:
    """Makes Ctrl-C stop work that nobody waits for yet; until `forget`."""
    _waiting[id(work)] = work


def forget(work: Work) -> None:
    """Undoes `watch`, when the work has ended."""
    _waiting.pop(id(work), None)


def wait(work: Work, *, in_callback: bool) -> Any:
    """The result of work on the event loop, interruptible.

    **Arguments:**

    - `work`: what to wait for.
    - `in_callback`: whether JAX called us, so that `KeyboardInterrupt` must not be raised here.

    **Raises:** what the work raised; on Ctrl-C `KeyboardInterrupt`, or `CancelledError` inside a callback.
    """
    install()
    try:
        _waiting[id(work)] = work
        if _is_pending():  # Ctrl-C came before there was anything to cancel, and is yet to be raised
            work.cancel()
        return work.result()
    except (concurrent.futures.CancelledError, KeyboardInterrupt) as stop:
        work.cancel()
        work.wait_for_end(_END_SECONDS)
        interrupted = isinstance(stop, KeyboardInterrupt)
        if interrupted and not in_callback:
            raise
        if interrupted:
            _raise_again_outside(_callback_frames(sys._getframe()))
        raise CancelledError(_CANCELLED) from None
    finally:
        _waiting.pop(id(work), None)


def settle() -> None:
    """Gives a pending Ctrl-C the time to arrive, in a frame of ours that JAX's error has reached."""
    watcher = _watcher
    if watcher is not None and watcher.is_alive() and _is_main():
        watcher.join(1.0)


def _is_pending() -> bool:
    """Whether a Ctrl-C is yet to be sent again."""
    return _pending


def _callback_frames(frame: FrameType | None) -> list[FrameType]:
    """The frames of the innermost JAX callback that a frame is in, with those of the call that led to it."""
    inside: list[FrameType] = []
    found = False
    while frame is not None:
        found = found or runs_callback(frame.f_code)
        if found and not is_jaxs(frame.f_code):
            return inside
        inside.append(frame)
        frame = frame.f_back
    return inside if found else []


def _raise_again_outside(inside: list[FrameType]) -> None:
    """Sends SIGINT again once some frames have left the main thread's stack."""
    global _watcher, _pending
    if not _pending:
        _pending = True
        _watcher = threading.Thread(target=_watch, args=(inside,), name="ember-interrupt", daemon=True)
        _watcher.start()


def _watch(inside: list[FrameType]) -> None:
    global _pending, _unheard
    main = threading.main_thread().ident
    watched = {id(frame) for frame in inside}
    while main is not None:
        frame = sys._current_frames().get(main)
        while frame is not None and id(frame) not in watched:
            frame = frame.f_back
        if frame is None:
            break
        time.sleep(0.0005)
    _pending = False  # first: the handler may find itself inside a callback again, and must not rely on this thread
    _unheard = main is not None and signal.getsignal(signal.SIGINT) is _on_interrupt
    if main is not None:
        signal.pthread_kill(main, signal.SIGINT)
    while _unheard and main is not None:
        time.sleep(0.05)
        if _unheard:
            signal.pthread_kill(main, signal.SIGINT)
