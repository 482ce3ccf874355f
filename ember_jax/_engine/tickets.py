"""Tickets: sweeps under way for operators that have not come for them yet.

Design note. XLA runs a program's callbacks one at a time, so of two operators in one `jax.jit` the second would start
when the first has ended. So an operator is two callbacks there: the first *launches* its sweep on the event loop and
hands out a ticket, the second waits for the ticket's sweep. Launches return at once, and where they all come before the
first wait the sweeps overlap.

XLA's CPU backend schedules breadth first, by an instruction's depth in the graph of data (checked for jaxlib 0.10.2;
what others do was not, so nothing is launched there).
Two equal operators would launch before they wait; of two that stand at different depths the shallow one would wait
before the deep one launches. So the ticket goes through a chain of solved 1 x 1 systems (see `later`), which puts the
wait that much deeper: an operator overlaps with all that are launched within so many steps of it.

A launch costs 0.2 ms, half of it JAX's callback and half the sweep's way to another thread while this one goes on. A
program of one operator pays it for nothing: when the first is traced JAX does not tell that there will be no second,
and a function traced once may stand in a program twice.

A launch is a hint. XLA may drop it, repeat it or run it on another thread; a wait that finds no sweep for its ticket
runs its own. The two stand side by side in one jaxpr, with the same operands, so that whatever runs one runs the other.
What is left when a program fails is cancelled by the wait that failed; where somebody else's callback failed, there is
none, and a sweep ends by itself.
"""

import itertools
import threading
from collections.abc import Coroutine
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._jax.internals import deepened
from .._runtime import interrupt
from .._runtime.loop import Loop, Work

# The type of a ticket: a 1 x 1 matrix, as `later` solves systems with it. A float32 is exact for whole numbers below
# 2**24.
TICKET = jax.ShapeDtypeStruct((1, 1), jnp.float32)
# The ticket of no sweep: numbers start at 1.
NONE = np.zeros(TICKET.shape, TICKET.dtype)
_LAST = 2**24 - 1

# How many instructions a wait stands deeper than its launch: operators overlap whose launches differ less in depth. A
# common difference is that of a chain of `jax.random.split`, which gives each of many operators its key: each further
# key is three to six instructions deeper. 32 cost 10 us a call, and 10 ms where a program is compiled.
_DEPTH = 32
# How many tickets may be out at once. A program that failed may never come for its own, so beyond this number the
# oldest sweep is abandoned.
_MOST = 4096
# How long `Flight.abandon` waits for a cancelled sweep to end.
_END_SECONDS = 0.5


def later(ticket: Any) -> Any:
    """The same ticket, later."""
    return deepened(ticket, _DEPTH)


class Flight:
    """A sweep that has been launched, and that nobody waits for yet.

    **Arguments:**

    - `sweep`: the coroutine.
    - `loop`: where it runs, from now on.

    **Attributes:**

    - `work`: what is waited for.
    - `thread`: that which launched it.
    """

    def __init__(self, sweep: Coroutine[Any, Any, Any], loop: Loop):
        self.work = loop.work(sweep)
        self.thread = threading.get_ident()
        interrupt.watch(self.work)
        self._outcome = self.work.start()
        self._outcome.add_done_callback(lambda _: interrupt.forget(self.work))

    def abandon(self) -> None:
        """Stops it, and waits until it has ended, but not for ever."""
        self.work.cancel()
        if not self._outcome.done():
            self.work.wait_for_end(_END_SECONDS)


_lock = threading.Lock()
_flights: dict[int, Flight] = {}
_numbers = itertools.count()


def launch(sweep: Coroutine[Any, Any, Any], loop: Loop) -> np.ndarray:
    """Starts a sweep; returns the ticket for it."""
    flight = Flight(sweep, loop)
    with _lock:
        number = 1 + next(_numbers) % _LAST
        _flights[number] = flight
        old = _flights.pop(next(iter(_flights))) if len(_flights) > _MOST else None
    if old is not None:
        old.abandon()
    return np.full(TICKET.shape, number, TICKET.dtype)


def take(ticket: Any) -> Work | None:
    """The sweep of a ticket, for whoever comes first."""
    with _lock:
        flight = _flights.pop(int(np.asarray(ticket).item()), None)
    return None if flight is None else flight.work


def abandon() -> None:
    """Cancels what the calling thread has launched and nobody has come for: its program has failed.

    A thread runs the callbacks of one program at a time. (Of a program that runs inside another's callback the outer
    one's are cancelled too, and run again when they are waited for.)
    """
    thread = threading.get_ident()
    with _lock:
        left = [number for number, flight in _flights.items() if flight.thread == thread]
        flights = [_flights.pop(number) for number in left]
    for flight in flights:
        flight.abandon()
