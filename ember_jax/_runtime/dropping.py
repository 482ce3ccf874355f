"""Providers that are dropped are closed, as soon as no call is on its way through them.

Design note. A provider has connections. It is *dropped* when another takes its name, or when the session that it was
given to has ended. Calls may be on their way through it, which wait at a limit or for another attempt. They hold it,
and it is closed when the last of them has ended. So a provider's own `close` may be as abrupt as it likes.

What nobody has dropped, a provider that was used by itself and forgotten, closes its connections itself when it is
collected.
"""

import asyncio
import concurrent.futures
import os

from ..providers import registry
from ..providers.base import Provider
from .loop import Loop, started

# By the identity of a provider: how many calls are on their way through it. Used on the event loop only, as is what
# follows.
_calls: dict[int, int] = {}
# Providers that are to be closed when the last of these has ended.
_dropped: dict[int, Provider] = {}
# What closes providers; a loop holds its tasks weakly.
_closing: set[asyncio.Task[None]] = set()


def hold(provider: Provider) -> None:
    """A call is on its way through a provider, which is not closed until its `let_go`. On the event loop."""
    name = id(provider)
    _calls[name] = _calls.get(name, 0) + 1


def let_go(provider: Provider) -> None:
    """The call has ended."""
    name = id(provider)
    left = _calls[name] - 1
    if left:
        _calls[name] = left
        return
    del _calls[name]
    if _dropped.pop(name, None) is not None:
        task = asyncio.get_running_loop().create_task(provider.close())
        _closing.add(task)
        task.add_done_callback(_closed)


def _closed(task: asyncio.Task[None]) -> None:
    _closing.discard(task)
    if not task.cancelled():
        task.exception()  # nobody waits for it, and asyncio logs exceptions that nobody has retrieved


def drop(provider: Provider, loop: Loop) -> concurrent.futures.Future[None]:
    """Closes a provider, now or when the last call on its way through it has ended.

    **Returns:** a future that is done when it is closed, or is left to that call.
    """
    return loop.submit(_drop(provider))


async def _drop(provider: Provider) -> None:
    if id(provider) in _calls:
        _dropped[id(provider)] = provider
    else:
        await provider.close()


async def all_closed() -> None:
    """Waits until what was dropped is closed, once no call is on its way."""
    await asyncio.gather(*_closing, return_exceptions=True)


def register(name: str, provider: Provider) -> None:
    """Lets model ids that begin with `name/` be answered by `provider`, from the next call on.

    A name that was registered before is replaced. Calls on their way through the provider that it stood for go on, and
    when the last of them has ended that provider's connections are closed, unless another name stands for it.

    **Raises:** `ModelError` for a name that cannot stand in a model id; `TypeError` for what is not a `Provider`.
    """
    before = registry.register(name, provider)
    if before is not None and (loop := started()) is not None:  # before any call there are no connections
        drop(before, loop)


def _after_fork() -> None:
    # The parent's calls are not on their way here.
    _calls.clear()
    _dropped.clear()
    _closing.clear()


os.register_at_fork(after_in_child=_after_fork)
