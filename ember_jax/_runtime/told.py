"""One quota as the service itself tells it, whatever form the quota has.

Design note. Nothing is sent beyond what the freshest report said was left, plus what has come back since. Calls that
were sent after the report's own call are not in the report, and are subtracted from what it says. Besides, a quota of
some minutes at most is spread over its time, as services enforce quotas over shorter times too. A quota of an hour or
a day is not: what is left of it is there to be spent.

Reports are not believed if they do not follow the calls that were sent. Proxies send headers that never change, or
those of another model. When calls were answered that must have taken from the quota, and next to nothing is missing,
the reports are ignored, until others show what was taken.
"""

import math
from typing import NamedTuple

from ..providers.quota import Allowance
from .bucket import BURST_SECONDS, Bucket, minutely
from .refill import PERIOD, Refill, RefillKind

# The share of the rate told by a service that is counted on to have come back. The service's numbers are rounded.
_CAUTION = 0.95
# How many calls have to be answered before reports are judged; the share of what these took that may have come back
# since (tokens are estimates, and may be several times too many); and the shares that have to be missing, of which the
# smaller one keeps trust and the larger one earns it back.
_JUDGED, _BACK, _MISSING_LITTLE, _MISSING_MUCH = 8, 0.1, 0.1, 0.3


class _QuotaReport(NamedTuple):
    """A report: what it says, when its call was sent, how much was taken by then, and when it was heard."""

    said: Allowance
    at: float
    taken: float
    heard: float


class _Trust:
    """Whether reports follow the calls that were sent."""

    def __init__(self) -> None:
        self.is_earned = True
        self._since: tuple[float, float, float] | None = None
        self._answered = 0
        self._refused = 0.0

    def refused(self, cost: float) -> None:
        self._refused += cost

    def hear(self, said: Allowance, at: float, taken: float) -> None:
        """Takes note of a report that came with an answer."""
        self._answered += 1
        left, then, before = self._since or (said.left, at, taken)
        if self._since is None or said.left > left:
            return self._restart(said, at, taken)
        if self._answered < _JUDGED or taken <= before:
            return None
        sent = taken - before - self._refused
        lacking = sent - _refill(said) * (at - then)
        if lacking >= (1 - _BACK) * sent > 0:
            share = (left - said.left) / lacking
            self.is_earned = share > (_MISSING_LITTLE if self.is_earned else _MISSING_MUCH)
        return self._restart(said, at, taken)

    def _restart(self, said: Allowance, at: float, taken: float) -> None:
        self._since, self._answered, self._refused = (said.left, at, taken), 0, 0.0


def _refill(said: Allowance) -> float:
    """What comes back per second by one report alone, by the faster reading."""
    if said.limit is None:
        return 0.0
    full = (said.limit - said.left) / said.reset_s if said.reset_s else 0.0
    return max(full, said.limit / PERIOD)


class Told:
    """One quota as the service itself tells it.

    **Attributes:**

    - `taken`: what all calls so far have taken of the quota, by their estimates.
    - `pace`: paces calls; `None` until reports tell at which rate, and where what is left is there to be spent.
    """

    def __init__(self) -> None:
        self.taken = 0.0
        self.pace: Bucket | None = None
        self._refill, self._trust = Refill(), _Trust()
        # The freshest report. Answers come in another order than their calls were sent, so the freshest report is not
        # the last one that came.
        self._report: _QuotaReport | None = None
        # Whether reports have resets.
        self._is_dated = False
        # The most that any report has shown to be there.
        self._seen = 0.0
        # Of calls that were cancelled before they were sent: what had been taken with them, and what they gave back.
        self._returned: list[tuple[float, float]] = []

    @property
    def is_told(self) -> bool:
        return self._report is not None

    def ready(self, cost: float) -> float:
        report = self._report
        if report is None:
            return -math.inf
        if self._refill.kind is not RefillKind.WINDOW and cost + self.taken - report.taken <= report.said.left:
            return -math.inf if self.pace is None else self.pace.ready(cost)  # the same as below, and soon found
        sufficient, renewed = self._sufficient(cost, report), self._renewed(report)
        if self.pace is None:
            return sufficient
        # When a window ends, the pace of what was left of it ends too.
        return max(sufficient, min(self.pace.ready(cost), renewed))

    def spent_until(self, cost: float) -> float:
        """Until when the quota is spent, if it is; else a time that is over."""
        return -math.inf if self._report is None else self._sufficient(cost, self._report)

    def _renewed(self, report: _QuotaReport) -> float:
        """When a window ends; infinite for a quota that comes back steadily."""
        if self._refill.kind is not RefillKind.WINDOW:
            return math.inf
        return report.at + _rounded_up(report.said.reset_s)

    def _sufficient(self, cost: float, report: _QuotaReport) -> float:
        """The time from which on `cost` fits into what the report said was left plus what has come back since."""
        said = report.said
        # A call that costs more than there ever was would wait for ever, so it needs a whole quota only.
        most = self._seen if self._refill.kind is not RefillKind.WINDOW else said.limit or self._seen
        wanted = min(cost, most) + self._since(report)
        if wanted <= said.left:
            return -math.inf
        limit = said.limit or max(self._seen, 1.0)
        if self._refill.kind is RefillKind.WINDOW:
            windows = max(math.ceil((wanted - said.left) / limit), 1)
            return self._renewed(report) + (windows - 1) * (self._refill.period or PERIOD)
        rate = self._refill.rate(limit) * (1.0 if said.reset_s is None else _CAUTION)
        whole = PERIOD if said.reset_s is None else said.reset_s
        return report.at + min((wanted - said.left) / rate, whole + max(wanted - most, 0.0) / rate)

    def _since(self, report: _QuotaReport) -> float:
        """What was taken since the report's call was sent."""
        since = self.taken - report.taken
        return since - sum(cost for mark, cost in self._returned if mark > report.taken) if self._returned else since

    def take(self, now: float, cost: float) -> None:
        report = self._report
        if self._refill.kind is RefillKind.WINDOW and report is not None and now >= self._renewed(report):
            self._renew(now, report)
        self.taken += cost
        if self.pace is not None:
            self.pace.take(now, cost)

    def give_back(self, now: float, cost: float, taken: float) -> None:
        """A call was cancelled before it was sent; `taken` is what all calls had taken by then, itself included."""
        self._returned.append((taken, cost))
        self.correct(now, -cost)

    def correct(self, now: float, cost: float) -> None:
        """Takes from the pace what a call has used beyond its estimate.

        `taken` is left as it is: the service's next report contains what the call has used.
        """
        if self.pace is not None:
            self.pace.take(now, cost)

    def refused(self, at: float, taken: float, cost: float) -> None:
        """A call that was sent at the time `at` was refused, when `taken` was taken with it."""
        self._trust.refused(cost)
        report = self._report
        if report is None or at <= report.heard or self._refill.kind is RefillKind.WINDOW:
            return
        if taken - report.taken > report.said.left:  # only a quota that comes back steadily had enough for it
            self._refill.kind = RefillKind.WINDOW
            if report.said.reset_s is None:
                self._refill.period = PERIOD
                self._report = report._replace(said=_with_reset(report.said, PERIOD))

    def hear(self, now: float, said: Allowance | None, at: float, taken: float, cost: float, is_answer: bool) -> None:
        """Takes note of what an answer's headers said.

        **Arguments:**

        - `said`: the report, or `None` if there was none.
        - `at`: when its call was sent.
        - `taken`: what all calls had taken by then.
        - `cost`: what its call was estimated to take.
        - `is_answer`: whether the call was answered.
        """
        if said is None:
            return
        self._seen = max(self._seen, said.left + cost)
        if said.limit is not None:
            self._seen = min(self._seen, said.limit)
        if said.limit is not None and said.reset_s is not None:
            self._is_dated = True
            self._refill.hear(said)
        if is_answer:
            self._trust.hear(said, at, taken)
        if not self._trust.is_earned:
            self._report = self.pace = None
            return
        if self._report is not None and taken < self._report.taken:  # a call that was sent later has reported already
            return
        self._report = report = _QuotaReport(self._dated(said, at), at, taken, now)
        if self._returned:
            self._returned = [(mark, cost) for mark, cost in self._returned if mark > taken]
        self._spread(now, report)

    def _dated(self, said: Allowance, at: float) -> Allowance:
        """The report, with the end of the window that it does not say: the one of before, or that of a new one."""
        if said.reset_s is not None or self._refill.kind is not RefillKind.WINDOW:
            return said
        before = self._report
        if before is None or before.said.reset_s is None or said.left > before.said.left:
            return _with_reset(said, PERIOD)
        ends = before.at + before.said.reset_s
        return _with_reset(said, ends - at if ends > at else PERIOD)

    def _renew(self, now: float, report: _QuotaReport) -> None:
        """A new window begins, of which there is no report yet."""
        period = self._refill.period or PERIOD
        limit = report.said.limit or self._seen
        at = self._renewed(report)
        at += (now - at) // period * period
        self._report = _QuotaReport(Allowance(report.said.limit, limit, at + period - now), now, self.taken, now)
        self._spread(now, self._report)

    def _spread(self, now: float, report: _QuotaReport) -> None:
        """Paces calls as the report and the form of the quota say."""
        limit, left, reset = report.said.limit, report.said.left, report.said.reset_s
        if limit is None:
            return
        if reset is None or not self._is_dated:
            rate, burst = minutely(limit)
        elif (paced := self._refill.pace(limit)) is None:
            self.pace = None
            return
        else:
            rate = paced
            if self._refill.kind is RefillKind.WINDOW and left and report.at + reset > now:
                # What is left lasts until the window ends, but at twice the usual pace at most. The last one of it does
                # not begin at the end but before.
                rate = min(2 * rate, (left + 1) / (report.at + reset - now))
            burst = max(1.0, rate * BURST_SECONDS)
        if self.pace is None:
            self.pace = Bucket(rate, burst)
        self.pace.refit(now, rate, burst)


def _with_reset(said: Allowance, seconds: float) -> Allowance:
    return Allowance(said.limit, said.left, seconds)


def _rounded_up(seconds: float | None) -> float:
    """A reset, which may have been cut to whole seconds."""
    if seconds is None:
        return math.inf
    return seconds + 1.0 if seconds == int(seconds) and seconds > 0 else seconds
