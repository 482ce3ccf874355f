"""A hard cap on what calls may cost, under any concurrency.

Design note. What a call will cost is known when it is answered, which is too late to stop it. So the most that it may
come to is *reserved* before it is sent, and *settled* to what it did cost after. Spent and reserved together never
exceed the cap. A call whose worst case does not fit waits, first come, first served: what those in flight have
reserved comes back, and mostly they cost far less. Only if nothing is reserved and the first that waits still does not
fit, the budget is spent: all that wait fail, and all that come. That smaller ones might fit is not tried: they would
go through one at a time.

An attempt that failed has cost nothing if the service said so, by an error status, and keeps its reservation for the
next one. If it was sent, and its answer was lost, cut off or of no use, or nobody waited for it any longer, it may be
on the bill all the same: its worst case counts as spent, and the next attempt needs another reservation. So the cap
holds whatever of these the service bills, and what is counted as spent may be more than that. It holds by the prices
and bounds that it is given: a service that bills by others, such as those of a faster tier, is not held to it.

Amounts are whole trillionths of a dollar, so that the order in which calls are settled does not matter, and all that
was reserved is there again. Nothing here knows what a call is.
"""

import asyncio
import collections
import math
from dataclasses import dataclass

from .._errors import BudgetError

_UNITS = 10**12


@dataclass(frozen=True)
class Funds:
    """How a budget stands, in US dollars.

    **Fields:**

    - `cap`: what may be spent; infinite without a budget.
    - `spent`: what was paid, and the worst cases of the answers that were lost.
    - `lost`: these worst cases, which may be on the bill, or not.
    - `reserved`: what calls in flight may come to.
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


class Budget:
    """What may be spent, used from one event loop.

    **Arguments:**

    - `cap`: US dollars; infinite for no cap. With 0 nothing may be sent, not even what is free.

    **Attributes:**

    - `asks_worst`: whether it matters what is reserved.

    **Raises:** `ValueError` for what is not a number of dollars.
    """

    def __init__(self, cap: float):
        if not (isinstance(cap, int | float) and cap >= 0):
            raise ValueError(f"session(budget_usd={cap!r}): give US dollars, at least 0, or None for no budget.")
        self.asks_worst = 0 < cap < math.inf
        self._dollars = float(cap)
        self._cap = _units(cap) if cap < math.inf else math.inf
        self._spent = self._lost = self._reserved = self._holders = 0
        self._waiting: collections.deque[tuple[int, asyncio.Future[None]]] = collections.deque()
        self._used_up: str | None = None  # once the budget is spent: what is told to all who ask

    def funds(self) -> Funds:
        """How it stands."""
        return Funds(self._dollars, self._spent / _UNITS, self._lost / _UNITS, self._reserved / _UNITS)

    async def reserve(self, amount: int) -> None:
        """Takes from what is left, when it suffices. Raises `BudgetError` once it cannot."""
        if not self._cap:
            raise self._error(amount, "budget_usd=0 allows no call to be sent: it is for replaying what was answered.")
        if not amount:  # what is free needs no budget, and waits for none
            return
        if amount > self._cap:
            raise self._error(amount, self._too_dear(amount))
        if self._used_up:
            raise self._error(amount, self._used_up)
        if not self._waiting and amount <= self._left():
            return self._take(amount)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, turn))
        self._pump()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.exception() is None:  # served, and cancelled before it heard of it
                self.give_back(amount)
            else:
                self._pump()
            raise

    def give_back(self, amount: int, spent: int = 0, lost: int = 0) -> None:
        """Ends a reservation; so much of it, or more, was spent, and so much is lost."""
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
        """Serves those who wait, in order; if they wait for nothing, the budget is spent."""
        while self._waiting:
            amount, turn = self._waiting[0]
            if not turn.done():
                if amount > self._left():
                    if not self._holders:
                        self._end(amount)
                    return
                self._take(amount)
                turn.set_result(None)
            self._waiting.popleft()

    def _end(self, amount: int) -> None:
        self._used_up = (
            f"the budget is spent: {self.funds()}, and the next call may cost {usd(amount / _UNITS)}. To go on, run "
            "the same program again in a session with more budget_usd: what the journal holds is replayed and takes "
            "nothing of it. Less max_tokens lowers what a call may cost."
        )
        waiting, self._waiting = self._waiting, collections.deque()
        for worst, turn in waiting:
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
    """What one call takes of a budget, from its first attempt to its last.

    **Arguments:**

    - `budget`: whose.
    - `worst`: the US dollars that one attempt may come to.
    """

    __slots__ = ("_amount", "_budget", "_holds")

    def __init__(self, budget: Budget, worst: float):
        self._budget = budget
        self._amount = _units(worst)
        self._holds = False

    async def reserve(self) -> None:
        """Before an attempt: waits until its worst case fits. Raises `BudgetError` if it never will."""
        if not self._holds:
            await self._budget.reserve(self._amount)
            self._holds = True

    def settle(self, cost: float) -> None:
        """It was answered for so many dollars; NaN counts as the worst case, as nobody knows better."""
        self._end(spent=self._amount if math.isnan(cost) else _units(cost))

    def lose(self) -> None:
        """It was sent, nobody knows what became of it."""
        self._end(lost=self._amount)

    def give_back(self) -> None:
        """It costs nothing, or is settled already."""
        self._end()

    def _end(self, spent: int = 0, lost: int = 0) -> None:
        if self._holds:
            self._holds = False
            self._budget.give_back(self._amount, spent, lost)


def usd(dollars: float) -> str:
    """Dollars as they are shown."""
    return f"${dollars:,.6f}"


def _units(dollars: float) -> int:
    return round(dollars * _UNITS)
