"""What a service says of its own limits, in the headers of its answers.

Two families of names are in use. Those of `x-ratelimit-…` are OpenAI's and its imitators', and their resets are
durations such as `6m0s`, `1s` or `17ms`. Those of `anthropic-ratelimit-…` have RFC 3339 times as resets. In both, a
reset is when the quota will be whole again. So `(limit - left) / reset_s` is the rate at which the quota is filled,
whatever its period is.

A family is written as the form of its names, in lower case: `{field}` is `limit`, `remaining` or `reset`, and `{what}`
is `requests` or `tokens`.
"""

import datetime
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .._regex import regex

OPENAI = "x-ratelimit-{field}-{what}"
ANTHROPIC = "anthropic-ratelimit-{what}-{field}"


@dataclass(frozen=True)
class Allowance:
    """One quota: `left` of `limit` were left, and it would be whole again after `reset_s` seconds without a request."""

    limit: float
    left: float
    reset_s: float


@dataclass(frozen=True)
class Quota:
    """What a service said of its limits, at the time of one request; `None` where it did not say."""

    requests: Allowance | None = None
    tokens: Allowance | None = None


def read(
    headers: Mapping[str, str], now: Callable[[], float], families: tuple[str, ...] = (OPENAI, ANTHROPIC)
) -> Quota | None:
    """What an answer's headers say of the service's limits; `None` if they say nothing.

    **Arguments:**

    - `headers`: by their names in lower case.
    - `now`: gives the server's time in seconds since 1970. It is called only where a reset is a time.
    - `families`: the families of names to look for, in order.
    """
    requests, tokens = _allowance(headers, "requests", now, families), _allowance(headers, "tokens", now, families)
    return Quota(requests, tokens) if requests or tokens else None


def _allowance(
    headers: Mapping[str, str], what: str, now: Callable[[], float], families: tuple[str, ...]
) -> Allowance | None:
    """One quota, by the first family of which all three headers are there and make sense."""
    for family in families:
        said = [headers.get(name) for name in _names(family, what)]
        if None not in said:
            # A header that came twice is one value here, with a comma between the two. The first one counts.
            said = [words and words.partition(",")[0] for words in said]
            limit, left, reset = _number(said[0]), _number(said[1]), _seconds(said[2], now)
            if limit >= 1 and left >= 0 and reset >= 0:  # false for NaN
                return Allowance(limit, min(left, limit), reset)
    return None


# Every answer is searched for these names, and to write a name takes longer than to look for it.
@functools.lru_cache(maxsize=64)
def _names(family: str, what: str) -> tuple[str, ...]:
    return tuple(family.format(field=field, what=what) for field in ("limit", "remaining", "reset"))


def _number(words: str | None) -> float:
    try:
        number = float(words or "")
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = regex(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ms|us|µs|ns|d|h|m|s)")
_DURATION = regex(rf"(?:{_PART.pattern})+")


def _seconds(words: str | None, now: Callable[[], float]) -> float:
    """A duration as Go writes it, a number of seconds, or the time until an RFC 3339 time; else NaN."""
    words = (words or "").strip()
    if _DURATION.fullmatch(words):
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(words))
    if not math.isnan(number := _number(words)):
        return number
    try:
        date = datetime.datetime.fromisoformat(words)
    except ValueError:
        return math.nan
    return max((date if date.tzinfo else date.replace(tzinfo=datetime.UTC)).timestamp() - now(), 0.0)
