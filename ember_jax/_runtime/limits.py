"""Limits as users give them, and what is told of the calls that wait for them.

How calls are held back is in `gate.py`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..providers.base import Provider
from .bucket import per_minute

# The most calls in flight where no limit says otherwise. Each call is a connection, and so an open file, and processes
# are often allowed 1,024 of those.
MOST_IN_FLIGHT = 1000


@dataclass(frozen=True)
class Limit:
    """What may be asked of a provider, or of one model; `None` is not limited.

    **Arguments:**

    - `rpm`: requests per minute.
    - `tpm`: tokens per minute, input and output together. Before a call they are counted by tiktoken, or estimated
        from characters where the vocabulary cannot be had. After it the count is corrected by what the call has used.
    - `in_flight`: calls at once; 1,000 if nothing is given.

    What is given is a bound. What is not given is still taken from what the service says, or is found out.

    **Raises:** `ValueError` for a value that is not a positive number, or an `in_flight` that is not whole.
    """

    rpm: float | None = None
    tpm: float | None = None
    in_flight: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise ValueError(f"Limit({name}={value!r}): give a positive number, or None for no limit.")
        if self.in_flight is not None and self.in_flight != int(self.in_flight):
            raise ValueError(f"Limit(in_flight={self.in_flight!r}): give a whole number of calls.")


@dataclass(frozen=True)
class Statistics:
    """What the calls of one model do.

    **Fields:**

    - `waiting`: how many calls wait for their turn.
    - `in_flight`: how many calls have begun and not ended.
    - `most_in_flight`: the most calls that were in flight at once.
    - `admitted`: how many requests were sent, another attempt of a call included; what the report counts as requests,
        but for local models without a limit, whose calls are not counted here.
    - `throttled`: how many calls were refused as too many (429).
    - `tokens`: of the calls that have begun: what they have used where that is known, else what was estimated.
    - `rate`: the pace in requests per second; infinite if calls are not paced.
    - `held_s`: in how many seconds the next call may begin; 0 if none waits, or if only a call in flight keeps it.
    - `held_by`: what holds it until then, in words; empty if nothing does.
    """

    waiting: int
    in_flight: int
    most_in_flight: int
    admitted: int
    throttled: int
    tokens: float
    rate: float
    held_s: float = 0.0
    held_by: str = ""


def pool_of(limits: Mapping[str, Limit], provider: str, model: str) -> str:
    """The name in `limits` by which a model is limited: `provider/model`, or `provider` if only that one is there."""
    own = f"{provider}/{model}"
    return provider if provider in limits and own not in limits else own


def checked(limits: Mapping[str, Limit], provider: Callable[[str], Provider]) -> Mapping[str, Limit]:
    """The limits, as they are; `provider` finds a provider by name.

    Raises `TypeError` for what is no `Limit`, and what `provider` does for an unknown name.
    """
    for name, limit in limits.items():
        if not isinstance(limit, Limit):
            raise TypeError(f"limits={{{name!r}: …}} takes a Limit, not {type(limit).__name__}.")
        provider(name.partition("/")[0])  # raises for a misspelt name, whose limit would limit nothing
    return limits


def seconds_of(limit: Limit, requests: float, tokens: float) -> float:
    """The seconds after which the last of so many requests can begin at the earliest.

    `tokens` are those of all requests before the last one.
    """
    quotas = (per_minute(limit.rpm), requests), (per_minute(limit.tpm), tokens)
    return max([0.0, *((n - bucket.burst) / bucket.rate for bucket, n in quotas if bucket is not None)])
