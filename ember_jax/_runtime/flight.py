"""Single flight: equal work that is wanted twice at once is done once."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any


class SingleFlight:
    """Shares one execution among everybody who asks for the same key while it runs. Used from one event loop.

    The first caller does the work, and the others wait for its outcome: its result or its exception. If the first
    caller is cancelled, another one does the work anew. So a Ctrl-C that stops one sweep cannot cancel the calls of
    another.
    """

    def __init__(self) -> None:
        # The keys whose work runs. The value is `None` until a second caller asks for the key, and then the future
        # that it waits for: most calls share with nobody, and a future for each would be time spent for nothing.
        self._flights: dict[Any, asyncio.Future[Any] | None] = {}

    async def do(self, key: Any, work: Callable[..., Awaitable[Any]], *args: Any) -> tuple[Any, bool]:
        """Returns the outcome of `work(*args)`, and whether another caller's work made it.

        **Raises:** what the work raised, whoever did it.
        """
        while key in self._flights:
            flight = self._flights[key]
            if flight is None:
                flight = self._flights[key] = asyncio.get_running_loop().create_future()
            try:
                # Shielded: a waiting caller that is cancelled must not cancel the future that the others wait for.
                return await asyncio.shield(flight), True
            except asyncio.CancelledError:
                # Either the caller that did the work was cancelled, or this one. In the first case the loop goes round,
                # and this caller does the work if no other has begun to. If both were, this one ends.
                task = asyncio.current_task()
                if not flight.cancelled() or (task is not None and task.cancelling()):
                    raise
        self.begins(key)
        try:
            outcome = await work(*args)
        except BaseException as error:
            self.failed(key, error)
            raise
        self.succeeded(key, outcome)
        return outcome, False

    # What `do` does of a key that nobody else has asked for, for those who cannot wait for one coroutine more.

    def keys(self) -> list[Any]:
        """Those whose work runs; from any thread."""
        return list(self._flights)

    def begins(self, key: Any) -> bool:
        """Whether the caller is the first to ask for a key; its work begins, and it must tell the outcome."""
        if key in self._flights:
            return False
        self._flights[key] = None
        return True

    def succeeded(self, key: Any, outcome: Any) -> None:
        """Ends the work of a key with its result."""
        if (flight := self._flights.pop(key)) is not None:
            flight.set_result(outcome)

    def failed(self, key: Any, error: BaseException) -> None:
        """Ends the work of a key with an exception; if that says that it was cancelled, another caller does it."""
        if (flight := self._flights.pop(key)) is None:
            return
        if isinstance(error, asyncio.CancelledError):
            flight.cancel()
        else:
            flight.set_exception(error)
            # Marks the exception as retrieved. All that waited may have been cancelled, and asyncio would then log
            # that it was never retrieved.
            flight.exception()
