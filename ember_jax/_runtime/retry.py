"""What is tried again, and after how long: policy as data, and pure functions of it.

Design note. A request is tried again only if the same request may be answered later. So it is after a refusal as one
too many (429), a fault of the service, a connection that failed, and an answer that is cut off or malformed. A wrong
key, an unknown model and a request that is at fault fail at once.

If the service says how long to wait, the wait is exactly that. Else it is drawn uniformly from zero to a bound that
doubles with each attempt ("full jitter"). Calls that failed together so come back apart, where waits of one length
would make them come back, and fail, together again. See M. Brooker, "Exponential Backoff And Jitter", AWS Architecture
Blog, 2015.
"""

import math
from dataclasses import dataclass

from .._errors import ConnectionFailedError, MalformedResponseError, ProviderError, RateLimitError, ServerError

_PASSING = (RateLimitError, ServerError, ConnectionFailedError, MalformedResponseError)


@dataclass(frozen=True)
class Retry:
    """How often, and for how long, a call is tried.

    **Arguments:**

    - `attempts`: how often a call is sent at most; with 1 it is never tried again.
    - `seconds`: a call is tried again only if its wait ends within so many seconds after its first attempt began. What
        it then waits for its turn at a limit comes on top.
    - `first`, `longest`: in seconds, the bound of the wait before the second attempt, and the largest bound. In between
        the bound doubles with each attempt. A wait that the service asks for may be longer.
    - `deadline`: the seconds after which a call whose first attempt has begun fails, whatever it waits for; `None` for
        never.

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


def can_pass(error: ProviderError) -> bool:
    """Whether the same request may succeed later."""
    return isinstance(error, _PASSING)


def may_be_billed(error: ProviderError) -> bool:
    """Whether a failed request may be on the bill: the service may have made an answer that was lost or of no use."""
    if error.status is not None:
        return 200 <= error.status < 300
    return error.was_sent and isinstance(error, ConnectionFailedError | MalformedResponseError)


def wait(policy: Retry, error: ProviderError, attempts: int, spent: float, uniform: float) -> float | None:
    """The seconds to wait before a call is tried again, or `None` if it is not tried again.

    **Arguments:**

    - `error`: how the last attempt ended.
    - `attempts`: how many attempts there were.
    - `spent`: the seconds since the first attempt began.
    - `uniform`: a random number from [0, 1).
    """
    if attempts >= policy.attempts or not can_pass(error):
        return None
    seconds = error.retry_after
    if seconds is None:
        # The exponent is bounded, as a float overflows after some thousand doublings.
        seconds = uniform * min(policy.longest, math.ldexp(policy.first, min(attempts - 1, 60)))
    return seconds if spent + seconds <= policy.seconds else None
