"""Results of host functions: those of equal calls are one, in memory for as long as the session or in the journal."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from .._providers.base import Request, Response
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

    def clear(self) -> None:
        """Forgets the results in memory; from any thread."""
        self._memo.clear()

    async def remember(self, function: Any, content: bytes, work: Callable[..., Awaitable[bytes]], *args: Any) -> bytes:
        """The result of a pure host call: from memory, from an equal call in flight, or by `work(*args)`.

        `function` and `content`, which tells its arguments, are equal for equal calls. A session that is told to forget
        answers while the work runs does not keep the result.
        """
        name = self._names.get(function)
        if name is None:
            name = self._names[function] = len(self._names).to_bytes(4, "big")
        key = name + content
        known = self._memo.get(key)
        if known is not None:
            return known
        since = self._memo.cleared
        if self._flights.begins(key):  # as nearly always: then no coroutine stands between this one and the work
            try:
                result = await work(*args)
            except BaseException as error:
                self._flights.failed(key, error)
                raise
            self._memo.put(key, result, since)
            self._flights.succeeded(key, result)
            return result
        result, shared = await self._flights.do(key, work, *args)
        if not shared:
            self._memo.put(key, result, since)
        return result

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
