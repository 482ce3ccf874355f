"""What a service refuses for good: calls of a model that can only fail as one of them has failed.

Design note. A wrong key (401), a model that the service does not have (404) and an account without credit fail all
calls of a model alike. When one has failed so, a *verdict* is passed: the calls of the model that wait, wherever they
do, fail with the same cause and are not sent. Those on their way end.

A verdict is about the calls that had come by then. Later ones may be those of a rerun, with a key that was mended or a
model that was added meanwhile, so they find out anew: the first of them is the *trial* and is sent alone, and the
others wait for how it ends. If it is answered they are sent; if it is refused for good they fail with it. A provider
that is registered anew has no verdict.

No verdict is passed on what may be about one call alone. A 400 and a 422 are about a prompt or a parameter. Some
services refuse a prompt by 403, where a filter dislikes it, and some by 402, where it is too long for what credit is
left. A 404 may be about a parameter, as gateways look for a server that takes it: then it holds for calls with equal
parameters. And if the model has answered before, one refusal may be that of one of several servers behind an address,
so it takes some in a row without an answer in between.
"""

import asyncio
import copy
import weakref
from collections.abc import Mapping
from typing import Any

from ..errors import AuthenticationError, ProviderError, RefusedRequestError
from ..providers.base import Provider, Request
from .retry import COMMON

# How many refusals in a row it takes where the model has answered before.
_IN_A_ROW = 8


class NotSent(Exception):
    """A call is not sent, as it would only fail as another has.

    **Attributes:**

    - `cause`: how that one failed; a copy, as raised in several one exception would gather the tracebacks of all.
    """

    def __init__(self, cause: ProviderError):
        super().__init__()
        self.cause = copy.copy(cause)


def is_final(error: ProviderError) -> bool:
    """Whether a service refuses for good what is more than one call."""
    if error.should_retry:
        return False
    if isinstance(error, AuthenticationError):
        return error.status in (400, 401)  # a 400 is one only where a dialect has found that it is about the key
    return isinstance(error, RefusedRequestError) and error.status in (404, 429)  # without credit it is 429


class Tracked:
    """A call on its way.

    **Arguments:**

    - `request`: what it asks.
    - `verdicts`: those of its model; `None` if none is ever passed.
    - `number`: how many calls of the model had come, itself included.
    """

    __slots__ = ("_number", "_verdicts", "request")

    def __init__(self, request: Request, verdicts: "Verdicts | None" = None, number: int = 0):
        self.request = request
        self._verdicts = verdicts
        self._number = number

    def fault(self) -> NotSent | None:
        """Why it is not to be sent; `None` if it is."""
        return None if self._verdicts is None else self._verdicts.fault(self._number, self.request)

    @property
    def is_free(self) -> bool:
        """Whether there is no verdict, so that it need not wait for a `trial`."""
        return self._verdicts is None or self._verdicts.cause is None

    async def trial(self) -> "asyncio.Future[None] | None":
        """Waits until it may be sent. Returns what it is to be `done` with, if it is the trial itself.

        **Raises:** `NotSent` if a verdict is about it.
        """
        return None if self._verdicts is None else await self._verdicts.trial(self._number, self.request)

    def done(self, trial: "asyncio.Future[None]") -> None:
        """The trial has ended, in whatever way."""
        if self._verdicts is not None:
            self._verdicts.done(trial)

    def answered(self) -> None:
        """It was answered."""
        if self._verdicts is not None:
            self._verdicts.answered(self._number)

    def failed(self, error: ProviderError) -> bool:
        """It has failed. Returns whether a verdict was passed, so that calls which wait have a fault."""
        return self._verdicts is not None and self._verdicts.failed(self.request, error)


class Verdicts:
    """What is known of the calls of one model, by one provider. Used on the event loop.

    **Attributes:**

    - `cause`: that of the verdict; `None` if there is none.
    """

    def __init__(self, provider: Provider):
        self._provider = weakref.ref(provider)
        self._came = 0
        self._has_answered, self._in_a_row = False, 0
        # Of the verdict: the parameters that it is about (`None` for any), and how many calls had come. And the trial,
        # which is done when it has ended.
        self.cause: ProviderError | None = None
        self._only: Mapping[str, Any] | None = None
        self._last = 0
        self._trial: asyncio.Future[None] | None = None

    def is_about(self, provider: Provider) -> bool:
        """Whether it is about the calls of a provider."""
        return self._provider() is provider

    def asked(self, request: Request) -> Tracked:
        """A call that has come."""
        self._came += 1
        return Tracked(request, self, self._came)

    # What follows is told of a call by its number, see `Tracked`.

    def fault(self, number: int, request: Request) -> NotSent | None:
        cause = self.cause
        return NotSent(cause) if cause is not None and number <= self._last and self._holds_for(request) else None

    async def trial(self, number: int, request: Request) -> "asyncio.Future[None] | None":
        while self._holds_for(request):
            if (fault := self.fault(number, request)) is not None:
                raise fault
            if self._trial is None:
                self._trial = asyncio.get_running_loop().create_future()
                return self._trial
            await asyncio.shield(self._trial)
        return None

    def done(self, trial: "asyncio.Future[None]") -> None:
        self._trial = None
        trial.set_result(None)

    def answered(self, number: int) -> None:
        self._has_answered, self._in_a_row = True, 0
        if number > self._last:
            self.cause = None

    def failed(self, request: Request, error: ProviderError) -> bool:
        if not is_final(error):
            return False
        self._in_a_row += 1
        if self.cause is None and self._has_answered and self._in_a_row < _IN_A_ROW:
            return False
        is_plain = error.status != 404 or request.parameters.keys() <= COMMON
        self.cause, self._only, self._last = error, None if is_plain else request.parameters, self._came
        return True

    def _holds_for(self, request: Request) -> bool:
        return self.cause is not None and (self._only is None or self._only == request.parameters)


class Docket:
    """The verdicts of a session, by model."""

    def __init__(self) -> None:
        self._verdicts: dict[tuple[str, str, bool], Verdicts] = {}

    def track(self, request: Request, provider: Provider) -> Tracked:
        """A call that has come, with what is known of its model. A Python function may refuse what it likes."""
        if provider.is_local:
            return Tracked(request)
        name = request.provider, request.model, request.decides  # a model may have words, and no decisions
        known = self._verdicts.get(name)
        if known is None or not known.is_about(provider):
            known = self._verdicts[name] = Verdicts(provider)
        return known.asked(request)
