"""Waiting for rounds of the event loop, which take no time: what is ready at once has come when some have passed."""

import asyncio
from collections.abc import Callable


def after(rounds: int, then: Callable[[], object], loop: asyncio.AbstractEventLoop) -> None:
    """Calls a function when `rounds` rounds of a loop have passed; at once for none."""
    if rounds:
        loop.call_soon(after, rounds - 1, then, loop)
    else:
        then()
