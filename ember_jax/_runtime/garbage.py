"""Fewer garbage collections while a sweep runs.

Design note. CPython looks for cycles after every few hundred allocations, and each look at the old generation walks all
objects that are alive. A sweep keeps many objects alive on purpose, for its lanes in flight. At 10,000 lanes of
zero-latency calls the collector took 70 % of the time: a call took 50 µs, and 19 µs either with the collector off or
with the thresholds below. So collections are rarer while a sweep runs. The alternative, to switch the collector off,
was rejected: cycles that a host function makes would pile up over hours. The thresholds are the whole process's, so the
user's are restored when the last sweep ends.
"""

import contextlib
import gc
import threading
from collections.abc import Iterator

_CALM = (500_000, 20, 50)

_lock = threading.Lock()
_sweeps = 0  # how many run
_users: tuple[int, int, int] = gc.get_threshold()


@contextlib.contextmanager
def calm() -> Iterator[None]:
    """Within, garbage is collected rarely. An interpreter that collects even more rarely, or never, is left as it is.

    May be nested, and entered from several threads.
    """
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
            if not _sweeps and gc.get_threshold() == _CALM:  # else the user has set other ones meanwhile
                gc.set_threshold(*_users)
