"""The bar that shows how far the calls of running sweeps are.

Design note. There is one bar, as there is one terminal. It lives from when a sweep begins while none runs until none
runs any more, and shows the sum of all sweeps of that time, of whatever session; so what the user's code prints between
two sweeps stands between two bars. Calls know nothing of it: a sweep counts them in a `Tally` of plain integers, which
a thread of the bar's own reads five times a second. A sweep costs a timer of the event loop, set when nothing ran
before and cancelled at the end; the thread is started, and tqdm imported, when it fires.

What is known of the calls to come is exact where control flow is static. Where values decide, it is the least that is
left by what was decided so far, and grows as branches are taken and loops go on; it is never a guess.
"""

import asyncio
import collections
import contextlib
import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

# Nothing is shown of what ends sooner. How often the bar is drawn.
DELAY, PERIOD = 0.5, 0.2
# How long the end of a sweep waits for a terminal that takes nothing.
_CLOSE_SECONDS = 1.0
# The rate is that of so many last seconds: what the journal answers at the start of a rerun must soon be forgotten, and
# the time left grow while nothing comes. tqdm's own is of the last updates, however long ago they were.
_WINDOW = 30.0
_FORMAT = "{percentage:3.0f}%|{bar}| {n:,}/{total:,} calls [{elapsed}{postfix}]"


class Tally:
    """The calls of a sweep: how many there will be as far as is known, and how many have begun and ended."""

    __slots__ = ("begun", "ended", "known")

    def __init__(self, known: int = 0):
        self.known, self.begun, self.ended = known, 0, 0


class Counting(Protocol):
    """What sweeps run in: a session."""

    def counted(self) -> Mapping[str, float]:
        """The counts of its report so far, and `waiting`: how many calls wait for their turn."""
        ...


def is_wanted(setting: bool | None) -> bool:
    """Whether a bar is to be shown: as a session was told, else where somebody looks at a terminal or a notebook."""
    if setting is not None:
        return setting
    return (sys.stderr is not None and sys.stderr.isatty()) or _is_notebook()


def _is_notebook() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and "IPKernelApp" in shell.config


@contextlib.contextmanager
def shown(tally: Tally, session: Counting) -> Iterator[None]:
    """Within, on the event loop, a sweep runs. Where the last one ends the bar is complete on the screen."""
    global _bar
    bar = _bar = _bar or Bar()
    bar.begin(tally, session)
    try:
        yield
    finally:
        if bar.end() and _bar is bar:
            _bar = None


class Bar:
    """A bar for as long as sweeps run. Used from the event loop, which keeps its timer."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._running = 0
        self._tallies: list[Tally] = []
        self._before: dict[Counting, Mapping[str, float]] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._timer = asyncio.get_running_loop().call_later(DELAY, self._start)

    def begin(self, tally: Tally, session: Counting) -> None:
        """Shows one more sweep."""
        self._running += 1
        self._tallies.append(tally)
        if session not in self._before:
            self._before[session] = session.counted()

    def end(self) -> bool:
        """A sweep has ended; says whether it was the last one."""
        self._running -= 1
        if self._running:
            return False
        self._timer.cancel()
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)
        return True

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._show, name="ember-progress", daemon=True)
        self._thread.start()

    def _show(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone
            while self._known() < 2:  # of a single call nothing is to be told
                if self._stop.wait(PERIOD):
                    return
            drawn = _tqdm(self._known())
            drawn.start_t = time.time() - (time.monotonic() - self._began)
            past = collections.deque([(self._began, 0)], maxlen=int(_WINDOW / PERIOD))
            is_last = False
            while not is_last:
                past.append((time.monotonic(), self._draw(drawn, *past[0])))
                is_last = self._stop.wait(PERIOD)
            self._draw(drawn, self._began, 0)
            drawn.close()

    def _known(self) -> int:
        return sum(tally.known for tally in list(self._tallies))

    def _draw(self, drawn: Any, since: float, before: int) -> int:
        """Draws, with the rate since a time when so many calls had ended; returns how many have."""
        tallies = list(self._tallies)
        drawn.n = ended = sum(tally.ended for tally in tallies)
        drawn.total = max(self._known(), ended)
        words = [_pace(ended - before, time.monotonic() - since, drawn.total - ended)]
        words += self._said(sum(tally.begun for tally in tallies) - ended)
        drawn.set_postfix_str(", ".join(words), refresh=False)
        if widget := getattr(drawn, "container", None):  # a notebook's, which is told its length once
            widget.children[1].max = drawn.total
        drawn.refresh()
        return ended

    def _said(self, open_calls: int) -> list[str]:
        """What is told besides the number of calls: the cost so far, and those counts that are not zero."""
        counts: dict[str, float] = {}
        for session, before in list(self._before.items()):
            for name, value in session.counted().items():
                counts[name] = counts.get(name, 0) + value - (0 if name == "waiting" else before[name])
        waiting = int(counts["waiting"])
        told = {"in flight": open_calls - waiting, "waiting": waiting}
        told |= {name: int(counts[name]) for name in ("replayed", "merged", "retries", "throttled", "failed")}
        cost = "cost unknown" if math.isnan(counts["cost_usd"]) else f"${counts['cost_usd']:,.4f}"
        return [cost, *(f"{n:,} {name}" for name, n in told.items() if n > 0)]


def _pace(calls: int, seconds: float, left: int) -> str:
    """The rate of some calls, and the time that those that are left take at it."""
    if not calls or not left:
        return f"{calls / seconds:.3g}/s" if calls else "0/s"
    minutes, rest = divmod(round(left * seconds / calls), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{calls / seconds:.3g}/s, {f'{hours}:' if hours else ''}{minutes:02}:{rest:02} left"


def _tqdm(total: int) -> Any:
    # Imported where there is something to show: it takes as long as a small sweep.
    with warnings.catch_warnings():  # in a notebook without widgets it draws in letters, and need not say so
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm

    return tqdm(total=total, bar_format=_FORMAT, dynamic_ncols=True)


_bar: Bar | None = None


def _after_fork() -> None:
    global _bar
    _bar = None  # its thread is the parent's


os.register_at_fork(after_in_child=_after_fork)
