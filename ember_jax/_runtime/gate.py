"""Where calls wait until they may start: first come, first served, and no earlier than limits allow.

Design note. A call waits in the *gate* of its model until nothing holds it back. Gates whose models share a limit that
was given share a *pool*. Everything that can hold a call back answers one question: from which time on will it no
longer do so? So a pool needs one timer and never polls. An admission costs O(log n) for the n calls that wait, and
O(1) for everything else. These are the things that hold calls back:

- *A quota that is given*: a token bucket of the pool (`bucket.py`).
- *A quota that a service tells* in its headers (`told.py`).
- *Where nothing is known*, a pace that is found out by when the service refuses (`probe.py`).
- *`Retry-After`* holds the whole gate back until its time has come.
- *Refusals in a row* make the whole gate pause (`pause.py`).

What is given is a bound, and what is not given is still found out.

Calls that wait here are as patient as those that were sent. If the service holds a call back for longer than the
policy lets a call be tried, it fails at once instead of at the end: nobody would see why it waits, and it would fail
then. A pace is no such wait, however long the queue: the gate lets calls through.

Times are those of the running event loop, which a virtual clock may own. Nothing here knows what a call is.
"""

import asyncio
import functools
import itertools
import math
from collections.abc import Callable, Mapping

from ..providers.quota import Quota
from .allowed import Allowed, Delay
from .bucket import per_minute
from .limits import MOST_IN_FLIGHT, Limit, Statistics, pool_of
from .line import Admission, Line, TooLong

# A wait of more seconds is told of.
TOLD_SECONDS = 3.0


class Pool:
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
        self._requests, self._tokens = per_minute(limit.rpm), per_minute(limit.tpm)
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

    def held(self, cost: float) -> Delay:
        """Which limit that was given holds back a call, and until when."""
        held = Delay(-math.inf, "")
        if self._requests:
            held = Delay(self._requests.ready(1.0), f"Limit(rpm={self.limit.rpm:g})")
        if self._tokens and (at := self._tokens.ready(cost)) > held.until:
            held = Delay(at, f"Limit(tpm={self.limit.tpm:g})")
        return held

    def is_waited_at(self) -> bool:
        """Whether any call waits at one of the gates."""
        if len(self.gates) == 1:  # as most pools have
            return self.gates[0].line.waiting > 0
        return any(gate.line.waiting for gate in self.gates)

    def pump(self) -> None:
        """Admits whoever may start now, and sets the timer for the next."""
        now, soonest = self.loop.time(), math.inf
        while (gate := self._first(now)) is not None:
            first = gate.line.first()
            assert first is not None
            soonest = self.ready(first.cost)
            # No cheaper call overtakes, though it might fit: with a steady stream of cheap calls a dear one would never
            # have its turn.
            if soonest > now:
                break
            gate.begin(gate.line.call(), now)
        when = min(soonest if gate else math.inf, self._next(now))
        self._arm(when)
        if now + TOLD_SECONDS < when < math.inf:
            for gate in self.gates:
                gate.overlook(now)

    def _first(self, now: float) -> "Gate | None":
        """The gate whose first call has the lowest turn, among the gates that nothing but the pool keeps shut."""
        if len(self.gates) == 1:  # as most pools have
            gate = self.gates[0]
            return gate if gate.ready() <= now else None
        able = [(first.turn, gate) for gate in self.gates if (first := gate.line.first()) and gate.ready() <= now]
        return min(able, key=lambda found: found[0])[1] if able else None

    def _next(self, now: float) -> float:
        """When the first of the gates opens that something of their own keeps shut, with a call waiting."""
        return min((at for gate in self.gates if (at := gate.ready()) > now), default=math.inf)

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

    def __init__(self, pool: Pool, is_local: bool, tell: Callable[[str, float, float, int], None]):
        self._pool = pool
        self._allowed = Allowed(pool.limit, is_local)
        self._patience = math.inf  # the least of all calls
        self._tell, self._told = tell, -math.inf
        self.line = Line()
        self._in_flight = self._most = self._admitted = self._unsent = self._throttled = 0
        self._used = 0.0
        self.is_open = self._may_be_open = is_local and pool.limit == Limit()
        pool.gates.append(self)

    async def enter(
        self,
        cost: float = 0.0,
        *,
        priority: float = 0.0,
        turn: tuple[float, int] | None = None,
        patience: float = math.inf,
        refused: Callable[[], Exception | None] = lambda: None,
    ) -> Admission:
        """Waits for a call's turn: calls of lower `priority` first, equal ones in the order in which they came.

        **Arguments:**

        - `cost`: the tokens that the call is estimated to use.
        - `turn`: the turn of the admission of an earlier attempt, so that a call that is tried again keeps its place.
        - `patience`: for how many seconds the service may hold the call back.
        - `refused`: tells why the call is not to be admitted any more; `None` if it is.

        **Returns:** the admission to leave with, by `succeeded`, `failed` or `abandoned`.

        **Raises:** `TooLong` if the service holds the call back for longer than a call may wait; what `refused` tells,
        now or at a `dismiss`.
        """
        if (why := refused()) is not None:
            raise why
        turn, now = turn or (priority, next(self._pool.turns)), self._pool.loop.time()
        # Mostly nobody waits and nothing holds the call back: it need not stand in line.
        ready = math.inf if self._pool.is_waited_at() else self._pool.ready(cost)
        if max(ready, self._allowed.ready(self._in_flight, cost)) <= now:
            admission = Admission(turn, cost, now, patience)
            self.begin(admission, now)
            return admission
        admission = Admission(turn, cost, now, patience, refused)
        self._patience = min(self._patience, patience)
        if (fault := self._fault(now, admission)) is not None:
            raise fault
        admitted = self._pool.loop.create_future()
        self.line.join(admission, admitted)
        self._pool.pump()
        try:
            await admitted
        except asyncio.CancelledError:
            if admitted.cancelled():
                self.line.waiting -= 1
                self._pool.pump()
            elif admitted.exception() is None:
                self.give_back(admission)
            raise
        return admission

    def give_back(self, admission: Admission) -> None:
        """A call was admitted and is not sent: its task was cancelled before it ran again, or its answer is known."""
        now = self._pool.loop.time()
        self._pool.take(now, -1.0, -admission.cost)
        self._allowed.give_back(now, admission.sent)
        self._unsent += 1
        self._used -= admission.cost
        self.abandoned(admission)

    def dismiss(self) -> None:
        """Ends the wait of calls that are not to be admitted any more."""
        if self.line.waiting:
            self.line.dismiss(lambda waiting: waiting.refused())

    @property
    def limits_tokens(self) -> bool:
        """Whether it matters how many tokens a call will use."""
        return self._pool.limit.tpm is not None or self._allowed.tells_tokens

    def ready(self) -> float:
        """The time from which nothing of the gate's own (and not of its pool's) holds back its first call.

        It is infinite if no call waits, or if one that is in flight has to end before.
        """
        first = self.line.first()
        return math.inf if first is None else self._allowed.ready(self._in_flight, first.cost)

    def begin(self, admission: Admission, now: float) -> None:
        """A call begins, for which it is the time."""
        self._pool.admit(now, admission.cost)
        admission.sent = self._allowed.take(now, admission.cost, self._admitted)
        self._in_flight += 1
        self._most = max(self._most, self._in_flight)
        self._admitted += 1
        self._used += admission.cost
        self.is_open = self._may_be_open and not self.line.waiting

    def succeeded(self, admission: Admission, tokens: float | None, quota: Quota | None) -> None:
        """A call was answered.

        **Arguments:**

        - `admission`: the call's.
        - `tokens`: how many it has used; `None` if the service does not say.
        - `quota`: what the service said of its limits; `None` for nothing.
        """
        now = self._pool.loop.time()
        if tokens is not None:
            self._pool.take(now, 0.0, tokens - admission.cost)
            self._used += tokens - admission.cost
        self._allowed.answered(now, admission.sent, self._in_flight, tokens, quota)
        self.abandoned(admission)

    def failed(self, admission: Admission | None, refused: bool, wait: float | None, quota: Quota | None) -> None:
        """A call has failed.

        **Arguments:**

        - `admission`: the call's; `None` if it passed while the gate was open.
        - `refused`: whether it was refused as one too many (429).
        - `wait`: the seconds for which the service asks all calls to wait; `None` if it does not.
        - `quota`: what the service said of its limits; `None` for nothing.
        """
        now = self._pool.loop.time()
        if wait is not None:
            self._allowed.asked(now, wait, f"the service, which asked to wait ({'429' if refused else 'Retry-After'})")
            self.is_open = False  # `begin` opens the gate again, when the last call that waits has its turn
        self._throttled += refused
        if admission is not None:
            self._allowed.failed(now, admission.sent, refused, wait, quota)
        if self._allowed.shut()[1] > self._patience:
            self.line.dismiss(lambda waiting: self._fault(now, waiting))
        if admission is not None:
            self.abandoned(admission)

    def abandoned(self, admission: Admission) -> None:
        """A call has ended, and nothing is learned from how."""
        self._in_flight -= 1
        self._pool.leave()
        if self._pool.is_waited_at():
            self._pool.pump()

    def statistics(self) -> Statistics:
        """What was done so far. Calls that passed while the gate was open are not counted. From any thread."""
        now = self._pool.loop.time()
        held = self._held(now)
        return Statistics(
            waiting=self.line.waiting,
            in_flight=self._in_flight,
            most_in_flight=self._most,
            admitted=self._admitted - self._unsent,
            throttled=self._throttled,
            tokens=self._used,
            rate=min(self._pool.rate, self._allowed.rate(now)),
            held_s=max(held.until - now, 0.0),
            held_by=held.by if held.until > now else "",
        )

    def _held(self, now: float) -> Delay:
        """What holds back the call whose turn it is; a time that is over if none waits, or nothing does."""
        first = self.line.seen()
        if first is None:
            return Delay(now, "")
        given, found = self._pool.held(first.cost), self._allowed.held(self._in_flight, first.cost)
        return max(given, found, key=lambda held: held.until)

    def overlook(self, now: float) -> None:
        """Sees to a long wait: it is told of once, and calls for which it is too long are dismissed."""
        held = self._held(now)
        if held.until > now + TOLD_SECONDS and held.until > self._told + 1.0:
            added, self._told = held.until - max(now, self._told), held.until
            self._tell(held.by, held.until - now, added, self.line.waiting)
        first = self.line.first()
        if first is not None and self._fault(now, first) is not None:
            self.line.dismiss(lambda waiting: self._fault(now, waiting))

    def shut_s(self) -> float:
        """For how many seconds the service lets no call through, as far as that is known."""
        return max(self._allowed.shut()[0] - self._pool.loop.time(), 0.0)

    def _fault(self, now: float, admission: Admission) -> TooLong | None:
        """Why a call that waits has to end; `None` if it has not."""
        if admission.patience == math.inf:
            return None
        seconds, by = self._allowed.stopped(now, admission.cost, admission.came, self._in_flight)
        return TooLong(seconds, by, admission.patience) if seconds > admission.patience else None


class Limiter:
    """The gates of all models, on one event loop.

    **Arguments:**

    - `limits`: by provider, or by `provider/model`, which takes precedence. A provider's limit is shared by all of its
        models that have none of their own.
    - `loop`: the event loop on which calls wait, and whose clock counts.
    - `tell`: is told of a model, what holds its calls back for long, for how many seconds, how many of these were not
        told before, and how many calls wait.
    """

    def __init__(
        self,
        limits: Mapping[str, Limit],
        loop: asyncio.AbstractEventLoop,
        tell: Callable[[str, str, float, float, int], None] = lambda model, by, seconds, added, waiting: None,
    ):
        self.loop = loop
        self._tell = tell
        self._limits = limits
        self._pools: dict[str, Pool] = {}
        self._gates: dict[tuple[str, str], Gate] = {}

    def gate(self, provider: str, model: str, is_local: bool) -> Gate:
        """The gate of a model. That of a local model stands open if no limit is given for it."""
        known = self._gates.get((provider, model))
        if known is not None:
            return known
        name = pool_of(self._limits, provider, model)
        pool = self._pools.get(name)
        if pool is None:
            pool = self._pools[name] = Pool(self._limits.get(name, Limit()), is_local, self.loop)

        tell = functools.partial(self._tell, f"{provider}/{model}")
        gate = self._gates[provider, model] = Gate(pool, is_local, tell)
        return gate

    def statistics(self) -> dict[str, Statistics]:
        """What the calls of each model do, by `provider/model`. From any thread."""
        # The items are copied first, as the event loop may add a gate while another thread is in this loop.
        return {"/".join(names): gate.statistics() for names, gate in list(self._gates.items())}
