"""When a call may start: requests and tokens per minute, calls in flight, and what a service is found to allow.

Design note. A call waits in the *gate* of its model until nothing holds it back, first come, first served. Gates whose
models share a limit that was given share a *pool*. What holds a call back is asked for the time from which it no longer
does, so a pool needs one timer and never polls, and an admission costs O(log n) of the calls that wait and O(1) of
everything else.

- *A quota that is given* is a token bucket in the form of the generic cell rate algorithm (ITU-T I.371): its state is
  the time at which it will be full. Services enforce a quota per minute over shorter times too, so only half a
  second's worth may come at once; the rate is lower by as much as makes up for it, so that no minute sees more than
  the quota, wherever it begins.
- *A quota that a service tells* is paced likewise, at the rate at which it says it is filled. Besides, no more is sent
  than was left by the freshest report and has come back since; what was sent after the report's own call is not in it.
- *Where nothing is known*, calls in flight double per round trip, from ten on, evenly spaced: in bursts a doubling
  would overrun the service by a whole window before its first refusal is seen. From a refusal (429) on calls are paced
  at the rate that was sustained. A service lets come at once what it has saved while less was sent; taken to be at most
  a second's worth, `n` calls accepted in `t` seconds, of which a pause counts as one at most, prove a rate of
  `n / (t + 1)`. Of all stretches that end with the refusal the one that proves most counts. Pacing begins at 95 % of
  that and grows by 1 % per second, later with the cube of time, as CUBIC's window does (RFC 9438): slowly where the
  limit was met, quickly when that is long past. Before there is a stretch to prove anything the window is halved.
  Some services refuse a share of the calls at any pace. Where few are refused, but some of them at less than the pace
  that was sustained, it is by chance: then refusals slow nothing down, until they are many and prove the opposite.
- *`Retry-After`* holds the whole gate back.

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

# Calls in flight where no limit says otherwise: each is a connection, and processes are often allowed 1,024 files.
MOST_IN_FLIGHT = 1000
_SLOW_START = 10.0
# Of a quota, the seconds' worth that may come at once; and what a service is taken to save.
_BURST_SECONDS, _SAVED_SECONDS = 0.5, 1.0
# Refusals within this time of a change of pace are of calls that were paced before it, or chance.
_SETTLING_SECONDS = 2.0
# So many accepted calls prove a rate.
_PROOF = 20
# How long they do.
_FRESH_SECONDS = 30.0
_REMEMBERED = 4096
# What a timer may be late without the pace being lost.
_LATENESS = 0.01
# Calls that are found to be due within this time begin together: a timer for each costs more than the call.
_TICK = 0.002
# Of the rate that a service tells, so much is counted on to have come back: its numbers are rounded.
_CAUTION = 0.95
_SLOWEST = 0.1
# The share of calls up to which few are refused, about how many calls it is taken over, and how many of them, refused
# at less than the pace that was sustained, show that it is by chance; twice as many each time that was wrong.
_FEW, _SHARE_CALLS, _STRANGE = 0.2, 50, 3


@dataclass(frozen=True)
class Limit:
    """What may be asked of a provider, or of one model; `None` is not limited.

    **Arguments:**

    - `rpm`: requests per minute.
    - `tpm`: tokens per minute, of input and output: counted by tiktoken before a call (estimated from characters where
        the vocabulary cannot be had), corrected by what it has used.
    - `in_flight`: calls at once; at most 1,000 where nothing is given.

    **Raises:** `ValueError` for what is not a positive number.
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

    - `waiting`, `in_flight`: calls that wait for their turn, and that have begun and not ended.
    - `most_in_flight`: the most that were in flight at once.
    - `admitted`, `throttled`: calls that have begun, and that were refused as too many.
    - `tokens`: of the calls that have begun: as they turned out, or else as estimated.
    - `rate`: requests per second that they are paced at, infinite where they are not.
    """

    waiting: int
    in_flight: int
    most_in_flight: int
    admitted: int
    throttled: int
    tokens: float
    rate: float


class _Bucket:
    """Up to `burst` at once, and `rate` per second; what costs more than a burst needs a full bucket."""

    def __init__(self, rate: float, burst: float):
        self.rate = rate
        self.burst = burst
        self._full = -math.inf

    def ready(self, cost: float) -> float:
        """The time from which `cost` can be taken."""
        return self._full - (self.burst - min(cost, self.burst)) / self.rate

    def take(self, now: float, cost: float) -> None:
        """Takes, or gives back what is negative."""
        self._full = max(self._full, now) + cost / self.rate

    def refit(self, now: float, rate: float, burst: float) -> None:
        """Changes the pace; what is owed stays owed."""
        owed = max(self._full - now, 0.0) * self.rate
        self.rate, self.burst, self._full = rate, burst, now + owed / rate


def _per_minute(quota: float | None) -> _Bucket | None:
    """A bucket of which no minute takes more than a quota."""
    if quota is None:
        return None
    burst = max(1.0, quota / 60 * _BURST_SECONDS)
    # Whatever the time, less than burst + 60 s * rate = quota + 1 is taken in the minute from then on.
    return _Bucket((quota - burst + 1) / 60, burst)


def pool_of(limits: Mapping[str, Limit], provider: str, model: str) -> str:
    """By which name a model is limited: its own, or its provider's."""
    own = f"{provider}/{model}"
    return provider if provider in limits and own not in limits else own


def seconds_of(limit: Limit, requests: float, tokens: float) -> float:
    """When the last of so many requests can begin at the earliest; `tokens` are those of all before it."""
    quotas = (_per_minute(limit.rpm), requests), (_per_minute(limit.tpm), tokens)
    return max([0.0, *((n - bucket.burst) / bucket.rate for bucket, n in quotas if bucket is not None)])


class _Told:
    """One quota as the service itself tells it."""

    def __init__(self) -> None:
        self.taken = 0.0
        self.pace: _Bucket | None = None
        # The freshest report, of the time when its call was sent, and what had been taken by then.
        self._report: tuple[Allowance, float, float] | None = None
        # The most that was ever there. A service may state its quota per minute, but have a smaller bucket.
        self._seen = 0.0
        # What was missing from the quota and the seconds to fill it, summed over reports with a decay.
        self._missing = self._seconds = 0.0

    @property
    def is_told(self) -> bool:
        return self._report is not None

    def ready(self, cost: float) -> float:
        paced = -math.inf if self.pace is None else self.pace.ready(cost)
        return paced if self._report is None else max(paced, self._sufficient(cost, *self._report))

    def _sufficient(self, cost: float, said: Allowance, at: float, taken: float) -> float:
        """The time from which what was left, and has come back since, suffices."""
        wanted = min(cost, self._seen) + self.taken - taken
        if wanted <= said.left:
            return -math.inf
        per_minute, told = said.limit / 60, math.inf if self.pace is None else _CAUTION * self.pace.rate
        # The resets are believed where the whole limit was seen; else the slower of the readings.
        rate = told if self._seen >= 0.9 * said.limit and told < math.inf else min(per_minute, told)
        return at + min((wanted - said.left) / rate, said.reset_s + max(wanted - self._seen, 0.0) / rate)

    def take(self, now: float, cost: float) -> None:
        self.taken += cost
        if self.pace is not None:
            self.pace.take(now, cost)

    def correct(self, now: float, cost: float) -> None:
        """Takes what a call has used beyond its estimate; the next report says it too."""
        if self.pace is not None:
            self.pace.take(now, cost)

    def hear(self, now: float, said: Allowance | None, at: float, taken: float, cost: float) -> None:
        """Takes note of a report on a call of some cost, sent at a time when so much had been taken."""
        if said is None:
            return
        self._seen = min(max(self._seen, said.left + cost), said.limit)
        if self._report is not None and taken < self._report[2]:
            return
        self._report = said, at, taken
        self._missing = 0.9 * self._missing + said.limit - said.left
        self._seconds = 0.9 * self._seconds + said.reset_s
        if self._missing > 0 and self._seconds > 0:
            rate = self._missing / self._seconds
            self.pace = self.pace or _Bucket(rate, 1.0)
            self.pace.refit(now, rate, max(1.0, rate * _BURST_SECONDS))


class _Probe:
    """Finds out what a service allows, by when it refuses."""

    def __init__(self, window: float):
        self._window = window
        self._round_trip = 0.0
        self._free_at = self._opens_at = -math.inf
        # The pace that was sustained, once a refusal has shown it; since when that or the window holds.
        self._rate: float | None = None
        self._since = -math.inf
        # When the calls were sent that were not refused.
        self._accepted: list[float] = []
        # The highest pace that was sustained, the share of calls that are refused, and whether that is by chance.
        self._best = 0.0
        self._share = 0.0
        self._by_chance = False
        self._strange, self._needed = 0, _STRANGE

    def rate(self, now: float, is_known: bool = False) -> float:
        """Calls per second."""
        if self._rate is None:
            return math.inf if is_known or not self._round_trip else self._window / self._round_trip
        seconds = max(now - self._since, 0.0)
        return self._rate * (0.95 + 0.01 * seconds + (seconds / 60) ** 3)

    def ready(self, in_flight: int, is_known: bool) -> float:
        if self._rate is None and is_known:
            return -math.inf
        return math.inf if self._rate is None and in_flight >= self._window else self._opens_at

    def take(self, now: float) -> None:
        if self._rate is not None and now > self._free_at + _LATENESS:
            self._since += now - self._free_at  # a pace that was not used has shown nothing, and does not grow
        gap = 1 / self.rate(now)
        self._free_at = max(self._free_at, now - _LATENESS) + gap
        self._opens_at = math.ceil(self._free_at / _TICK) * _TICK if gap < _TICK else self._free_at
        self._accepted.append(now)
        if len(self._accepted) > 2 * _REMEMBERED:
            del self._accepted[:_REMEMBERED]

    def succeeded(self, now: float, at: float, in_flight: int) -> None:
        self._share -= self._share / _SHARE_CALLS
        self._round_trip += (now - at - self._round_trip) / (8 if self._round_trip else 1)
        if in_flight >= self._window / 2:  # else it is not the window that keeps more from being sent
            self._window = min(self._window + 1, MOST_IN_FLIGHT)

    def refused(self, now: float, at: float, resume: float, is_known: bool) -> None:
        """Slows down after the refusal of a call that was sent at a time; nothing is sent until `resume`."""
        self._share += (1 - self._share) / _SHARE_CALLS
        before = bisect.bisect_left(self._accepted, at)
        if before < len(self._accepted) and self._accepted[before] == at:
            del self._accepted[before]
        is_few = self._share < _FEW
        if at < self._since + _SETTLING_SECONDS or (self._by_chance and is_few):
            return
        if self._by_chance:  # they are many now
            self._by_chance, self._needed = False, 2 * self._needed
        if self._rate is not None and is_few and self.rate(now) < self._best:
            self._strange += 1
            if self._strange >= self._needed:
                self._by_chance, self._strange, self._rate = True, 0, None
                self._window = max(self._window, self._best * self._round_trip)
                return
        if self._rate is not None:
            pace = self.rate(now)
            self._rate = max(min(_proven(self._accepted[:before], at), pace), pace / 2, _SLOWEST)
            self._best = max(self._best, self._rate) if is_few else self._rate
            del self._accepted[: bisect.bisect_left(self._accepted, at - _FRESH_SECONDS)]
        elif before >= _PROOF:
            self._rate = self._best = _proven(self._accepted[:before], at)
            self._accepted.clear()
        elif is_known:  # a limit that is given is believed until the opposite is proven
            return
        else:
            self._window = max(self._window / 2, 1.0)
        self._free_at = self._opens_at = self._since = max(now, resume)


def _proven(accepted: list[float], refused: float) -> float:
    """The highest rate that calls accepted at these times prove, when one at a later time was refused."""
    best, seconds = 0.0, _SAVED_SECONDS
    for calls, (start, end) in enumerate(itertools.pairwise([refused, *reversed(accepted)]), 1):
        seconds += min(start - end, _SAVED_SECONDS)
        best = max(best, calls / seconds)
    return best


class Admission:
    """A call on its way: its turn, its cost, and when it was admitted, after how much."""

    __slots__ = ("admitted", "at", "cost", "marks", "turn")

    def __init__(self, turn: tuple[float, int], cost: float, admitted: "asyncio.Future[None]"):
        self.turn = turn
        self.cost = cost
        self.admitted = admitted
        self.at = -math.inf
        self.marks = 0.0, 0.0


class _Pool:
    """Gates that share a limit, and the timer that opens them."""

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
            if soonest > now:  # and nobody overtakes: what is dear would never have its turn
                break
            first.admit(now)
        self._arm(min(soonest if first else math.inf, self._next(now)))

    def _first(self, now: float) -> "Gate | None":
        """The gate whose turn it is, among those that nothing of their own keeps shut."""
        able = [gate for gate in self.gates if gate.is_wanted() and gate.ready() <= now]
        return min(able, key=lambda gate: gate.turn) if able else None

    def _next(self, now: float) -> float:
        """When the first of those opens that something of their own keeps shut."""
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

    - `is_open`: calls need not enter, as nothing holds them back and nothing is to be learned.
    """

    def __init__(self, pool: _Pool, is_local: bool):
        self._pool = pool
        self._told = _Told(), _Told()
        self._probe = None if is_local else _Probe(pool.limit.in_flight or _SLOW_START)
        self._is_limited = pool.limit != Limit()
        self._until = -math.inf
        self._queue: list[tuple[tuple[float, int], Admission]] = []
        self._waiting = self._in_flight = self._most = self._admitted = self._throttled = 0
        self._used = 0.0
        self.is_open = self._may_be_open = is_local and not self._is_limited
        pool.gates.append(self)

    async def enter(
        self, cost: float = 0.0, *, priority: float = 0.0, turn: tuple[float, int] | None = None
    ) -> Admission:
        """Waits for a call's turn: those of lower `priority` first, and in the order in which they came.

        **Arguments:**

        - `cost`: the tokens that the call is estimated to use.
        - `turn`: that of an admission that has left, to try again in its place.

        **Returns:** the admission to leave with, by `succeeded`, `failed` or `abandoned`.
        """
        turn = turn or (priority, next(self._pool.turns))
        admission = Admission(turn, cost, self._pool.loop.create_future())
        heapq.heappush(self._queue, (turn, admission))
        self._waiting += 1
        self._pool.pump()
        try:
            await admission.admitted
        except asyncio.CancelledError:
            if admission.admitted.cancelled():
                self._waiting -= 1
                self._pool.pump()
            else:  # admitted, and cancelled before it heard of it
                self._pool.take(self._pool.loop.time(), -1.0, -cost)
                self.abandoned(admission)
            raise
        return admission

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
        """The time from which nothing of the gate's own holds back the first call that waits."""
        at = max(self._until, self._told[0].ready(1.0), self._told[1].ready(self.cost))
        return at if self._probe is None else max(at, self._probe.ready(self._in_flight, self._is_known()))

    def admit(self, now: float) -> None:
        """Lets the first call that waits begin."""
        admission = heapq.heappop(self._queue)[1]
        self._pool.admit(now, admission.cost)
        self._told[0].take(now, 1.0)
        self._told[1].take(now, admission.cost)
        if self._probe is not None:
            self._probe.take(now)
        admission.at, admission.marks = now, (self._told[0].taken, self._told[1].taken)
        self._waiting -= 1
        self._in_flight += 1
        self._most = max(self._most, self._in_flight)
        self._admitted += 1
        self._used += admission.cost
        self.is_open = self._may_be_open and not self._waiting
        admission.admitted.set_result(None)

    def succeeded(self, admission: Admission, tokens: float | None, quota: Quota | None) -> None:
        """A call was answered: with the tokens that it has used, and what the service said of its limits."""
        now = self._pool.loop.time()
        if self._probe is not None:
            self._probe.succeeded(now, admission.at, self._in_flight)
        if tokens is not None:
            self._pool.take(now, 0.0, tokens - admission.cost)
            self._told[1].correct(now, tokens - admission.cost)
            self._used += tokens - admission.cost
        self._hear(now, admission, quota)
        self.abandoned(admission)

    def failed(self, admission: Admission | None, refused: bool, wait: float | None, quota: Quota | None) -> None:
        """A call was not answered: `refused` as one too many or otherwise, and all are asked to wait so many seconds.

        The admission is `None` for a call that passed while the gate was open.
        """
        now = self._pool.loop.time()
        if wait is not None:
            self._until = max(self._until, now + wait)
            self.is_open = False
        self._throttled += refused
        if admission is None:
            return
        if refused and self._probe is not None:
            self._probe.refused(now, admission.at, self._until, self._is_known())
        self._hear(now, admission, quota)
        self.abandoned(admission)

    def abandoned(self, admission: Admission) -> None:
        """A call has ended, nobody knows how."""
        self._in_flight -= 1
        self._pool.leave()
        self._pool.pump()

    def statistics(self) -> Statistics:
        """What was done so far. Calls that passed while the gate was open are not counted."""
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

    def _hear(self, now: float, admission: Admission, quota: Quota | None) -> None:
        if quota is not None:
            self._told[0].hear(now, quota.requests, admission.at, admission.marks[0], 1.0)
            self._told[1].hear(now, quota.tokens, admission.at, admission.marks[1], admission.cost)


class Limiter:
    """The gates of all models, on one event loop.

    **Arguments:**

    - `limits`: by provider, or by `provider/model`, which goes before. A provider's limit is shared by all of its
        models that have none of their own.
    - `loop`: whose time it is.
    """

    def __init__(self, limits: Mapping[str, Limit], loop: asyncio.AbstractEventLoop):
        self.loop = loop
        self._limits = limits
        self._pools: dict[str, _Pool] = {}
        self._gates: dict[tuple[str, str], Gate] = {}

    def gate(self, provider: str, model: str, is_local: bool) -> Gate:
        """The gate of a model; that of a local one stands open where no limit is given."""
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
        """What the calls of each model do, by `provider/model`."""
        return {"/".join(names): gate.statistics() for names, gate in list(self._gates.items())}
