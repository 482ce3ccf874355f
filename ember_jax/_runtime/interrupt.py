"""Waiting for the event loop, and Ctrl-C.

Design note. What Ctrl-C does by default depends on where JAX runs a callback. On one CPU device the callback runs on
the main thread, and so `KeyboardInterrupt` is raised inside the callback. JAX turns whatever is raised there into an
error of its own, which `except Exception` swallows. On several devices callbacks run on XLA's threads. The main thread
then gets `KeyboardInterrupt`, and the callbacks would run on as orphans.

So there is a SIGINT handler of ours. It replaces Python's default handler only, never one of the user's. It first
cancels all work that anybody waits for. What it does then depends on the main thread's stack:

- No JAX callback is on it: the handler does what the default one does.
- A JAX callback is on it: the handler raises nothing. A watcher thread sends the signal again as soon as the callback
  has left the stack.

The watcher sends a real signal, because a signal wakes the main thread from whatever it waits for next. A signal that
arrives just before the main thread begins to wait does not wake it, so the watcher sends again until the handler has
run. Where a handler of the user's raises inside a callback, `wait` starts the same watcher.
"""

import concurrent.futures
import contextlib
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from .._jax.internals import is_jaxs, runs_callback
from ..errors import CancelledError
from .loop import Work

CANCELLED = "the calls were stopped before they finished; a journal has kept what was answered so far."
# For how many seconds work that was cancelled is waited for, until it has ended.
END_SECONDS = 0.5

# The work that Ctrl-C cancels, by its identity. There is no lock: the handler runs between two instructions of the main
# thread, which might hold the lock at that moment, and would then wait for itself.
_waiting: dict[int, Work] = {}
_watcher: threading.Thread | None = None
_pending = False  # whether the watcher has yet to send the signal again
_unheard = False  # whether the watcher has sent the signal, and the handler has yet to run


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def install() -> None:
    """Puts our handler in place of Python's default one, if it is there and this is the main thread.

    It is cheap, and called whenever an operator or its callback is called: the first call may be on another thread,
    where Python allows no handler to be set.
    """
    if _is_main() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_interrupt)


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    global _unheard
    _unheard = False
    # A RuntimeError says that another thread began or ended to wait while the list was made. The handler must not fail
    # for it; the next signal finds all work.
    with contextlib.suppress(RuntimeError):
        for work in list(_waiting.values()):
            work.cancel()
    inside = _callback_frames(frame)
    if not inside:
        signal.default_int_handler(number, frame)
    _raise_again_outside(inside)


def watch(work: Work) -> None:
    """Makes Ctrl-C cancel work that was begun and that nobody waits for yet, until `forget` is called."""
    _waiting[id(work)] = work


def forget(work: Work) -> None:
    """Undoes `watch`; to be called when the work has ended."""
    _waiting.pop(id(work), None)


def wait(work: Work, *, in_callback: bool) -> Any:
    """Waits for work on the event loop, so that Ctrl-C can stop it, and returns its result.

    **Arguments:**

    - `work`: what to wait for.
    - `in_callback`: whether a callback of JAX called this, so that `KeyboardInterrupt` must not be raised here.

    **Raises:** what the work raised; on Ctrl-C `KeyboardInterrupt`, or `CancelledError` inside a callback.
    """
    install()
    try:
        _waiting[id(work)] = work
        # Ctrl-C may have come inside this callback before this work was begun. It had nothing to cancel then, and the
        # watcher only sends it again outside the callback, which would wait for this work.
        if _is_pending():
            work.cancel()
        return work.result()
    except (concurrent.futures.CancelledError, KeyboardInterrupt) as stop:
        # Our handler cancels the work, so its future is cancelled. `KeyboardInterrupt` comes where the handler is the
        # user's, or where it found no callback on the stack.
        work.cancel()
        work.wait_for_end(END_SECONDS)
        interrupted = isinstance(stop, KeyboardInterrupt)
        if interrupted and not in_callback:
            raise
        if interrupted:
            _raise_again_outside(_callback_frames(sys._getframe()))
        raise CancelledError(CANCELLED) from None
    finally:
        _waiting.pop(id(work), None)


def settle() -> None:
    """Waits up to a second for a pending Ctrl-C to arrive.

    It is called in a frame of ours that JAX's error has reached: outside the callback, so that the watcher sends the
    signal now. Without the wait JAX's error might be raised before `KeyboardInterrupt` is.
    """
    watcher = _watcher  # read once: another thread may set another
    if watcher is not None and watcher.is_alive() and _is_main():
        watcher.join(1.0)


def _is_pending() -> bool:
    """Whether the watcher has yet to send Ctrl-C again."""
    return _pending


def _callback_frames(frame: FrameType | None) -> list[FrameType]:
    """The frames, from `frame` outwards, up to the user's or our own frame that called into JAX.

    They are those of the innermost JAX callback that `frame` is in, and JAX's own frames that led to it. The list is
    empty if the frame is in no callback.
    """
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
    """Starts a thread that sends SIGINT again once the frames `inside` have left the main thread's stack."""
    global _watcher, _pending
    if not _pending:
        _pending = True
        _watcher = threading.Thread(target=_watch, args=(inside,), name="ember-interrupt", daemon=True)
        _watcher.start()


def _watch(inside: list[FrameType]) -> None:
    global _pending, _unheard
    main = threading.main_thread().ident
    watched = {id(frame) for frame in inside}  # `inside` holds the frames, so that their identities are not used again
    while main is not None:
        frame = sys._current_frames().get(main)
        while frame is not None and id(frame) not in watched:
            frame = frame.f_back
        if frame is None:
            break
        time.sleep(0.0005)
    # Set before the signal is sent. The handler may find that the main thread is in another callback by then, and must
    # start another watcher, as this one has stopped looking at the stack.
    _pending = False
    # Only our own handler tells that it has run. Any other one is sent the signal once.
    _unheard = main is not None and signal.getsignal(signal.SIGINT) is _on_interrupt
    if main is not None:
        signal.pthread_kill(main, signal.SIGINT)
    while _unheard and main is not None:
        time.sleep(0.05)
        if _unheard:
            signal.pthread_kill(main, signal.SIGINT)
