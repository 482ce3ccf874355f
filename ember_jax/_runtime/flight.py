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
        # None until there is somebody to share with.
        self._flights: dict[Any, asyncio.Future[Any] | None] = {}

    async def do(self, key: Any, work: Callable[..., Awaitable[Any]], *args: Any) -> tuple[Any, bool]:
        """Returns the outcome, and whether it was shared, that is another caller's."""
        while key in self._flights:
            flight = self._flights[key]
            if flight is None:
                flight = self._flights[key] = asyncio.get_running_loop().create_future()
            try:
                return await asyncio.shield(flight), True
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not flight.cancelled() or (task is not None and task.cancelling()):
                    raise
        self._flights[key] = None
        try:
            outcome = await work(*args)
        except asyncio.CancelledError:
            if (flight := self._flights.pop(key)) is not None:
                flight.cancel()
            raise
        except BaseException as error:
            if (flight := self._flights.pop(key)) is not None:
                flight.set_exception(error)
                flight.exception()  # marked as seen: who waited may have been cancelled
            raise
        if (flight := self._flights.pop(key)) is not None:
            flight.set_result(outcome)
        return outcome, False
