"""Failures: which lanes have failed, what goes on without them, and whether the engine has.

Design note. A failed step stops its lane and never another one: it is not completed, so nothing after it starts; calls
of the lane that are in flight end, and are kept. What the lane is nested in cannot end either, up to the part of a lane
that may fail alone (an attempt), which goes on with the failure as its value; then the other lanes in it stop too. An
exception that belongs to no lane is a fault of the engine: nothing starts after it, and it is raised when what is in
flight has ended.
"""

import traceback
from pathlib import Path

from ..errors import InternalError, Keeping, LaneFailure, SweepError, can_be_caught
from .lane import Enclosure, Frame, Lane, Runs, is_seen
from .stack import Stack
from .window import Window


class Failures:
    """What has failed in a sweep.

    **Arguments:**

    - `stack`, `window`: which operator a step stands in, and which lanes are in flight.
    - `keeping`: for how long the sweep's answers are kept.

    **Attributes:**

    - `fault`: of the engine itself, if there was one.
    """

    def __init__(self, stack: Stack, window: Window, keeping: Keeping):
        self.fault: InternalError | None = None
        self._stack = stack
        self._window = window
        self._keeping: Keeping = keeping
        # By the lane that the user sees, and its index where it is one of a batch.
        self._failures: dict[tuple[Lane, tuple[int, ...]], LaneFailure] = {}

    def fail(self, frame: Frame, index: int, error: BaseException, lane: Runs | None = None) -> None:
        """Ends whoever runs a frame, or the given lane, at a step; or the part around it that may fail alone."""
        runs = lane or frame.lane
        part = runs.attempt if can_be_caught(error) else None
        if part is not None and part.failed:  # told already
            return
        if part is None:
            self._note(frame, index, error, runs)
        around: Runs | None = runs
        while around is not None and not around.failed:
            around.failed = True
            if part is not None and around is part:
                self._catch(part, error)
                return
            self._window.land(around.whole)
            around = around.parent

    def _note(self, frame: Frame, index: int, error: BaseException, runs: Runs) -> None:
        if isinstance(error, SweepError):  # of a batch of calls inside this lane
            are_seen = is_seen(frame, index)
            self._window.total += (error.lanes - 1) * are_seen
            for failure in error.failures:
                self._tell(runs.whole.seen, failure, failure.lane if are_seen else ())
        elif not runs.failed:
            self._tell(runs.whole.seen, LaneFailure(runs.index, self._stack.scope(frame, index), error))

    def _tell(self, lane: Lane, failure: LaneFailure, at: tuple[int, ...] = ()) -> None:
        """Notes why a lane that the user sees has failed: of lanes inside it, why the first of them did."""
        known = self._failures.setdefault((lane, at), failure)
        if failure.lane < known.lane:
            self._failures[lane, at] = failure

    def _catch(self, part: Enclosure, error: BaseException) -> None:
        """Goes on after a part of a lane that has failed. Lanes inside it are stopped, or never start."""
        self._window.drop(part)
        for lane in part.lanes:
            lane.failed = True
            self._window.land(lane)
        part.lanes.clear()
        self._window.fly(part.whole)
        assert part.caught is not None
        part.caught(error)

    def note_fault(self, error: BaseException) -> None:
        """Takes note of an exception that nothing of the user's has raised."""
        self.fault = _fault(error)

    def raise_any(self) -> None:
        """Raises what a sweep that has ended is to raise, as `Sweep.run` says."""
        if self.fault is not None:
            raise self.fault from self.fault.cause
        if self._failures:
            failures = sorted(self._failures.values(), key=lambda f: f.lane)
            if self._window.total == 1 and len(failures) == 1:
                raise failures[0].cause
            raise SweepError(failures, self._window.total, self._keeping)


def _fault(error: BaseException) -> InternalError:
    """What a user is told of a fault of the engine."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return InternalError(
        f"a fault of ember_jax itself, not of your program: {type(error).__name__} in {Path(where.filename).name}, "
        f"line {where.lineno}. No call was begun after it; those in flight ended, and a journal has kept what they "
        "were answered. Please report it with the traceback of its cause, which is `error.cause`.",
        error,
    )
