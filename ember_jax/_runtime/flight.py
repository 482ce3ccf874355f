"""Single flight: equal work that is wanted twice at once is done once."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any


class SingleFlight:
    """Shares one execution among everybody who asks for the same key while it runs. Used from one event loop.

    Who comes first does the work; the others wait for its outcome, good or bad. If the first is cancelled, the next
    one takes over, so that one sweep's Ctrl-C cannot cancel another's call.
    """

    def __init__(self) -> None:
        self._flights: dict[Any, asyncio.Future[Any]] = {}

    async def do(self, key: Any, work: Callable[[], Awaitable[Any]]) -> tuple[Any, bool]:
        """Returns the outcome, and whether it was shared, that is another caller's."""
        while (flight := self._flights.get(key)) is not None:
            try:
                return await asyncio.shield(flight), True
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not flight.cancelled() or (task is not None and task.cancelling()):
                    raise
        flight = asyncio.get_running_loop().create_future()
        self._flights[key] = flight
        try:
            outcome = await work()
        except asyncio.CancelledError:
            flight.cancel()
            raise
        except BaseException as error:
            flight.set_exception(error)
            flight.exception()  # marked as seen: there may be nobody else to see it
            raise
        else:
            flight.set_result(outcome)
            return outcome, False
        finally:
            del self._flights[key]
