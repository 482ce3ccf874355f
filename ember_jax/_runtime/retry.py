"""What is tried again, and after how long: policy as data, and pure functions of it.

Design note. A request is tried again only if the same request may be answered later. So it is after a refusal as one
too many (429), a fault of the service, a connection that failed, and an answer that is cut off or malformed. A wrong
key, an unknown model and a request that is at fault fail at once; `verdict` says what that means for other calls. The
statuses are those that the vendors' own clients try again: 408, 409, 429, and 500 and above. Where a service says
itself whether to (`x-should-retry`), that counts.

Refusals as one too many are bounded by time and not by their number. They are no fault, cost nothing, and end when the
service's minute does; a fault that comes eight times will come a ninth time.

A server error may be a refusal in disguise: some servers answer 500 to a parameter that they do not know. If one
request that has such parameters is answered twice by the same error in the same words, it is taken to be refused. An
error about the model's answer is none about the request: the next answer may pass.

If the service says how long to wait, the wait is exactly that. Else it is drawn uniformly from zero to a bound that
doubles with each attempt ("full jitter"). Calls that failed together so come back apart, where waits of one length
would make them come back, and fail, together again. See M. Brooker, "Exponential Backoff And Jitter", AWS Architecture
Blog, 2015.
"""

import math
from dataclasses import dataclass

from ..errors import (
    ConnectionFailedError,
    MalformedResponseError,
    ProviderError,
    RateLimitError,
    RefusedRequestError,
    ServerError,
)
from ..providers.base import Request, is_drawn

_PASSING = (RateLimitError, ServerError, ConnectionFailedError, MalformedResponseError)


@dataclass(frozen=True)
class Retry:
    """How often, and for how long, a call is tried.

    **Arguments:**

    - `attempts`: how often a call is sent at most, where refusals as one too many (429) are not counted; with 1 it is
        never tried again.
    - `seconds`: a call is tried again only if its wait ends within so many seconds after its first attempt began. What
        it then waits for its turn at a limit comes on top. A call that was not sent yet fails as well, at once, if the
        service holds it back for longer: by `Retry-After`, a quota that is spent, or by refusing all calls.
    - `first`, `longest`: in seconds, the bound of the wait before the second attempt, and the largest bound. In between
        the bound doubles with each attempt. A wait that the service asks for may be longer.
    - `deadline`: the seconds after which a call whose first attempt has begun fails, whatever it waits for; `None` for
        never. A call that was not sent yet fails at once if the service holds it back for longer.

    **Raises:** `ValueError` for numbers out of range.
    """

    attempts: int = 8
    seconds: float = 600.0
    first: float = 0.5
    longest: float = 60.0
    deadline: float | None = None

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.attempts != int(self.attempts):
            raise ValueError(f"Retry(attempts={self.attempts!r}): give a whole number, at least 1.")
        for name in ("seconds", "first", "longest"):
            if not (value := getattr(self, name)) >= 0:
                raise ValueError(f"Retry({name}={value!r}): give seconds, at least 0.")
        if self.deadline is not None and not self.deadline > 0:
            raise ValueError(f"Retry(deadline={self.deadline!r}): give seconds, more than 0, or None.")

    @property
    def patience(self) -> float:
        """The seconds for which a service may hold back a call that was not sent yet."""
        return self.seconds if self.deadline is None else min(self.seconds, self.deadline)


def can_pass(error: ProviderError) -> bool:
    """Whether the same request may succeed later: as the service says, else by the kind of the error."""
    return isinstance(error, _PASSING) if error.should_retry is None else error.should_retry


# What every service takes, so that nothing is refused because of it.
COMMON = frozenset({"temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed"})


class Tries:
    """The attempts of one call so far, and whether there is another one.

    **Attributes:**

    - `made`: how many attempts there were.
    """

    def __init__(self, policy: Retry, request: Request):
        self.made = 0
        self._policy = policy
        self._request = request
        self._refused = 0
        self._last = ""

    def wait(self, error: ProviderError, spent: float, uniform: float) -> float | None:
        """The seconds to wait after the last attempt has failed, or `None`; see the function `wait`."""
        # At temperature 0 a model answers alike, so what the server could not read twice it never can.
        is_unreadable = isinstance(error, MalformedResponseError) and error.status == 500
        if is_unreadable and self.made > 1 and not is_drawn(self._request.parameters):
            return None
        if isinstance(error, RateLimitError):
            self._refused += 1
            return wait(self._policy, error, self._refused, spent, uniform)
        return wait(self._policy, error, self.made - self._refused, spent, uniform)

    def disguised(self, error: ProviderError) -> RefusedRequestError | None:
        """The refusal that a server error is, if it came twice in the same words; else `None`."""
        if not (isinstance(error, ServerError) and error.status in (500, 501)):
            return None
        asks_more = self._request.forms or self._request.answers > 1 or self._request.parameters.keys() - COMMON
        if not asks_more:
            return None
        # The other form of a question for vectors may get vectors of another length, which are paid for and of no use.
        if not self._request.asks_words:
            return None
        words, before = str(error), self._last
        self._last = words
        if words != before:
            return None
        return RefusedRequestError(f"{words} (It was said twice to the same request, so it is taken for a refusal.)")


def may_be_billed(error: ProviderError) -> bool:
    """Whether a failed request may be on the bill: the service may have made an answer that was lost or of no use."""
    if error.status is not None:
        return 200 <= error.status < 300
    return error.was_sent and isinstance(error, ConnectionFailedError | MalformedResponseError)


def wait(policy: Retry, error: ProviderError, attempts: int, spent: float, uniform: float) -> float | None:
    """The seconds to wait before a call is tried again, or `None` if it is not tried again.

    **Arguments:**

    - `error`: how the last attempt ended.
    - `attempts`: how many attempts there were; for a refusal as one too many, how many of those.
    - `spent`: the seconds since the first attempt began.
    - `uniform`: a random number from [0, 1).
    """
    is_bounded = policy.attempts == 1 or not isinstance(error, RateLimitError)
    if not can_pass(error) or (is_bounded and attempts >= policy.attempts):
        return None
    seconds = error.retry_after
    if seconds is None:
        # The exponent is bounded, as a float overflows after some thousand doublings.
        seconds = uniform * min(policy.longest, math.ldexp(policy.first, min(attempts - 1, 60)))
    return seconds if spent + seconds <= policy.seconds else None
