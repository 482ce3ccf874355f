"""Collected segments: numeric steps that are ready, and are run for many lanes at once.

Design note. A segment is not run when it is ready but collected, and run for all lanes that wait for the same one when
nothing else is ready (continuous batching, as inference servers do with tokens). A run that is not known to be quick is
made in a thread, and the loop goes on with other lanes. Where one fails, each lane is computed alone: it is mostly one
of them that has failed.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .._jax.nan import nan_is_a_value
from .._plan import ir
from .._runtime.threads import Threads
from .device import device
from .failures import Failures
from .lane import Frame, FrameStep
from .runners import Runners
from .segments import CAPACITIES
from .stack import Stack
from .tasks import Tasks

# Told the outputs of a run, each an array over its lanes, and the errors of lanes that failed, by their place in it.
Computed: TypeAlias = Callable[[Sequence[np.ndarray], Mapping[int, BaseException]], object]


class Collected:
    """The segments of a sweep that wait to be run.

    **Arguments:**

    - `runners`: the executables of segments.
    - `threads`: where slow runs are made.
    - `tasks`: waits for what is in a thread.
    - `stack`, `failures`: told how steps have ended.
    """

    def __init__(self, runners: Runners, threads: Threads, tasks: Tasks, stack: Stack, failures: Failures):
        self._runners, self._threads, self._tasks = runners, threads, tasks
        self._stack, self._failures = stack, failures
        self._waiting: dict[ir.Segment, list[FrameStep]] = {}
        # By the identity of a value, which is kept beside its copy, so that no other value comes to have it.
        self._uploaded: dict[int, tuple[Any, jax.Array]] = {}

    def add(self, frame: Frame, index: int, segment: ir.Segment) -> None:
        """Collects a step that is a segment."""
        self._waiting.setdefault(segment, []).append((frame, index))

    def run(self) -> bool:
        """Runs what is collected; says whether there was anything."""
        collected, self._waiting = self._waiting, {}
        for segment, all_waiting in collected.items():
            waiting = [step for step in all_waiting if not step[0].lane.failed]
            for start in range(0, len(waiting), CAPACITIES[-1]):
                self._run(segment, waiting[start : start + CAPACITIES[-1]])
        return bool(collected)

    def _run(self, segment: ir.Segment, waiting: list[FrameStep]) -> None:
        sharing = self._runners.sharing[segment]
        first = waiting[0][0].values
        shared = [first[v] for v, s in zip(segment.inputs, sharing, strict=True) if s]
        varying = [v for v, s in zip(segment.inputs, sharing, strict=True) if not s]
        columns = [[frame.values[v] for frame, _ in waiting] for v in varying]
        self.compute(segment, shared, columns, len(waiting), functools.partial(self._computed, waiting))

    def compute(
        self, segment: ir.Segment, shared: Sequence[Any], columns: Sequence[Any], count: int, done: Computed
    ) -> None:
        """Runs a segment for some lanes: at once if that is quick, else in a thread.

        **Arguments:**

        - `shared`: the inputs that `Runners.sharing` says are given once.
        - `columns`: each other input, as an array or list over the lanes.
        - `count`: the number of lanes; at most the largest capacity.
        - `done`: told the outcome.
        """
        runner = self._runners[segment]
        once = [self._upload(value) for value in shared]
        if runner.is_quick(count):
            try:
                outputs = runner.run(once, columns, count)
            except Exception:  # of one of the lanes; which it is, is found out in a thread
                pass
            else:
                done(outputs, {})
                return
        work = functools.partial(runner.outcomes, once, columns, count)
        fail = lambda error: done((), {i: error for i in range(count)})  # noqa: C420  (whose type is not known)
        self._tasks.await_block(self._threads.run(work), lambda outcomes: done(*outcomes), fail)

    def _computed(
        self, waiting: list[FrameStep], outputs: Sequence[np.ndarray], errors: Mapping[int, BaseException]
    ) -> None:
        rows = zip(*outputs, strict=True) if outputs else itertools.repeat(())
        complete = self._stack.complete
        for i, ((frame, index), row) in enumerate(zip(waiting, rows)):  # noqa: B905  (without outputs a row for all)
            if i in errors:
                self._failures.fail(frame, index, errors[i])
            else:
                complete(frame, index, row)

    def _upload(self, value: Any) -> jax.Array:
        """A shared input as a device array, uploaded once in a sweep."""
        known = self._uploaded.get(id(value))
        if known is None:
            with jax.enable_x64(self._runners.x64), jax.default_device(device()), nan_is_a_value():
                known = self._uploaded[id(value)] = (value, jnp.asarray(value))
        return known[1]
