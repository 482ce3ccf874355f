"""What is tried again, and after how long: policy as data, and pure functions of it.

Design note. Tried again is only what the same request can get an answer to later: a refusal as one too many, a fault
of the service, a connection that failed, half an answer or one that is none. A wrong key, an unknown model and a
request that is at fault fail at once. The wait is what the service asks for, to the letter; else a uniform draw from
zero to a bound that doubles ("full jitter": calls that failed together come back apart), see M. Brooker, "Exponential
Backoff And Jitter", AWS Architecture Blog, 2015.
"""

import math
from dataclasses import dataclass

from .._errors import ConnectionFailedError, MalformedResponseError, ProviderError, RateLimitError, ServerError

_PASSING = (RateLimitError, ServerError, ConnectionFailedError, MalformedResponseError)


@dataclass(frozen=True)
class Retry:
    """How often, and for how long, a call is tried.

    **Arguments:**

    - `attempts`: how often a call is sent at most; 1 is never again.
    - `seconds`: no attempt begins later than this after the first one has begun, its own turn not counted.
    - `first`, `longest`: the bounds of the wait before the second attempt, and before any, in seconds; in between
        they double. Only what a service asks for may be longer.
    - `deadline`: the seconds after which a call that has begun fails, whatever it waits for; `None` is never.

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
    """Whether a failed request may have to be paid: its answer was made, and lost or of no use."""
    if error.status is not None:
        return 200 <= error.status < 300
    return error.was_sent and isinstance(error, ConnectionFailedError | MalformedResponseError)


def wait(policy: Retry, error: ProviderError, attempts: int, spent: float, uniform: float) -> float | None:
    """The seconds to wait before a call is tried again, or `None` if it is not.

    **Arguments:**

    - `error`: how the last attempt ended.
    - `attempts`: how many there were.
    - `spent`: the seconds since the first of them began.
    - `uniform`: a random number from [0, 1).
    """
    if attempts >= policy.attempts or not can_pass(error):
        return None
    seconds = error.retry_after
    if seconds is None:
        seconds = uniform * min(policy.longest, math.ldexp(policy.first, min(attempts - 1, 60)))
    return seconds if spent + seconds <= policy.seconds else None
