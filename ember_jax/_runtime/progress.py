"""The bar that shows how many calls of the running sweeps have ended.

Design note. There is one bar, as there is one terminal. It lives from when a first sweep begins until no sweep runs any
more, and shows the sum of all sweeps of that time, of whatever session. So what the user's code prints between two
sweeps stands between two bars.

Calls know nothing of the bar. A sweep counts its calls in a `Tally` of plain integers, which a thread of the bar's own
reads five times a second. So the cost of a sweep is one timer of the event loop, which is cancelled when the last sweep
ends. Only when the timer fires is the thread started and tqdm imported: most sweeps end before.

A call is what the report counts as one: a call of a model that a lane asks for, however it is answered. One that the
journal answers and one that is merged with an equal one count, another attempt of a call does not, and Python functions
do not. So when sweeps have ended their bar says what `run.report().calls` has grown by.

While no call has begun there is nothing to count, and the bar says so. A program is traced and compiled before its
sweep, which is done in a thread of the user's, where `preparing` begins a bar. (The compilation of a program that an
operator is only a part of is JAX's alone: no bar can tell of it.)

The number of calls to come is exact where control flow is static. Where values decide, it is the least number that is
possible by what was decided so far, and it grows as branches are taken and loops go on. It is never a guess.
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

from .loop import Loop

# After how many seconds the bar appears (what ends sooner shows none), and the seconds between two drawings.
DELAY, PERIOD = 0.5, 0.2
# How many seconds the end of a sweep waits for the bar's thread, which a terminal that takes no output holds up.
_CLOSE_SECONDS = 1.0
# The rate is that of the last so many seconds. A rerun begins with a burst of answers from the journal, which must soon
# count no more, and the time left must grow while nothing comes. tqdm's own rate has neither property: it is that of
# the last updates, however long ago they were.
_WINDOW = 30.0
_COMPILING, _NO_CALL = "compiling, no call yet [{elapsed}]", "no call yet [{elapsed}]"
_FORMAT = "{percentage:3.0f}%|{bar}| {n:,}/{total:,} calls [{elapsed}{postfix}]"


class Tally:
    """The calls of a sweep, as the report counts them: how many at least, how many have begun, how many of these ended.

    One that `prepares` stands for a program before its sweep.

    The event loop writes the numbers and the bar's thread reads them without a lock, as each is a plain integer.
    """

    __slots__ = ("begun", "ended", "known", "prepares")

    def __init__(self, known: int = 0, prepares: bool = False):
        self.known, self.begun, self.ended = known, 0, 0
        self.prepares = prepares


class Counting(Protocol):
    """What the bar needs of a session, in which sweeps run."""

    def counted(self) -> Mapping[str, float]:
        """The counts of its report so far, and `waiting`: how many calls wait for their turn."""
        ...

    def held(self) -> list[str]:
        """What holds calls back for more than some seconds, and for how long, in words."""
        ...


async def _left(inside: contextlib.ExitStack) -> None:
    inside.close()


def is_wanted(setting: bool | None) -> bool:
    """Whether a bar is to be shown: the session's `setting`; if it is `None`, on a terminal and in a notebook."""
    if setting is not None:
        return setting
    return (sys.stderr is not None and sys.stderr.isatty()) or _is_notebook()


def _is_notebook() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and "IPKernelApp" in shell.config


@contextlib.contextmanager
def shown(tally: Tally, session: Counting) -> Iterator[None]:
    """Within, a sweep runs, and the bar shows it. Used on the event loop.

    When the last sweep ends, this returns when the bar is complete on the screen.
    """
    global _bar
    bar = _bar = _bar or Bar()
    bar.begin(tally, session)
    try:
        yield
    finally:
        if bar.end() and _bar is bar:
            _bar = None


@contextlib.contextmanager
def preparing(session: Counting, loop: Loop) -> Iterator[None]:
    """Within, a program is traced and compiled, and may then run; the bar says so. Not used on the event loop."""
    inside = contextlib.ExitStack()
    loop.call(lambda: inside.enter_context(shown(Tally(prepares=True), session)))
    try:
        yield
    finally:
        loop.submit(_left(inside)).result(_CLOSE_SECONDS)


class Bar:
    """One bar, from the first of some sweeps to the end of the last. Used on the event loop, which has its timer."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._running = 0
        self._tallies: list[Tally] = []
        self._before: dict[Counting, Mapping[str, float]] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._timer = asyncio.get_running_loop().call_later(DELAY, self._start)

    def begin(self, tally: Tally, session: Counting) -> None:
        """Counts one more sweep in."""
        self._running += 1
        if not tally.prepares:  # what was prepared runs
            for other in self._tallies:
                other.prepares = False
        self._tallies.append(tally)
        # What the session had counted before is subtracted: the bar tells of these sweeps only.
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
            # A bar of a single call would tell nothing until its end.
            while self._known() < 2 and not self._prepares():
                if self._stop.wait(PERIOD):
                    return
            drawn = _tqdm(self._known())
            drawn.start_t = time.time() - (time.monotonic() - self._began)  # tqdm would count from now
            past = collections.deque([(self._began, 0)], maxlen=int(_WINDOW / PERIOD))
            is_last = False
            while not is_last:
                past.append((time.monotonic(), self._draw(drawn, *past[0])))
                is_last = self._stop.wait(PERIOD)
            self._draw(drawn, self._began, 0)
            drawn.leave = self._known() > 1
            drawn.close()

    def _prepares(self) -> bool:
        return any(tally.prepares for tally in list(self._tallies))

    def _known(self) -> int:
        return sum(tally.known for tally in list(self._tallies))

    def _draw(self, drawn: Any, since: float, before: int) -> int:
        """Draws the bar and returns how many calls have ended.

        The rate is that since the time `since` (monotonic), when `before` calls had ended.
        """
        tallies = list(self._tallies)
        drawn.n = ended = sum(tally.ended for tally in tallies)
        drawn.total = max(self._known(), ended)
        words = [_pace(ended - before, time.monotonic() - since, drawn.total - ended)]
        words += self._said(sum(tally.begun for tally in tallies) - ended)
        drawn.set_postfix_str(", ".join(words), refresh=False)
        begun, prepares = (any(getattr(tally, what) for tally in tallies) for what in ("begun", "prepares"))
        drawn.bar_format = _FORMAT if begun else _COMPILING if prepares else _NO_CALL
        # tqdm tells a notebook's bar its length only when it is made, and ours grows.
        if widget := getattr(drawn, "container", None):
            widget.children[1].max = drawn.total
        drawn.refresh()
        return ended

    def _said(self, open_calls: int) -> list[str]:
        """What stands behind the number of calls: the cost so far, and those counts that are not zero."""
        counts: dict[str, float] = {}
        for session, before in list(self._before.items()):
            for name, value in session.counted().items():
                counts[name] = counts.get(name, 0) + value - (0 if name == "waiting" else before[name])
        waiting = int(counts["waiting"])
        told = {"in flight": open_calls - waiting, "waiting": waiting}
        told |= {name: int(counts[name]) for name in ("replayed", "merged", "retries", "throttled", "failed")}
        cost = "cost unknown" if math.isnan(counts["cost_usd"]) else f"${counts['cost_usd']:,.4f}"
        held = [words for session in list(self._before) for words in session.held()]
        return [cost, *(f"{n:,} {name}" for name, n in told.items() if n > 0), *held]


def _pace(calls: int, seconds: float, left: int) -> str:
    """The rate of `calls` in `seconds`, and the time that the calls that are left take at that rate."""
    if not calls or not left:
        return f"{calls / seconds:.3g}/s" if calls else "0/s"
    minutes, rest = divmod(round(left * seconds / calls), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{calls / seconds:.3g}/s, {f'{hours}:' if hours else ''}{minutes:02}:{rest:02} left"


def _tqdm(total: int) -> Any:
    # Imported only where there is something to show: the import takes as long as a small sweep.
    with warnings.catch_warnings():  # in a notebook without widgets tqdm warns that it draws with characters instead
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm

    return tqdm(total=total, bar_format=_FORMAT if total else _COMPILING, dynamic_ncols=True)


_bar: Bar | None = None


def _after_fork() -> None:
    global _bar
    _bar = None  # the bar's thread exists in the parent only


os.register_at_fork(after_in_child=_after_fork)
