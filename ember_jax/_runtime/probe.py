"""Finds out what a service allows, where it does not say so, by when it refuses.

Design note. The number of calls in flight doubles with each round trip, from ten on. The calls are evenly spaced: if
they came in bursts, a doubling would overrun the service by a whole window of calls before the first refusal is seen.

From the first refusal (429) on, calls are paced at the rate that was *proven*. The number of calls accepted per second
is no proof of it, because a service may save up what was not used, and let it come at once. A service is assumed to
save at most one second's worth. Then `n` calls accepted in `t` seconds prove a rate of `n / (t + 1)`, where a pause
between two calls counts as one second at most. Among all stretches of time that end with the refusal, the one that
proves the highest rate counts. If too few calls were accepted to prove a rate, the window is halved. A service whose
quota is that of a whole minute saves up a minute's worth, and is told by refusing everything for long: see `pause.py`,
which counts what it accepts from one time that it opens to the next.

Pacing begins at 95 % of the proven rate. It grows by 1 % per second and in addition with the cube of time, as CUBIC's
window does (RFC 9438): slowly near the limit that was met, and quickly when that is long past. Each call counts for a
twentieth of a second at most: few calls prove little, and a slow pace would else be refused every few calls.

Some services refuse a share of calls at any pace. Refusals are taken to be by chance if few calls are refused, and
some of those at less than the pace that was sustained before. Chance refusals slow nothing down. If refusals become
many, this was wrong: they count again, and it takes twice as many strange ones to be taken for chance again.
"""

import bisect
import itertools
import math

# The window that a probe begins with: how many calls may be in flight.
SLOW_START = 10.0
# How many seconds' worth of a quota a service is assumed to save up.
_SAVED_SECONDS = 1.0
# Refusals of calls that were sent within this time after a change of pace do not change the pace again: they may be the
# effect of the old pace.
_SETTLING_SECONDS = 2.0
# The fewest accepted calls that prove a rate at the first refusal. With fewer the window is halved.
_PROOF = 20
# How many seconds before a refusal an accepted call was sent at most, to count as proof at a later refusal.
_FRESH_SECONDS = 30.0
# How many accepted calls are remembered at least; at twice as many the oldest are dropped.
_REMEMBERED = 4096
# How many seconds a timer may fire late without the pace being lost: calls that are due by then are made up for.
_LATENESS = 0.01
# At a pace that was found out, calls that are due within this many seconds begin together. A timer for each call would
# cost more than the call.
_TICK = 0.002
# For how many seconds of growth one call counts at most.
_GROWTH_SECONDS = 0.05
# The slowest pace that refusals can lead to, in calls per second.
_SLOWEST = 0.1
# Refusals are few up to the share `_FEW` of calls. The share is a moving average over about `_SHARE_CALLS` calls. After
# `_STRANGE` refusals at less than the pace that was sustained, while refusals are few, they are taken to be by chance.
_FEW, _SHARE_CALLS, _STRANGE = 0.2, 50, 3
# What is left of the pace that was sustained each time that it is lowered, so that one that was found too high is
# forgotten.
_FORGOTTEN = 0.97
# How many refusals show that a service keeps a lower pace, if they are half of the calls; one more if they are a third.
_LOST = 2


class Probe:
    """Finds out what a service allows, by when it refuses. The design note above says how.

    **Arguments:**

    - `most`: how many calls may be in flight at most.

    `is_known`, an argument of its methods, says whether a quota of requests is given or told, by which calls are paced
    anyway. The probe then holds nothing back until a refusal has proven that the service allows less.
    """

    def __init__(self, most: float):
        self._most = most
        # How many calls may be in flight while there is no `_rate`.
        self._window = min(SLOW_START, most)
        # The moving average of an answer's time; 0 until there was one.
        self._round_trip = 0.0
        # When the next call is due by the pace; and when it may begin, which is at the end of the tick it is due in.
        self._free_at = self._opens_at = -math.inf
        # The pace in calls per second that a refusal has proven, `None` until there was one; since when it grows, where
        # time that proves nothing is added; when the pace or the window was last lowered; when a call last began.
        self._rate: float | None = None
        self._since = self._lowered = self._taken = -math.inf
        # When the calls that were not refused were sent, ascending. Calls in flight are among them.
        self._accepted: list[float] = []
        # The highest pace that was sustained; the share of calls that are refused; whether refusals are by chance.
        self._best = 0.0
        self._share = 0.0
        self._by_chance = False
        # How many refusals there were at less than `_best`, and how many show that they are by chance.
        self._strange, self._needed = 0, _STRANGE
        # When a refusal last lowered the pace or the window, and so the service had nothing saved up; and how many of
        # the calls that were sent since were refused.
        self._empty, self._lost = -math.inf, 0

    def rate(self, now: float, is_known: bool = False) -> float:
        """The pace in calls per second; infinite if it holds nothing back, or nothing is known yet."""
        if self._rate is None:
            return math.inf if is_known or not self._round_trip else self._window / self._round_trip
        seconds = max(now - self._since, 0.0)
        return self._rate * (0.95 + 0.01 * seconds + (seconds / 60) ** 3)

    def ready(self, in_flight: int, is_known: bool) -> float:
        """The time from which on the next call may begin; infinite if first a call has to end."""
        if self._rate is None and is_known:
            return -math.inf
        return math.inf if self._rate is None and in_flight >= self._window else self._opens_at

    def take(self, now: float) -> None:
        """A call begins."""
        if self._rate is not None and now > self._free_at + _LATENESS:
            # Nothing was sent since `_free_at`. A pace that is not used proves nothing, so it must not grow with time.
            self._since += now - self._free_at
        if self._rate is not None and self._taken > -math.inf:
            self._since += max(min(now, self._free_at) - self._taken - _GROWTH_SECONDS, 0.0)
        self._taken = now
        self._space(max(self._free_at, now - _LATENESS), 1 / self.rate(now))
        self._accepted.append(now)
        if len(self._accepted) > 2 * _REMEMBERED:
            del self._accepted[:_REMEMBERED]

    def give_back(self, now: float, at: float) -> None:
        """A call that began at the time `at` was cancelled before anything was sent."""
        self._forget(at)
        self._space(self._free_at, -1 / self.rate(now))

    def _space(self, since: float, gap: float) -> None:
        """The next call is due `gap` seconds after `since`."""
        self._free_at = since + gap
        is_fine = 0 < gap < _TICK
        self._opens_at = math.ceil(self._free_at / _TICK) * _TICK if is_fine else self._free_at

    def _forget(self, at: float) -> int:
        """Takes a call that was sent at the time `at` from those that were accepted; says how many came before it."""
        before = bisect.bisect_left(self._accepted, at)
        if before < len(self._accepted) and self._accepted[before] == at:
            del self._accepted[before]
        return before

    def learn(self, now: float, rate: float) -> None:
        """Paces calls at a rate that the service was found to keep, besides what it saves up."""
        self._rate = self._best = rate
        self._strange, self._by_chance = 0, False
        self._accepted.clear()
        self._pace_from(now, -math.inf)
        self._space(now, 1 / self.rate(now))

    def succeeded(self, now: float, at: float, in_flight: int) -> None:
        """A call that was sent at the time `at` was answered."""
        self._share -= self._share / _SHARE_CALLS
        self._round_trip += (now - at - self._round_trip) / (8 if self._round_trip else 1)
        # One more for each answer doubles the window in a round trip. With fewer in flight than half of the window,
        # something else keeps calls from being sent, and an answer proves nothing about a larger window.
        if in_flight >= self._window / 2:
            self._window = min(self._window + 1, self._most)

    def refused(self, now: float, at: float, resume: float, is_known: bool) -> None:
        """Slows down after the refusal of a call that was sent at the time `at`; nothing is sent until `resume`."""
        self._share += (1 - self._share) / _SHARE_CALLS
        before = self._forget(at)
        is_few = self._share < _FEW
        if (sustained := self._sustained(before, at)) is not None:
            pace = self.rate(now)
            self._rate = self._best = min(max(sustained, pace / 8 if pace < math.inf else 0.0), pace)
            self._pace_from(max(now, resume), at)
            return
        if at < self._lowered + _SETTLING_SECONDS or (self._by_chance and is_few):
            return
        if self._by_chance:  # refusals are many by now, so they were not by chance
            self._by_chance, self._needed = False, 2 * self._needed
        is_strange = self._rate is not None and is_few and self.rate(now) < self._best
        if not is_strange:
            self._strange = 0
        else:
            # Strange: the service has sustained more than the pace at which it now refuses.
            self._strange += 1
            if self._strange >= self._needed:
                self._by_chance, self._strange, self._rate = True, 0, None
                self._window = max(self._window, self._best * self._round_trip)
                return
        if self._rate is not None:
            pace = self.rate(now)
            # The proven rate, but no more than the pace at which the service has just refused, and no less than half of
            # it, however little was accepted lately.
            self._rate = max(min(_proven(self._accepted[:before], at), pace), pace / 2, min(pace, _SLOWEST))
            self._best = max(_FORGOTTEN * self._best, self._rate) if is_few else self._rate
            del self._accepted[: bisect.bisect_left(self._accepted, at - _FRESH_SECONDS)]
        elif before >= _PROOF:
            self._rate = self._best = _proven(self._accepted[:before], at)
            self._accepted.clear()
        elif is_known:  # a limit that is given or told is believed until enough calls prove that it is wrong
            return
        else:
            self._window = max(self._window / 2, 1.0)
        self._pace_from(max(now, resume), at)

    def _sustained(self, before: int, at: float) -> float | None:
        """The rate that a service has kept since it last had nothing saved up; `None` unless it refuses many calls.

        What it has accepted since then is what it allows.
        """
        if self._empty == -math.inf or at <= self._empty:
            return None
        self._lost += 1
        kept = before - bisect.bisect_right(self._accepted, self._empty)
        is_much = (self._lost >= _LOST and self._lost >= kept) or (self._lost > _LOST and 2 * self._lost >= kept)
        return kept / max(at - self._empty, _SAVED_SECONDS) if is_much and kept else None

    def _pace_from(self, start: float, empty: float) -> None:
        self._free_at = self._opens_at = self._since = self._lowered = start
        self._empty, self._lost = empty, 0


def _proven(accepted: list[float], refused: float) -> float:
    """The highest rate that calls sent at the times `accepted` prove, when one sent at the time `refused` was refused.

    It goes back from the refusal, and tries every stretch of time that ends there, see the design note.
    """
    best, seconds = 0.0, _SAVED_SECONDS
    for calls, (start, end) in enumerate(itertools.pairwise([refused, *reversed(accepted)]), 1):
        seconds += min(start - end, _SAVED_SECONDS)
        best = max(best, calls / seconds)
    return best
