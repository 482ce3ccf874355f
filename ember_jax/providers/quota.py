"""What a service says of its own limits, in the headers of its answers.

A service says up to three things of a quota: its limit, how much of it is left, and when it will be whole again, which
is its reset. Services write the same things under many names. A family of names is written as their form, in lower
case. `{field}` is `limit`, `remaining` or `reset`; `{what}` is `requests` or `tokens`; `{short}` is `req` or `tokens`;
`{unit}` is `ratelimit` or `tokenlimit`, in families whose names without more mean requests.

A reset is a duration such as `6m0s`, `1s` or `17ms`, a number of seconds, an RFC 3339 time, or a number of seconds or
milliseconds since 1970. Some services leave the reset out, some the limit. Nothing here guesses what they leave out;
what reports mean together is for the runtime to find out.
"""

import datetime
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .._regex import regex

OPENAI = "x-ratelimit-{field}-{what}"
ANTHROPIC = "anthropic-ratelimit-{what}-{field}"
# Mistral's names say the period too. Some name a day's quota besides, which is looked for last: a minute's binds first.
MISTRAL = "x-ratelimit-{field}-{short}-minute"
MINUTE = "x-ratelimit-{field}-{what}-minute"
DAY = "x-ratelimit-{field}-{what}-day"
# Together, OpenRouter, and what many gateways write; and the same without the `x`, as a draft of the IETF has it.
GATEWAY = "x-{unit}-{field}"
DRAFT = "{unit}-{field}"
FAMILIES = (OPENAI, ANTHROPIC, MISTRAL, MINUTE, DAY, GATEWAY, DRAFT)


@dataclass(frozen=True)
class Allowance:
    """One quota: `left` of `limit` were left, and it would be whole again after `reset_s` seconds without a request.

    `limit` and `reset_s` are `None` where the service does not say them.
    """

    limit: float | None
    left: float
    reset_s: float | None = None


@dataclass(frozen=True)
class Quota:
    """What a service said of its limits, at the time of one request; `None` where it did not say."""

    requests: Allowance | None = None
    tokens: Allowance | None = None


def read(headers: Mapping[str, str], now: Callable[[], float], families: tuple[str, ...] = FAMILIES) -> Quota | None:
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
    """One quota, by the first family that says how much is left, if all that it says makes sense.

    A header that is there and cannot be read is no better than a guess, so nothing of its family is believed.
    """
    for family in families:
        limit, remaining, reset = _names(family, what)
        if remaining not in headers:
            continue
        said = headers.get(limit), headers[remaining], headers.get(reset)
        # A header that came twice is one value here, with a comma between the two. The first one counts.
        most, left, seconds = [None if words is None else words.partition(",")[0] for words in said]
        allowance = Allowance(
            None if most is None else _number(most), _number(left), None if seconds is None else _seconds(seconds, now)
        )
        if _is_sensible(allowance):
            return _bounded(allowance)
    return None


def _is_sensible(said: Allowance) -> bool:
    has_limit = said.limit is None or said.limit >= 1
    return has_limit and said.left >= 0 and (said.reset_s is None or said.reset_s >= 0)  # false for NaN


def _bounded(said: Allowance) -> Allowance:
    return said if said.limit is None or said.left <= said.limit else Allowance(said.limit, said.limit, said.reset_s)


# Every answer is searched for these names, and to write a name takes longer than to look for it.
@functools.lru_cache(maxsize=64)
def _names(family: str, what: str) -> tuple[str, str, str]:
    short, unit = ("req", "ratelimit") if what == "requests" else ("tokens", "tokenlimit")
    limit, remaining, reset = (
        family.format(field=field, what=what, short=short, unit=unit) for field in ("limit", "remaining", "reset")
    )
    return limit, remaining, reset


def _number(words: str | None) -> float:
    try:
        number = float(words or "")
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


# A number of seconds from here on is no duration (it would last thirty years) but a time since 1970.
_EPOCH = 1e9
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = regex(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ms|us|µs|ns|d|h|m|s)")
_DURATION = regex(rf"(?:{_PART.pattern})+")


def _seconds(words: str | None, now: Callable[[], float]) -> float:
    """A duration as Go writes it, a number of seconds, or the time until a time in one of three forms; else NaN."""
    words = (words or "").strip()
    if _DURATION.fullmatch(words):
        return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(words))
    if not math.isnan(number := _number(words)):
        if number < _EPOCH:
            return number
        return max((number if number < 1000 * _EPOCH else number / 1000) - now(), 0.0)
    try:
        date = datetime.datetime.fromisoformat(words)
    except ValueError:
        return math.nan
    return max((date if date.tzinfo else date.replace(tzinfo=datetime.UTC)).timestamp() - now(), 0.0)
