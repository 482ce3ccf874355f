"""Fewer garbage collections while a sweep runs.

Design note. CPython looks for cycles after every few hundred allocations, and each look at the old generation walks all
objects that are alive. A sweep keeps many alive on purpose, its lanes in flight: at 10,000 lanes of zero-latency calls
the collector took 70 % of the time (50 µs a call; 19 µs with it off, and with these thresholds). So while a sweep runs
collections are rarer. They are not off: a host function's own cycles must not pile up over hours. The thresholds are
the process's; the user's come back when the last sweep ends.
"""

import contextlib
import gc
import threading
from collections.abc import Iterator

_CALM = (500_000, 20, 50)

_lock = threading.Lock()
_sweeps = 0
_users: tuple[int, int, int] = gc.get_threshold()


@contextlib.contextmanager
def calm() -> Iterator[None]:
    """Collects rarely within; an interpreter that collects even more rarely, or never, is left as it is."""
    global _sweeps, _users
    with _lock:
        _sweeps += 1
        if _sweeps == 1:
            _users = gc.get_threshold()
            if 0 < _users[0] < _CALM[0]:
                gc.set_threshold(*_CALM)
    try:
        yield
    finally:
        with _lock:
            _sweeps -= 1
            if not _sweeps and gc.get_threshold() == _CALM:
                gc.set_threshold(*_users)
