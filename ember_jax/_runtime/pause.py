"""Pauses after refusals that come in a row, whatever the service says of how long to wait.

Design note. A quota of a whole minute that is used up refuses *all* calls until the minute is over, and some services
say nothing of when that is. To send on at a lower pace would only collect refusals, and to let each call wait by itself
would not help either: every one of the calls that wait would have to find out anew. So the wait is the gate's.

A pause begins when `_ROW` calls that were sent one after another are refused. The first one lasts half a second. Then
one call is sent, on trial. If that one is refused too, the next pause lasts twice as long, and so on up to a minute.
When a trial is answered, calls go on. A second after a trial has begun, others may begin too, although there is no
answer: refusals are quick, and answers may take minutes. (Refusals in a row were preferred to a share of refusals:
calls that are refused by chance, or because the pace is somewhat too high, are seldom neighbours.)

What was learned: if the service refused for more than some seconds, then it has accepted a certain number of calls from
one time that it opened to the next, and that is the pace it keeps. The time is known up to the length of the last
pause. If it may have been a minute, it is taken to be one.
"""

import collections
import math

# How many calls in a row have to be refused.
_ROW = 4
# The seconds of the first pause, and of the longest.
_FIRST, _LONGEST = 0.5, 60.0
# The seconds after which a trial that was not refused is taken to be accepted.
_TRIAL_SECONDS = 1.0
# A service that refuses everything for fewer seconds proves no pace: a token bucket may do so after a burst.
_PROOF_SECONDS = 4.0
_PERIOD = 60.0


class Pause:
    """When the calls of a gate pause, and what is learned from it.

    **Attributes:**

    - `until`: the end of the pause; nothing was ever held back if it is minus infinity.
    """

    def __init__(self) -> None:
        self.until = -math.inf
        # How long the last pause was, 0 if a call was answered since; and when the first of those in a row began.
        self._seconds = 0.0
        self._began = -math.inf
        # When the call on trial was sent, and the one before it; `None` if there was none.
        self._trial: float | None = None
        self._last_trial = -math.inf
        # Which calls were refused lately, by their numbers.
        self._refused: collections.deque[int] = collections.deque(maxlen=4 * _ROW)
        # Since the service last opened: when its first call was sent, how many were until it was shut, and how many of
        # those were refused; and how many calls were sent since the last pause.
        self._opened: float | None = None
        self._sent = self._lost = self._resumed = 0

    def ready(self) -> float:
        """The time from which on a call may begin."""
        if self._is_trying() and self._trial is not None:
            return self._trial + _TRIAL_SECONDS
        return self.until

    def _is_trying(self) -> bool:
        return self._seconds > _FIRST

    def take(self, now: float) -> None:
        """A call begins."""
        if self._opened is None:
            self._opened = now
        if not self._seconds:
            self._sent += 1
            return
        self._resumed += 1
        if self._trial is None:
            self._trial = now

    def give_back(self, at: float) -> None:
        """A call that began at the time `at` was cancelled before it was sent."""
        if not self._seconds:
            self._sent -= 1
        elif at == self._trial:
            self._trial = None

    def refused(self, now: float, at: float, number: int, wait: float | None) -> bool:
        """A call was refused; says whether a pause begins.

        **Arguments:**

        - `at`: when the call was sent.
        - `number`: how many calls began before it.
        - `wait`: the seconds for which the service asks to wait; `None` if it does not.
        """
        self._lost += not self._seconds or at < self._began
        if at < self.until:  # sent before this pause began, so it tells nothing new
            return False
        self._refused.append(number)
        if not (self._is_trying() or self._is_row()):
            return False
        if not self._seconds:
            self._began = now
        self._last_trial = at
        self._seconds = min(max(2 * self._seconds, _FIRST), _LONGEST)
        self.until, self._trial, self._resumed = now + max(self._seconds, wait or 0.0), None, 0
        return True

    def _is_row(self) -> bool:
        top = max(self._refused)
        return sum(number > top - _ROW for number in self._refused) == _ROW

    def answered(self, at: float) -> float | None:
        """A call that was sent at the time `at` was answered; the pace that the service keeps, if that was learned."""
        if not self._seconds or at < self.until:
            return None
        opened, accepted, closed = self._opened, self._sent - self._lost, at - self._began
        last = self._last_trial
        self._seconds, self._opened, self._sent, self._lost = 0.0, at, self._resumed, 0
        self._refused.clear()
        if opened is None or closed < _PROOF_SECONDS or accepted < 1:
            return None
        is_minute = last - opened < _PERIOD <= at - opened
        return accepted / (_PERIOD if is_minute else at - opened)
