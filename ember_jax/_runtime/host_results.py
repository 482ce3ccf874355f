"""Results of host functions: those of equal calls are one, in memory for as long as the session or in the journal."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from ..providers.base import Request, Response
from .flight import SingleFlight
from .journal.base import AbstractJournal, Entry
from .memo import Memo


class HostResults:
    """The results of a session's host functions. Used on the event loop.

    **Arguments:**

    - `journal`: where results are kept that have a name to be kept by.
    """

    def __init__(self, journal: AbstractJournal):
        self._journal = journal
        self._flights = SingleFlight()
        self._memo = Memo()
        self._names: dict[Any, bytes] = {}
        # The calls that were in flight when the session was told to forget answers: they may have been made of these.
        self._stale: set[bytes] = set()

    def clear(self) -> None:
        """Forgets the results in memory, and those of calls in flight; from any thread."""
        self._stale.update(self._flights.keys())
        self._memo.clear()

    # The result of a pure host call is in memory (`known`), or an equal call in flight gives it (`shared`), or the
    # caller makes it: `begins`, and then `succeeded` or `failed`. A coroutine that did all this would take a part of
    # the time of a call, of which a sweep makes very many.

    def key(self, function: Any, content: bytes) -> bytes:
        """What tells a call from others: its function, and its arguments as bytes."""
        name = self._names.get(function)
        if name is None:
            name = self._names[function] = len(self._names).to_bytes(4, "big")
        return name + content

    def known(self, key: bytes) -> bytes | None:
        """The result in memory."""
        return self._memo.get(key)

    def begins(self, key: bytes) -> bool:
        """Whether no equal call is in flight; the caller's is, from now on."""
        return self._flights.begins(key)

    def succeeded(self, key: bytes, result: bytes) -> None:
        """The call has given a result. It is not kept if the session was told to forget answers meanwhile."""
        self._keep(key, result)
        self._flights.succeeded(key, result)

    def failed(self, key: bytes, error: BaseException) -> None:
        """The call has failed."""
        self._stale.discard(key)
        self._flights.failed(key, error)

    async def shared(self, key: bytes, work: Callable[[], Awaitable[bytes]]) -> bytes:
        """The result of the equal call in flight; of `work()`, if that call is cancelled."""
        result, is_shared = await self._flights.do(key, work)
        if not is_shared:
            self._keep(key, result)
        return result

    def _keep(self, key: bytes, result: bytes) -> None:
        if key in self._stale:
            self._stale.discard(key)
        else:
            self._memo.put(key, result)

    async def journaled(self, digest: bytes, work: Callable[[], Awaitable[bytes]], name: str = "") -> bytes:
        """The results that the journal has under `digest`. If it has none, does the work and keeps its results.

        They are kept as an answer of the model `host/name`. The bytes must be UTF-8, as the journal keeps text.
        """

        async def do() -> Response:
            known = await self._journal.ready(digest)
            if known is not None:
                return known
            began = time.time()
            response = Response((await work()).decode())
            return await self._journal.put(digest, Entry(Request("host", name, ()), response, "", began, time.time()))

        known = self._journal.get(digest) or (await self._flights.do(digest, do))[0]
        return known.text.encode()
