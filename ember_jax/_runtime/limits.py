"""When a call may start: requests and tokens per minute, calls in flight, and what a service is found to allow.

Design note. A call waits in the *gate* of its model until nothing holds it back, first come, first served. Gates whose
models share a limit that was given share a *pool*. Everything that can hold a call back answers one question: from
which time on will it no longer do so? So a pool needs one timer and never polls. An admission costs O(log n) for the n
calls that wait, and O(1) for everything else. These are the things that hold calls back:

- *A quota that is given* (`_Bucket`). It is a token bucket in the form of the generic cell rate algorithm (ITU-T
  I.371), whose only state is the time at which the bucket will be full. Services enforce a quota per minute over
  shorter times too, so only half a second's worth may come at once. The rate is lowered by as much as that burst adds,
  so that no minute sees more than the quota, wherever the minute begins.
- *A quota that a service tells* in its headers (`_Told`). It is paced by a bucket too, at the rate at which the service
  says the quota is filled. Besides, no more is sent than the freshest report said was left, plus what has come back
  since. Calls that were sent after the report's own call are not in the report, and are subtracted from what it says.
- *Where nothing is known* (`_Probe`), the service is probed. The number of calls in flight doubles with each round
  trip, from ten on. The calls are evenly spaced: if they came in bursts, a doubling would overrun the service by a
  whole window of calls before the first refusal is seen.

  From the first refusal (429) on, calls are paced at the rate that was *proven*. The number of calls accepted per
  second is no proof of it, because a service may save up what was not used, and let it come at once. A service is
  assumed to save at most one second's worth. Then `n` calls accepted in `t` seconds prove a rate of `n / (t + 1)`,
  where a pause between two calls counts as one second at most. Among all stretches of time that end with the refusal,
  the one that proves the highest rate counts. If too few calls were accepted to prove a rate, the window is halved.

  Pacing begins at 95 % of the proven rate. It grows by 1 % per second and in addition with the cube of time, as CUBIC's
  window does (RFC 9438): slowly near the limit that was met, and quickly when that is long past.

  Some services refuse a share of calls at any pace. Refusals are taken to be by chance if few calls are refused, and
  some of those at less than the pace that was sustained before. Chance refusals slow nothing down. If refusals become
  many, this was wrong: they count again, and it takes twice as many strange ones to be taken for chance again.
- *`Retry-After`* holds the whole gate back until its time has come.

Times are those of the running event loop, which a virtual clock may own. Nothing here knows what a call is.
"""

import asyncio
import bisect
import heapq
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from .._providers.quota import Allowance, Quota

# The most calls in flight where no limit says otherwise. Each call is a connection, and so an open file, and processes
# are often allowed 1,024 of those.
MOST_IN_FLIGHT = 1000
# The window that a probe begins with: how many calls may be in flight.
_SLOW_START = 10.0
# How many seconds' worth of a quota may come at once, where we pace; and how many seconds' worth a service is assumed
# to save up, where it paces.
_BURST_SECONDS, _SAVED_SECONDS = 0.5, 1.0
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
# The share of the rate told by a service that is counted on to have come back. The service's numbers are rounded.
_CAUTION = 0.95
# The slowest pace that refusals can lead to, in calls per second.
_SLOWEST = 0.1
# Refusals are few up to the share `_FEW` of calls. The share is a moving average over about `_SHARE_CALLS` calls. After
# `_STRANGE` refusals at less than the pace that was sustained, while refusals are few, they are taken to be by chance.
_FEW, _SHARE_CALLS, _STRANGE = 0.2, 50, 3


@dataclass(frozen=True)
class Limit:
    """What may be asked of a provider, or of one model; `None` is not limited.

    **Arguments:**

    - `rpm`: requests per minute.
    - `tpm`: tokens per minute, input and output together. Before a call they are counted by tiktoken, or estimated
        from characters where the vocabulary cannot be had. After it the count is corrected by what the call has used.
    - `in_flight`: calls at once; 1,000 if nothing is given.

    **Raises:** `ValueError` for a value that is not a positive number, or an `in_flight` that is not whole.
    """

    rpm: float | None = None
    tpm: float | None = None
    in_flight: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise ValueError(f"Limit({name}={value!r}): give a positive number, or None for no limit.")
        if self.in_flight is not None and self.in_flight != int(self.in_flight):
            raise ValueError(f"Limit(in_flight={self.in_flight!r}): give a whole number of calls.")


@dataclass(frozen=True)
class Statistics:
    """What the calls of one model do.

    **Fields:**

    - `waiting`: how many calls wait for their turn.
    - `in_flight`: how many calls have begun and not ended.
    - `most_in_flight`: the most calls that were in flight at once.
    - `admitted`: how many calls have begun.
    - `throttled`: how many calls were refused as too many (429).
    - `tokens`: of the calls that have begun: what they have used where that is known, else what was estimated.
    - `rate`: the pace in requests per second; infinite if calls are not paced.
    """

    waiting: int
    in_flight: int
    most_in_flight: int
    admitted: int
    throttled: int
    tokens: float
    rate: float


class _Bucket:
    """A token bucket: up to `burst` at once, and `rate` per second.

    What costs more than a burst is let through when the bucket is full, and what it takes beyond is owed. (To refuse it
    would mean that a long prompt can never be sent under a small quota.)
    """

    def __init__(self, rate: float, burst: float):
        self.rate = rate
        self.burst = burst
        self._full = -math.inf

    def ready(self, cost: float) -> float:
        """The time from which `cost` can be taken."""
        return self._full - (self.burst - min(cost, self.burst)) / self.rate

    def take(self, now: float, cost: float) -> None:
        """Takes `cost` from the bucket, or gives it back if it is negative."""
        self._full = max(self._full, now) + cost / self.rate

    def refit(self, now: float, rate: float, burst: float) -> None:
        """Changes rate and burst. What is missing from the bucket stays missing, in units and not in seconds."""
        owed = max(self._full - now, 0.0) * self.rate
        self.rate, self.burst, self._full = rate, burst, now + owed / rate


def _per_minute(quota: float | None) -> _Bucket | None:
    """A bucket from which no minute takes more than `quota`; `None` without one."""
    if quota is None:
        return None
    burst = max(1.0, quota / 60 * _BURST_SECONDS)
    # In the minute from any moment on less than burst + 60 s * rate = quota + 1 is taken.
    return _Bucket((quota - burst + 1) / 60, burst)


def pool_of(limits: Mapping[str, Limit], provider: str, model: str) -> str:
    """The name in `limits` by which a model is limited: `provider/model`, or `provider` if only that one is there."""
    own = f"{provider}/{model}"
    return provider if provider in limits and own not in limits else own


def seconds_of(limit: Limit, requests: float, tokens: float) -> float:
    """The seconds after which the last of so many requests can begin at the earliest.

    `tokens` are those of all requests before the last one.
    """
    quotas = (_per_minute(limit.rpm), requests), (_per_minute(limit.tpm), tokens)
    return max([0.0, *((n - bucket.burst) / bucket.rate for bucket, n in quotas if bucket is not None)])


class _Told:
    """One quota as the service itself tells it."""

    def __init__(self) -> None:
        # What all calls so far have taken of the quota, by their estimates.
        self.taken = 0.0
        # Paces calls at the rate at which the service fills the quota; `None` until reports tell the rate.
        self.pace: _Bucket | None = None
        # The freshest report: what it says, when its call was sent, and what `taken` was then. Answers come in another
        # order than their calls were sent, so the freshest report is not the last one that came.
        self._report: tuple[Allowance, float, float] | None = None
        # The most that any report has shown to be there. A service may state its quota per minute, but have a smaller
        # bucket, which then never holds the whole `limit`.
        self._seen = 0.0
        # What was missing from the quota, and the seconds to fill it, each summed over the reports with a decay. Their
        # ratio is the rate. A single report's ratio would be coarse, as services round the numbers.
        self._missing = self._seconds = 0.0

    @property
    def is_told(self) -> bool:
        return self._report is not None

    def ready(self, cost: float) -> float:
        paced = -math.inf if self.pace is None else self.pace.ready(cost)
        return paced if self._report is None else max(paced, self._sufficient(cost, *self._report))

    def _sufficient(self, cost: float, said: Allowance, at: float, taken: float) -> float:
        """The time from which on `cost` fits into what the report said was left plus what has come back since.

        `at` is when the report's call was sent, and `taken` what all calls had taken by then.
        """
        # A call that costs more than the bucket ever held would wait for ever, so it needs a full bucket only.
        wanted = min(cost, self._seen) + self.taken - taken
        if wanted <= said.left:
            return -math.inf
        # There are two readings of how fast the quota comes back: `limit` per minute, and what the resets tell. If a
        # report has shown (nearly) the whole limit, the bucket is as large as stated, and the resets are believed. Else
        # the slower reading counts.
        per_minute, told = said.limit / 60, math.inf if self.pace is None else _CAUTION * self.pace.rate
        rate = told if self._seen >= 0.9 * said.limit and told < math.inf else min(per_minute, told)
        return at + min((wanted - said.left) / rate, said.reset_s + max(wanted - self._seen, 0.0) / rate)

    def take(self, now: float, cost: float) -> None:
        self.taken += cost
        if self.pace is not None:
            self.pace.take(now, cost)

    def correct(self, now: float, cost: float) -> None:
        """Takes from the pace what a call has used beyond its estimate.

        `taken` is left as it is: the service's next report contains what the call has used.
        """
        if self.pace is not None:
            self.pace.take(now, cost)

    def hear(self, now: float, said: Allowance | None, at: float, taken: float, cost: float) -> None:
        """Takes note of what an answer's headers said.

        **Arguments:**

        - `said`: the report, or `None` if there was none.
        - `at`: when its call was sent.
        - `taken`: what all calls had taken by then.
        - `cost`: what its call was estimated to take.
        """
        if said is None:
            return
        self._seen = min(max(self._seen, said.left + cost), said.limit)
        if self._report is not None and taken < self._report[2]:  # a call that was sent later has reported already
            return
        self._report = said, at, taken
        self._missing = 0.9 * self._missing + said.limit - said.left
        self._seconds = 0.9 * self._seconds + said.reset_s
        if self._missing > 0 and self._seconds > 0:
            rate = self._missing / self._seconds
            self.pace = self.pace or _Bucket(rate, 1.0)
            self.pace.refit(now, rate, max(1.0, rate * _BURST_SECONDS))


class _Probe:
    """Finds out what a service allows, by when it refuses. The design note above says how.

    **Arguments:**

    - `window`: how many calls may be in flight at first.

    `is_known`, an argument of its methods, says whether a limit is given, or a quota is told, by which calls are paced
    anyway. The probe then holds nothing back until a refusal has proven that the service allows less.
    """

    def __init__(self, window: float):
        # How many calls may be in flight while there is no `_rate`.
        self._window = window
        # The moving average of an answer's time; 0 until there was one.
        self._round_trip = 0.0
        # When the next call is due by the pace; and when it may begin, which is at the end of the tick it is due in.
        self._free_at = self._opens_at = -math.inf
        # The pace in calls per second that a refusal has proven, `None` until there was one; and when the pace or the
        # window was last lowered.
        self._rate: float | None = None
        self._since = -math.inf
        # When the calls that were not refused were sent, ascending. Calls in flight are among them.
        self._accepted: list[float] = []
        # The highest pace that was sustained; the share of calls that are refused; whether refusals are by chance.
        self._best = 0.0
        self._share = 0.0
        self._by_chance = False
        # How many refusals there were at less than `_best`, and how many show that they are by chance.
        self._strange, self._needed = 0, _STRANGE

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
        gap = 1 / self.rate(now)
        self._free_at = max(self._free_at, now - _LATENESS) + gap
        self._opens_at = math.ceil(self._free_at / _TICK) * _TICK if gap < _TICK else self._free_at
        self._accepted.append(now)
        if len(self._accepted) > 2 * _REMEMBERED:
            del self._accepted[:_REMEMBERED]

    def succeeded(self, now: float, at: float, in_flight: int) -> None:
        """A call that was sent at the time `at` was answered."""
        self._share -= self._share / _SHARE_CALLS
        self._round_trip += (now - at - self._round_trip) / (8 if self._round_trip else 1)
        # One more for each answer doubles the window in a round trip. With fewer in flight than half of the window,
        # something else keeps calls from being sent, and an answer proves nothing about a larger window.
        if in_flight >= self._window / 2:
            self._window = min(self._window + 1, MOST_IN_FLIGHT)

    def refused(self, now: float, at: float, resume: float, is_known: bool) -> None:
        """Slows down after the refusal of a call that was sent at the time `at`; nothing is sent until `resume`."""
        self._share += (1 - self._share) / _SHARE_CALLS
        before = bisect.bisect_left(self._accepted, at)
        if before < len(self._accepted) and self._accepted[before] == at:
            del self._accepted[before]
        is_few = self._share < _FEW
        if at < self._since + _SETTLING_SECONDS or (self._by_chance and is_few):
            return
        if self._by_chance:  # refusals are many by now, so they were not by chance
            self._by_chance, self._needed = False, 2 * self._needed
        if self._rate is not None and is_few and self.rate(now) < self._best:
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
            self._rate = max(min(_proven(self._accepted[:before], at), pace), pace / 2, _SLOWEST)
            self._best = max(self._best, self._rate) if is_few else self._rate
            del self._accepted[: bisect.bisect_left(self._accepted, at - _FRESH_SECONDS)]
        elif before >= _PROOF:
            self._rate = self._best = _proven(self._accepted[:before], at)
            self._accepted.clear()
        elif is_known:  # a limit that is given or told is believed until enough calls prove that it is wrong
            return
        else:
            self._window = max(self._window / 2, 1.0)
        self._free_at = self._opens_at = self._since = max(now, resume)


def _proven(accepted: list[float], refused: float) -> float:
    """The highest rate that calls sent at the times `accepted` prove, when one sent at the time `refused` was refused.

    It goes back from the refusal, and tries every stretch of time that ends there, see the design note.
    """
    best, seconds = 0.0, _SAVED_SECONDS
    for calls, (start, end) in enumerate(itertools.pairwise([refused, *reversed(accepted)]), 1):
        seconds += min(start - end, _SAVED_SECONDS)
        best = max(best, calls / seconds)
    return best


class Ticket:
    """A call on its way through a gate.

    **Attributes:**

    - `turn`: its place in the queue: its priority, then the number of its arrival.
    - `cost`: the tokens that it is estimated to use.
    - `admitted`: done when it may begin.
    - `at`: when it was admitted.
    - `marks`: how many requests and tokens had been taken by then, itself included. A report of the service on this
        call's answer is about that moment.
    """

    __slots__ = ("admitted", "at", "cost", "marks", "turn")

    def __init__(self, turn: tuple[float, int], cost: float, admitted: "asyncio.Future[None]"):
        self.turn = turn
        self.cost = cost
        self.admitted = admitted
        self.at = -math.inf
        self.marks = 0.0, 0.0


class _Pool:
    """Gates that share a limit, and the one timer that opens them.

    Its methods are called on the event loop only, so nothing is locked.
    """

    def __init__(self, limit: Limit, is_local: bool, loop: asyncio.AbstractEventLoop):
        self.limit = limit
        self.loop = loop
        self.gates: list[Gate] = []
        self.turns = itertools.count()
        self._in_flight = 0
        self._slots = limit.in_flight or (math.inf if is_local else MOST_IN_FLIGHT)
        self._requests, self._tokens = _per_minute(limit.rpm), _per_minute(limit.tpm)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def rate(self) -> float:
        return self._requests.rate if self._requests else math.inf

    def ready(self, cost: float) -> float:
        if self._in_flight >= self._slots:
            return math.inf
        requests = self._requests.ready(1.0) if self._requests else -math.inf
        return max(requests, self._tokens.ready(cost)) if self._tokens else requests

    def admit(self, now: float, cost: float) -> None:
        self._in_flight += 1
        self.take(now, 1.0, cost)

    def leave(self) -> None:
        self._in_flight -= 1

    def take(self, now: float, requests: float, tokens: float) -> None:
        """Takes from the quotas, or gives back what is negative."""
        if self._requests:
            self._requests.take(now, requests)
        if self._tokens:
            self._tokens.take(now, tokens)

    def pump(self) -> None:
        """Admits whoever may start now, and sets the timer for the next."""
        now, soonest = self.loop.time(), math.inf
        while (first := self._first(now)) is not None:
            soonest = self.ready(first.cost)
            # No cheaper call overtakes, though it might fit: with a steady stream of cheap calls a dear one would never
            # have its turn.
            if soonest > now:
                break
            first.admit(now)
        self._arm(min(soonest if first else math.inf, self._next(now)))

    def _first(self, now: float) -> "Gate | None":
        """The gate whose first call has the lowest turn, among the gates that nothing but the pool keeps shut."""
        able = [gate for gate in self.gates if gate.is_wanted() and gate.ready() <= now]
        return min(able, key=lambda gate: gate.turn) if able else None

    def _next(self, now: float) -> float:
        """When the first of the gates opens that something of their own keeps shut, with a call waiting."""
        times = [gate.ready() for gate in self.gates if gate.is_wanted()]
        return min((at for at in times if at > now), default=math.inf)

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            if self._timer.when() == when:
                return
            self._timer.cancel()
        self._timer = None if when == math.inf else self.loop.call_at(when, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self.pump()


class Gate:
    """Where the calls of one model wait for their turn.

    **Attributes:**

    - `is_open`: whether a call may pass without `enter`. That is so for a local model without a limit: nothing holds
        its calls back, and nothing is to be learned from them. Calls of such models are to cost nothing here.
    """

    def __init__(self, pool: _Pool, is_local: bool):
        self._pool = pool
        self._told = _Told(), _Told()  # of requests, and of tokens
        self._probe = None if is_local else _Probe(pool.limit.in_flight or _SLOW_START)
        self._is_limited = pool.limit != Limit()
        self._until = -math.inf  # until when a service has asked to wait
        # A heap. A call that is cancelled stays in it until it comes to the top, see `is_wanted`.
        self._queue: list[tuple[tuple[float, int], Ticket]] = []
        self._waiting = self._in_flight = self._most = self._admitted = self._throttled = 0
        self._used = 0.0
        self.is_open = self._may_be_open = is_local and not self._is_limited
        pool.gates.append(self)

    async def enter(self, cost: float = 0.0, *, priority: float = 0.0, turn: tuple[float, int] | None = None) -> Ticket:
        """Waits for a call's turn: calls of lower `priority` first, equal ones in the order in which they came.

        **Arguments:**

        - `cost`: the tokens that the call is estimated to use.
        - `turn`: the turn of the ticket of an earlier attempt, so that a call that is tried again keeps its place.

        **Returns:** the ticket to leave with, by `succeeded`, `failed` or `abandoned`.
        """
        turn = turn or (priority, next(self._pool.turns))
        ticket = Ticket(turn, cost, self._pool.loop.create_future())
        heapq.heappush(self._queue, (turn, ticket))
        self._waiting += 1
        self._pool.pump()
        try:
            await ticket.admitted
        except asyncio.CancelledError:
            if ticket.admitted.cancelled():
                self._waiting -= 1
                self._pool.pump()
            else:
                # The gate admitted the call, and then the task was cancelled before it ran again. Nothing is sent, so
                # the request and its tokens go back to the pool.
                self._pool.take(self._pool.loop.time(), -1.0, -cost)
                self.abandoned(ticket)
            raise
        return ticket

    def is_wanted(self) -> bool:
        """Whether a call waits here."""
        while self._queue and self._queue[0][1].admitted.cancelled():
            heapq.heappop(self._queue)
        return bool(self._queue)

    @property
    def limits_tokens(self) -> bool:
        """Whether it matters how many tokens a call will use."""
        return self._pool.limit.tpm is not None or self._told[1].is_told

    @property
    def turn(self) -> tuple[float, int]:
        """The turn of the first call that waits."""
        return self._queue[0][0]

    @property
    def cost(self) -> float:
        """The cost of the first call that waits."""
        return self._queue[0][1].cost

    def ready(self) -> float:
        """The time from which on nothing of the gate's own (and not of its pool's) holds back its first call."""
        at = max(self._until, self._told[0].ready(1.0), self._told[1].ready(self.cost))
        return at if self._probe is None else max(at, self._probe.ready(self._in_flight, self._is_known()))

    def admit(self, now: float) -> None:
        """Lets the first call that waits begin."""
        ticket = heapq.heappop(self._queue)[1]
        self._pool.admit(now, ticket.cost)
        self._told[0].take(now, 1.0)
        self._told[1].take(now, ticket.cost)
        if self._probe is not None:
            self._probe.take(now)
        ticket.at, ticket.marks = now, (self._told[0].taken, self._told[1].taken)
        self._waiting -= 1
        self._in_flight += 1
        self._most = max(self._most, self._in_flight)
        self._admitted += 1
        self._used += ticket.cost
        self.is_open = self._may_be_open and not self._waiting
        ticket.admitted.set_result(None)

    def succeeded(self, ticket: Ticket, tokens: float | None, quota: Quota | None) -> None:
        """A call was answered.

        **Arguments:**

        - `ticket`: the call's.
        - `tokens`: how many it has used; `None` if the service does not say.
        - `quota`: what the service said of its limits; `None` for nothing.
        """
        now = self._pool.loop.time()
        if self._probe is not None:
            self._probe.succeeded(now, ticket.at, self._in_flight)
        if tokens is not None:
            self._pool.take(now, 0.0, tokens - ticket.cost)
            self._told[1].correct(now, tokens - ticket.cost)
            self._used += tokens - ticket.cost
        self._hear(now, ticket, quota)
        self.abandoned(ticket)

    def failed(self, ticket: Ticket | None, refused: bool, wait: float | None, quota: Quota | None) -> None:
        """A call has failed.

        **Arguments:**

        - `ticket`: the call's; `None` if it passed while the gate was open.
        - `refused`: whether it was refused as one too many (429).
        - `wait`: the seconds for which the service asks all calls to wait; `None` if it does not.
        - `quota`: what the service said of its limits; `None` for nothing.
        """
        now = self._pool.loop.time()
        if wait is not None:
            self._until = max(self._until, now + wait)
            self.is_open = False  # `admit` opens the gate again, when the last call that waits has its turn
        self._throttled += refused
        if ticket is None:
            return
        if refused and self._probe is not None:
            self._probe.refused(now, ticket.at, self._until, self._is_known())
        self._hear(now, ticket, quota)
        self.abandoned(ticket)

    def abandoned(self, ticket: Ticket) -> None:
        """A call has ended, and nothing is learned from how."""
        self._in_flight -= 1
        self._pool.leave()
        self._pool.pump()

    def statistics(self) -> Statistics:
        """What was done so far. Calls that passed while the gate was open are not counted. From any thread."""
        told = self._told[0].pace
        rates = [self._pool.rate, math.inf if told is None else told.rate]
        if self._probe is not None:
            rates.append(self._probe.rate(self._pool.loop.time(), self._is_known()))
        return Statistics(
            waiting=self._waiting,
            in_flight=self._in_flight,
            most_in_flight=self._most,
            admitted=self._admitted,
            throttled=self._throttled,
            tokens=self._used,
            rate=min(rates),
        )

    def _is_known(self) -> bool:
        return self._is_limited or any(told.pace is not None for told in self._told)

    def _hear(self, now: float, ticket: Ticket, quota: Quota | None) -> None:
        if quota is not None:
            self._told[0].hear(now, quota.requests, ticket.at, ticket.marks[0], 1.0)
            self._told[1].hear(now, quota.tokens, ticket.at, ticket.marks[1], ticket.cost)


class Limiter:
    """The gates of all models, on one event loop.

    **Arguments:**

    - `limits`: by provider, or by `provider/model`, which takes precedence. A provider's limit is shared by all of its
        models that have none of their own.
    - `loop`: the event loop on which calls wait, and whose clock counts.
    """

    def __init__(self, limits: Mapping[str, Limit], loop: asyncio.AbstractEventLoop):
        self.loop = loop
        self._limits = limits
        self._pools: dict[str, _Pool] = {}
        self._gates: dict[tuple[str, str], Gate] = {}

    def gate(self, provider: str, model: str, is_local: bool) -> Gate:
        """The gate of a model. That of a local model stands open if no limit is given for it."""
        known = self._gates.get((provider, model))
        if known is not None:
            return known
        name = pool_of(self._limits, provider, model)
        pool = self._pools.get(name)
        if pool is None:
            pool = self._pools[name] = _Pool(self._limits.get(name, Limit()), is_local, self.loop)
        gate = self._gates[provider, model] = Gate(pool, is_local)
        return gate

    def statistics(self) -> dict[str, Statistics]:
        """What the calls of each model do, by `provider/model`. From any thread."""
        # The items are copied first, as the event loop may add a gate while another thread is in this loop.
        return {"/".join(names): gate.statistics() for names, gate in list(self._gates.items())}
