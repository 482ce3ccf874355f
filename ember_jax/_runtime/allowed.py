"""What a service allows the calls of one model: by what it says, and by what it refuses.

Each of several things answers one question: from which time on will it no longer hold back the next call? The latest of
these times counts, and what answers with it is what *holds* the call.
"""

import math
from typing import NamedTuple

from ..providers.quota import Quota
from .limits import MOST_IN_FLIGHT, Limit
from .pause import Pause
from .probe import Probe
from .told import Told


class Sent(NamedTuple):
    """A call that was admitted.

    **Fields:**

    - `at`: when that was.
    - `number`: how many calls of the model were admitted before it.
    - `cost`: the tokens that it was estimated to use.
    - `marks`: how many requests and tokens had been taken by then, itself included. A report of the service on this
        call's answer is about that moment.
    """

    at: float
    number: int
    cost: float
    marks: tuple[float, float]


class Delay(NamedTuple):
    """Until when calls are held back, and by what, in words. Nothing holds them if the time is over."""

    until: float
    by: str


_NOT_HELD = Delay(-math.inf, "")


class Allowed:
    """What a service allows the calls of one model.

    **Arguments:**

    - `limit`: what is given. What it says nothing of is found out.
    - `is_local`: whether answers come from this process. Then nothing is found out.
    """

    def __init__(self, limit: Limit, is_local: bool):
        self._requests, self._tokens = Told(), Told()
        self._probe = None if is_local else Probe(limit.in_flight or MOST_IN_FLIGHT)
        self._pause = None if is_local else Pause()
        self._is_given = limit.rpm is not None
        self._asked = _NOT_HELD
        # Since when the service has asked to wait, or refused, without an answer in between; `None` if it has not.
        self._shut: float | None = None

    @property
    def tells_tokens(self) -> bool:
        return self._tokens.is_told

    def ready(self, in_flight: int, cost: float) -> float:
        """The time from which on nothing here holds back a call that is estimated to use `cost` tokens."""
        at = max(self._asked.until, self._requests.ready(1.0), self._tokens.ready(cost))
        if self._probe is None or self._pause is None:
            return at
        return max(at, self._pause.ready(), self._probe.ready(in_flight, self._is_known()))

    def held(self, in_flight: int, cost: float) -> Delay:
        """What holds back a call longest, as far as a time can be told."""
        told = [
            Delay(self._requests.ready(1.0), "the service's quota of requests"),
            Delay(self._tokens.ready(cost), "the service's quota of tokens"),
        ]
        if self._probe is not None:
            told.append(
                Delay(self._probe.ready(in_flight, self._is_known()), "the pace that the service was found to keep")
            )
        return max([*told, self._stopped()], key=lambda held: held.until if held.until < math.inf else -math.inf)

    def stopped(self, now: float, cost: float, since: float, in_flight: int) -> tuple[float, str]:
        """For how many seconds in all the service holds back a call that waits since `since`, and by what.

        A pace does not count, however slow. What counts is a time for which no call is let through. That a quota is
        spent counts when no call is in flight: the answers to those may show that what is told is not so.
        """
        held, spent = self._stopped(), Delay(now, "")
        if not in_flight:
            requests, tokens = self._requests.spent_until(1.0), self._tokens.spent_until(cost)
            what = "requests" if requests >= tokens else "tokens"
            spent = Delay(max(requests, tokens, now), f"the service's quota of {what}, which is spent")
        if held.until > now and held.until >= spent.until:
            return held.until - max(since, now if self._shut is None else self._shut), held.by
        return spent.until - now, spent.by

    def shut(self) -> tuple[float, float]:
        """Until when the service lets no call through, and for how many seconds in all since it last answered.

        If it does let calls through, the first is a time that is over.
        """
        until = self._stopped().until
        return until, 0.0 if self._shut is None else until - self._shut

    def _stopped(self) -> Delay:
        silent = _NOT_HELD if self._pause is None else Delay(self._pause.until, "the service, which refuses all calls")
        return max(self._asked, silent, key=lambda held: held.until)

    def take(self, now: float, cost: float, number: int) -> Sent:
        """A call begins."""
        self._requests.take(now, 1.0)
        self._tokens.take(now, cost)
        if self._probe is not None and self._pause is not None:
            self._probe.take(now)
            self._pause.take(now)
        return Sent(now, number, cost, (self._requests.taken, self._tokens.taken))

    def give_back(self, now: float, sent: Sent) -> None:
        """A call was cancelled before it was sent."""
        self._requests.give_back(now, 1.0, sent.marks[0])
        self._tokens.give_back(now, sent.cost, sent.marks[1])
        if self._probe is not None and self._pause is not None:
            self._probe.give_back(now, sent.at)
            self._pause.give_back(sent.at)

    def answered(self, now: float, sent: Sent, in_flight: int, tokens: float | None, quota: Quota | None) -> None:
        """A call was answered, and has used so many tokens; `None` if the service does not say."""
        if self._shut is not None and sent.at >= self._shut:
            self._shut = None
        if self._probe is not None and self._pause is not None:
            self._probe.succeeded(now, sent.at, in_flight)
            learned = self._pause.answered(sent.at)
            if learned is not None:
                self._probe.learn(now, learned)
        if tokens is not None:
            self._tokens.correct(now, tokens - sent.cost)
        self._hear(now, sent, quota, True)

    def asked(self, now: float, wait: float, by: str) -> None:
        """The service asks all calls to wait."""
        self._asked = max(self._asked, Delay(now + wait, by), key=lambda held: held.until)
        if self._shut is None:
            self._shut = now

    def failed(self, now: float, sent: Sent, refused: bool, wait: float | None, quota: Quota | None) -> None:
        """A call has failed; `refused` says whether it was one too many."""
        if refused:
            self._requests.refused(sent.at, sent.marks[0], 1.0)
            self._tokens.refused(sent.at, sent.marks[1], sent.cost)
            if self._probe is not None and self._pause is not None:
                if self._pause.refused(now, sent.at, sent.number, wait) and self._shut is None:
                    self._shut = now
                resume = max(self._asked.until, self._pause.until)
                self._probe.refused(now, sent.at, resume, self._is_known())
        self._hear(now, sent, quota, False)

    def rate(self, now: float) -> float:
        """The pace in requests per second; infinite if calls are not paced."""
        told = math.inf if self._requests.pace is None else self._requests.pace.rate
        return told if self._probe is None else min(told, self._probe.rate(now, self._is_known()))

    def _is_known(self) -> bool:
        return self._is_given or self._requests.pace is not None

    def _hear(self, now: float, sent: Sent, quota: Quota | None, is_answer: bool) -> None:
        if quota is not None:
            self._requests.hear(now, quota.requests, sent.at, sent.marks[0], 1.0, is_answer)
            self._tokens.hear(now, quota.tokens, sent.at, sent.marks[1], sent.cost, is_answer)
