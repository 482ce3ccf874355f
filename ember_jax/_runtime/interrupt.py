"""Waiting for the event loop, and Ctrl-C.

Design note. Where a signal lands depends on where JAX runs a callback. On one CPU device it runs on the main thread,
inside the callback: JAX turns whatever is raised there into a `JaxRuntimeError`, which `except Exception` swallows. On
several devices the callbacks run on XLA's threads: the main thread gets `KeyboardInterrupt` and the callbacks would run
on as orphans. So:

- `wait`, on the main thread, cancels its work on `KeyboardInterrupt` and raises `CancelledError` into JAX; a watcher
  raises `KeyboardInterrupt` again as soon as the callback's frames have left the main thread's stack.
- A SIGINT handler, put in place of Python's default one only, cancels the work that waits on other threads and then
  does what the default one does.
"""

import _thread
import concurrent.futures
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
import jaxlib

from .._errors import CancelledError

_INTERRUPTED = "interrupted by Ctrl-C; what was answered so far is kept in the journal."
_JAX_FOLDERS = tuple(os.path.dirname(m.__file__) + os.sep for m in (jax, jaxlib) if m.__file__)

_lock = threading.Lock()
_waiting: dict[int, Callable[[], object]] = {}
_watcher: threading.Thread | None = None


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def install() -> None:
    """Makes Ctrl-C reach work that waits on other threads. Cheap; called whenever an operator is."""
    if _is_main() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_interrupt)


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    with _lock:
        cancels = list(_waiting.values())
    for cancel in cancels:
        cancel()
    signal.default_int_handler(number, frame)


def wait(future: concurrent.futures.Future[Any], cancel: Callable[[], object], *, in_callback: bool) -> Any:
    """The result of work on the event loop, interruptible.

    **Arguments:**

    - `future`: the work's future.
    - `cancel`: stops the work; called from any thread.
    - `in_callback`: whether JAX called us, so that `KeyboardInterrupt` must not be raised here.

    **Raises:** what the work raised; `KeyboardInterrupt`, or `CancelledError` inside a callback, on Ctrl-C.
    """
    with _lock:
        _waiting[id(future)] = cancel
    try:
        return future.result()
    except concurrent.futures.CancelledError:
        raise CancelledError("the calls were cancelled before they finished.") from None
    except KeyboardInterrupt:
        cancel()
        if not in_callback:
            raise
        _raise_again_outside(sys._getframe())
        raise CancelledError(_INTERRUPTED) from None
    finally:
        with _lock:
            _waiting.pop(id(future), None)


def settle() -> None:
    """Gives a pending Ctrl-C the time to arrive, in a frame of ours that JAX's error has reached."""
    watcher = _watcher
    if watcher is not None and _is_main():
        watcher.join(1.0)


def _raise_again_outside(frame: FrameType | None) -> None:
    """Raises `KeyboardInterrupt` on the main thread once the callback that `frame` is in has left its stack."""
    global _watcher
    inside: list[FrameType] = []
    while frame is not None and (not inside or _is_ours(frame) or frame.f_code.co_filename.startswith(_JAX_FOLDERS)):
        inside.append(frame)
        frame = frame.f_back
    _watcher = threading.Thread(target=_watch, args=(inside,), name="ember-interrupt", daemon=True)
    _watcher.start()


def _is_ours(frame: FrameType) -> bool:
    # our frames below JAX's callback machinery; the boundary's own frame, which called JAX, is left out
    return frame.f_globals.get("__name__", "").startswith("ember_jax.") and frame.f_code.co_name != "_through_jax"


def _watch(inside: list[FrameType]) -> None:
    global _watcher
    main = threading.main_thread().ident
    codes = {id(frame) for frame in inside}
    while main is not None:
        frame = sys._current_frames().get(main)
        while frame is not None and id(frame) not in codes:
            frame = frame.f_back
        if frame is None:
            break
        time.sleep(0.0005)
    _watcher = None
    _thread.interrupt_main()
