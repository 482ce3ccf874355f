"""In which form a quota comes back, by how a service's resets follow what is left of it.

Design note. A report says how much was left of a limit when a call was sent, and in how many seconds the quota will be
whole again. What comes back when, it does not say. These forms are in use:

- A *bucket* that is filled steadily. Its resets grow as calls take from it, `reset = (size - left) / rate`, and most
  services name the size as the limit.
- A bucket that holds less than the limit: the limit is stated per minute, and a second's worth may be held at once.
- A *window*: all comes back at one time, towards which the resets run down, however much was taken meanwhile.

So the form is read off two reports between which something was taken: whether the reset has grown by as much as a
bucket of the stated size says, or by more, or not at all. A service that refuses a call which a bucket would have let
through has a window. Until the form is known, the slower reading counts. Where there is no reset, the limit is per
minute; where there is no limit either, what was there at most is.
"""

import enum
import math

from ..providers.quota import Allowance

# The seconds over which a quota is spread at most.
_SPREAD_SECONDS = 150.0
# The period of a quota that does not say it.
PERIOD = 60.0
# How many reports that tell no form are heard before the limit is taken to be per minute.
_UNTOLD = 5
# By how much what is left has to fall between two reports that are compared.
_FELL = 3


class RefillKind(enum.Enum):
    UNKNOWN = enum.auto()
    BUCKET = enum.auto()
    SMALL_BUCKET = enum.auto()
    WINDOW = enum.auto()


class Refill:
    """How a quota comes back, by how its resets follow what is left."""

    def __init__(self) -> None:
        self.kind = RefillKind.UNKNOWN
        # The seconds of a window, as far as they were seen.
        self.period = 0.0
        self._reports = 0
        # What was missing from the quota, the seconds to fill it, and the most by which these are rounded, each summed
        # over the reports with a decay. The ratio of the first two is the rate of a bucket. A single report's ratio
        # would be coarse.
        self._missing = self._seconds = self._rounded = 0.0
        # The same for a small bucket: by how much what was left fell, and the reset grew.
        self._fell = self._grew = 0.0
        self._before: tuple[float, float] | None = None

    def hear(self, said: Allowance) -> None:
        """Takes note of a report with a limit and a reset."""
        assert said.limit is not None and said.reset_s is not None
        self._reports += 1
        self.period = max(self.period, said.reset_s)
        self._missing = 0.9 * self._missing + said.limit - said.left
        self._seconds = 0.9 * self._seconds + said.reset_s
        left, reset = self._before or (said.left, said.reset_s)
        fell, grew = left - said.left, said.reset_s - reset
        # By how much the reset of a bucket of the stated size has grown. What is left is rounded, so a few calls show
        # nothing; and resets in whole seconds may be off by one.
        full = reset * fell / max(said.limit - left, 0.5)
        error = 1.0 if reset == int(reset) and said.reset_s == int(said.reset_s) else 0.001
        self._rounded = 0.9 * self._rounded + error
        if fell < 0:
            self._before = said.left, said.reset_s
        if fell < _FELL or max(full, grew) <= 2 * error:
            self._before = self._before or (said.left, said.reset_s)
            return
        self._before = said.left, said.reset_s
        if grew <= min(error, full / 10):
            self.kind = RefillKind.WINDOW
        elif grew > 3 * full:
            self.kind = RefillKind.SMALL_BUCKET
            self._fell, self._grew = 0.9 * self._fell + fell, 0.9 * self._grew + grew
        elif grew > full / 3:
            self.kind = RefillKind.BUCKET

    def rate(self, limit: float) -> float:
        """By how much the quota is filled per second, by the slower reading where there are two."""
        per_minute = limit / PERIOD
        full = self._full(per_minute)
        match self.kind:
            case RefillKind.BUCKET:
                return full
            case RefillKind.SMALL_BUCKET:
                return min(per_minute, self._fell / self._grew)
            case RefillKind.WINDOW:
                return limit / (self.period or PERIOD)
            case RefillKind.UNKNOWN:
                return min(per_minute, full)

    def _full(self, per_minute: float) -> float:
        """The rate of a bucket of the stated size: the limit per minute, if that is what is told but for rounding."""
        if not (self._missing > 0 and self._seconds > 0):
            return math.inf
        slowest = self._missing / (self._seconds + self._rounded)
        fastest = self._missing / max(self._seconds - self._rounded, 1e-9)
        return per_minute if slowest <= per_minute <= fastest else self._missing / self._seconds

    def pace(self, limit: float) -> float | None:
        """The rate at which calls are spread over the quota's time; `None` if they are not, or too little is known."""
        rate = self.rate(limit)
        if self.kind is not RefillKind.UNKNOWN:
            return rate if limit / rate <= _SPREAD_SECONDS else None
        # One report tells enough if it is that of a bucket of a minute.
        if rate >= 0.6 * limit / PERIOD:
            return rate
        return limit / PERIOD if self._reports >= _UNTOLD else None
