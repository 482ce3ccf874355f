"""The window: which lanes are in flight, and which steps have lanes that are yet to start.

Design note. Lanes that have not started are nothing but rows of their spread's inputs. They start in blocks, of which
the window says when the next one may: when fewer lanes are in flight than it has places. Of several spreads the deepest
goes first, as its lanes are what those that have started wait for; so a lane that waits for lanes of its own gives up
its place to them until they have ended, and no depth of nesting can stop a sweep.
"""

from .lane import Enclosure, Lane, Spread, is_within
from .segments import CAPACITIES

# How many lanes may be in flight at once. There must be more than calls that providers let through at once, or the
# window, and not a provider's limit, would hold calls back: each call in flight is a connection, and the limiter allows
# a thousand of them where no limit is given. There may not be many more, as each has its frames in memory: a lane that
# waits to ask its model takes 5.5 kB, and a full window 90 MB.
# A smaller window where the limits are low was rejected. Which models the lanes will ask, and so which limits hold, is
# known only once their data are. And the fewer lanes are in flight, the fewer share a run of a segment: with 512 of
# them, and 64 calls in flight, a call took a tenth more CPU.
WINDOW = 16_384

# How many lanes start together at most. A block is one run of the segment that is computed before its lanes start
# (`ir.Lanes.first`), so it is as large as the largest run. The calls of a block go out before the next block is
# computed: with the whole window as one block, the first call would wait for the numbers of the last lane.
_BLOCK = CAPACITIES[-1]


class Window:
    """Counts the lanes in flight, and keeps the spreads that have lanes to start.

    **Arguments:**

    - `size`: how many lanes may be in flight.

    **Attributes:**

    - `total`: how many lanes the user sees, as far as is known: nested ones count when their spread begins.
    """

    def __init__(self, size: int):
        self.total = 1
        self._size = size
        self._in_flight = 0
        self._to_start: list[Spread] = []  # the deepest is last

    def add(self, spread: Spread) -> None:
        """Takes in the lanes of a spread, which are to start when there is room."""
        self.total += (spread.count - 1) * spread.is_seen
        if spread.count:
            self._to_start.append(spread)

    def drop(self, part: Enclosure) -> None:
        """Forgets the lanes inside a part of a lane that are yet to start."""
        self._to_start = [s for s in self._to_start if not is_within(s.inside[0].lane, part)]

    def next(self) -> Spread | None:
        """The spread whose lanes start next, if there is one, and room for a lane."""
        return self._to_start[-1] if self._to_start and self._in_flight < self._size else None

    def take(self, spread: Spread) -> range:
        """The lanes of a spread that start now, by their number; they are in flight from here on."""
        start = spread.started
        stop = spread.started = min(start + min(_BLOCK, self._size - self._in_flight), spread.count)
        self._in_flight += stop - start
        if stop == spread.count:
            self._to_start.remove(spread)
        return range(start, stop)

    def fly(self, lane: Lane) -> None:
        """Counts a lane as in flight, unless it is already, or has failed."""
        if not (lane.flying or lane.failed or lane.spread is None):
            lane.flying = True
            self._in_flight += 1

    def land(self, lane: Lane) -> None:
        """Counts a lane as not in flight: it has ended, or waits for lanes of its own."""
        if lane.flying:
            lane.flying = False
            self._in_flight -= 1
