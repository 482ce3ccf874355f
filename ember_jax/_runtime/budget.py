"""A hard cap on what calls may cost, under any concurrency.

Design note. What a call costs is known only when it is answered, which is too late to stop it. So the most that a call
may cost (its *worst case*) is *reserved* before the call is sent. After the answer the reservation is *settled*: the
actual cost counts as spent, and the rest can be reserved by others. Spent and reserved together never exceed the cap.

A call whose worst case does not fit waits, first come, first served. Waiting helps, because calls in flight mostly cost
far less than they have reserved. If nothing is reserved and the first waiting call still does not fit, no waiting can
help it: the budget is spent. Then all waiting calls fail, and so does every later call that is not free. The
alternative, to look for a smaller call behind the first, was rejected: small calls would go through one at a time.

What a failed attempt costs depends on how it failed:

- The service said by an error status that it failed. The attempt has cost nothing, and its reservation is kept for the
  next attempt.
- The attempt was sent, and its answer was lost, cut off or of no use, or its caller was cancelled. The attempt may be
  on the bill. Its worst case counts as spent (and as `lost`), and the next attempt needs another reservation.

So the cap holds whichever of these attempts the service bills, and `spent` may be more than the bill. The cap holds by
the prices and bounds that it is given, which are the highest that are known to be possible, see `prices.most_cost`. A
service that bills by other prices may bill more.

Amounts are whole trillionths of a dollar. Floating-point sums would depend on the order in which calls are settled, and
giving back a reservation might not restore what was left. Nothing here knows what a call is.
"""

import asyncio
import collections
import math
from dataclasses import dataclass

from ..errors import BudgetError

_UNITS = 10**12  # in a dollar


@dataclass(frozen=True)
class Funds:
    """How a budget stands, in US dollars.

    **Fields:**

    - `cap`: what may be spent; infinite without a budget.
    - `spent`: the cost of the calls that were answered, and the worst cases of the attempts whose answers were lost.
    - `lost`: the part of `spent` that is those worst cases. The service may have billed them, or not.
    - `reserved`: the sum of the worst cases of the calls in flight.
    """

    cap: float
    spent: float
    lost: float
    reserved: float

    @property
    def left(self) -> float:
        """What may still be reserved."""
        return self.cap - self.spent - self.reserved

    def __str__(self) -> str:
        lost = f" ({usd(self.lost)} of it for answers that were lost)" if self.lost else ""
        rest = "" if math.isinf(self.cap) else f", {usd(self.left)} left of {usd(self.cap)}"
        return f"{usd(self.spent)} spent{lost}, {usd(self.reserved)} reserved{rest}"


class Excessive(Exception):
    """A request for several answers does not fit, and no waiting helps it. Fewer answers may fit."""


class Budget:
    """What may be spent. It has no lock, and is used from one event loop only.

    **Arguments:**

    - `cap`: US dollars; infinite for no cap. With 0 nothing may be sent, not even what is free.

    **Attributes:**

    - `has_cap`: whether anything bounds what may be spent.
    - `asks_worst`: whether a call's worst case has to be worked out. It has not if the cap is 0 or infinite, as the
        answer to `reserve` is then the same for every amount.

    **Raises:** `ValueError` if `cap` is negative, NaN or no number.
    """

    def __init__(self, cap: float):
        if not (isinstance(cap, int | float) and cap >= 0):
            raise ValueError(f"session(budget_usd={cap!r}): give US dollars, at least 0, or None for no budget.")
        self.has_cap = cap < math.inf
        self.asks_worst = 0 < cap < math.inf
        self._dollars = float(cap)
        self._cap = _units(cap) if cap < math.inf else math.inf
        self._spent = self._lost = self._reserved = self._holders = 0
        # The amounts that are waited for, whether they can be divided, and the turns.
        self._waiting: collections.deque[tuple[int, bool, asyncio.Future[None]]] = collections.deque()
        # The message of the error that every call gets once the budget is spent; `None` until then.
        self._used_up: str | None = None

    def funds(self) -> Funds:
        """How the budget stands now."""
        return Funds(self._dollars, self._spent / _UNITS, self._lost / _UNITS, self._reserved / _UNITS)

    @property
    def is_open(self) -> bool:
        """Whether anything may be sent at all."""
        return self._cap > 0

    async def reserve(self, amount: int, is_divisible: bool = False) -> None:
        """Waits until `amount` (trillionths of a dollar) fits into what is left, and reserves it.

        **Raises:** `BudgetError` if it can never fit: the cap is 0 or less than the amount, or the budget is spent. For
        what is divisible, `Excessive` in place of what would end the budget, or be refused for its size alone.
        """
        if not self._cap:
            raise self._error(amount, "budget_usd=0 allows no call to be sent: it is for replaying what was answered.")
        if not amount:  # what is free needs no budget, and waits for none
            return
        if amount > self._cap:
            if is_divisible:
                raise Excessive
            raise self._error(amount, self._too_dear(amount))
        if self._used_up:
            raise self._error(amount, self._used_up)
        if not self._waiting and amount <= self._left():
            return self._take(amount)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, is_divisible, turn))
        self._pump()  # if nothing is reserved, this call would wait for ever; pumping ends the budget instead
        try:
            await turn
        except asyncio.CancelledError:
            # `_pump` may have reserved for this call before the task was cancelled, but after it last ran. Nobody else
            # knows of that reservation, so it is given back here.
            if not turn.cancelled() and turn.exception() is None:
                self.give_back(amount)
            else:  # the call behind this one may fit
                self._pump()
            raise

    def give_back(self, amount: int, spent: int = 0, lost: int = 0) -> None:
        """Ends a reservation of `amount`, of which `spent` was billed and `lost` may have been.

        Either may be more than the amount: a service may bill more than the worst case that was worked out. All are in
        trillionths of a dollar.
        """
        self._spent += spent + lost
        self._lost += lost
        if amount:
            self._reserved -= amount
            self._holders -= 1
            self._pump()

    def _left(self) -> float:
        return self._cap - self._spent - self._reserved

    def _take(self, amount: int) -> None:
        self._reserved += amount
        self._holders += 1

    def _pump(self) -> None:
        """Reserves for waiting calls, in order, while the first one fits. If nothing is reserved, ends the budget."""
        while self._waiting:
            amount, is_divisible, turn = self._waiting[0]
            if not turn.done():  # a future that is done is a caller's who was cancelled; it is dropped below
                if amount <= self._left():
                    self._take(amount)
                    turn.set_result(None)
                elif self._holders:
                    return
                elif is_divisible:
                    turn.set_exception(Excessive())
                else:
                    return self._end(amount)
            self._waiting.popleft()

    def _end(self, amount: int) -> None:
        self._used_up = (
            f"the budget is spent: {self.funds()}, and the next call may cost {usd(amount / _UNITS)}. To go on, run "
            "the same program again in a session with more budget_usd: what the journal holds is replayed and takes "
            "nothing of it. Less max_tokens lowers what a call may cost."
        )
        waiting, self._waiting = self._waiting, collections.deque()
        for worst, _, turn in waiting:
            if not turn.done():
                turn.set_exception(self._error(worst, self._used_up))

    def _too_dear(self, amount: int) -> str:
        return (
            f"this call alone may cost {usd(amount / _UNITS)}, more than all of budget_usd={self._dollars:g}: "
            f"{self.funds()}. Give it less max_tokens, which bounds its answer, or the session a larger budget_usd."
        )

    def _error(self, amount: int, message: str) -> BudgetError:
        funds = self.funds()
        return BudgetError(message, cap=funds.cap, spent=funds.spent, reserved=funds.reserved, worst=amount / _UNITS)


class Hold:
    """What one call reserves of a budget, from its first attempt to its last. Of one without a cap it is nothing, and
    one hold may serve any number of calls.

    **Arguments:**

    - `budget`: the budget that is reserved from.
    - `worst`: the US dollars that one attempt may cost at most.
    """

    __slots__ = ("_amount", "_budget", "_holds", "_stays")

    def __init__(self, budget: Budget, worst: float):
        self._budget = budget
        self._amount = _units(worst)
        self._holds = self._stays = not (budget.has_cap or self._amount)

    def is_reserved(self) -> bool:
        """Whether the next attempt can go at once: the last one has left its reservation, or it costs nothing."""
        if not self._holds and not self._amount and self._budget.is_open:
            self._holds = True
        return self._holds

    async def reserve(self, is_divisible: bool = False) -> None:
        """To be awaited before each attempt: waits until its worst case fits, and reserves it.

        **Raises:** `BudgetError` if the worst case will never fit; for what is divisible, `Excessive` if that is so.
        """
        if not self._holds:  # an attempt that cost nothing leaves its reservation to the next one
            await self._budget.reserve(self._amount, is_divisible)
            self._holds = True

    def settle(self, cost: float) -> None:
        """The attempt was answered and costs `cost` US dollars. NaN, an unknown cost, counts as the worst case."""
        self._end(spent=self._amount if math.isnan(cost) else _units(cost))

    def lose(self, worst: float = math.nan) -> None:
        """The attempt was sent and may be billed, but its answer is lost: its worst case counts as spent.

        Where nothing was reserved, as without a budget, that is `worst` US dollars; nothing if they are not known.
        """
        self._end(lost=self._amount or (_units(worst) if math.isfinite(worst) else 0))

    def give_back(self) -> None:
        """The call has ended: frees its reservation if it still has one, as after a refusal that costs nothing."""
        self._end()

    def _end(self, spent: int = 0, lost: int = 0) -> None:
        if self._holds:
            self._holds = self._stays
            self._budget.give_back(self._amount, spent, lost)


def usd(dollars: float) -> str:
    """Dollars as they are shown."""
    return f"${dollars:,.6f}"


def _units(dollars: float) -> int:
    return round(dollars * _UNITS)
