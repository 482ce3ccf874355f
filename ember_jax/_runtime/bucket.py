"""A token bucket: what paces calls where a quota is known.

It is in the form of the generic cell rate algorithm (ITU-T I.371), whose only state is the time at which the bucket
will be full. Services enforce a quota per minute over shorter times too, so only half a second's worth may come at
once. The rate is lowered by as much as that burst adds, so that no minute sees more than the quota, wherever the
minute begins.
"""

import math

# How many seconds' worth of a quota may come at once.
BURST_SECONDS = 0.5


class Bucket:
    """A token bucket: up to `burst` at once, and `rate` per second.

    What costs more than a burst is let through when the bucket is full, and what it takes beyond is owed. (To refuse it
    would mean that a long prompt can never be sent under a small quota.)
    """

    def __init__(self, rate: float, burst: float):
        self.rate = rate
        self.burst = burst
        self._full = -math.inf

    def ready(self, cost: float) -> float:
        """The time from which `cost` can be taken."""
        return self._full - (self.burst - min(cost, self.burst)) / self.rate

    def take(self, now: float, cost: float) -> None:
        """Takes `cost` from the bucket, or gives it back if it is negative."""
        self._full = max(self._full, now) + cost / self.rate

    def refit(self, now: float, rate: float, burst: float) -> None:
        """Changes rate and burst. What is missing from the bucket stays missing, in units and not in seconds."""
        owed = max(self._full - now, 0.0) * self.rate
        self.rate, self.burst, self._full = rate, burst, now + owed / rate


def per_minute(quota: float | None) -> Bucket | None:
    """A bucket from which no minute takes more than `quota`; `None` without one."""
    return None if quota is None else Bucket(*minutely(quota))


def minutely(quota: float) -> tuple[float, float]:
    """The rate and the burst of a bucket from which no minute takes more than `quota`."""
    burst = max(1.0, quota / 60 * BURST_SECONDS)
    # In the minute from any moment on less than burst + 60 s * rate = quota + 1 is taken.
    return (quota - burst + 1) / 60, burst
