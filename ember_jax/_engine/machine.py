"""The parts of a running sweep, for the steps that use them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .._plan import ir
from .._runtime.progress import Tally
from .._runtime.repeats import Repeats
from .._runtime.scheduler import Path
from .._runtime.session import Session
from .._runtime.threads import Threads
from .collected import Collected
from .failures import Failures
from .runners import Runners
from .stack import Stack
from .tasks import Tasks
from .window import Window


@dataclass(frozen=True, slots=True, eq=False)
class Machine:
    """The parts of a running sweep. A step ends with `stack.complete` or `failures.fail`, now or later.

    **Attributes:**

    - `stack`: the ready steps, and the way from one to those that wait for it.
    - `window`: which lanes are in flight.
    - `failures`: what has failed.
    - `tasks`: what takes time.
    - `collected`: segments that are to be run.
    - `repeats`: notices samples that were meant to be independent.
    - `saw`: its method, bound once: a method is made anew at each use.
    - `session`: whom calls are made through.
    - `threads`: where blocking work goes.
    - `tally`: counts the calls.
    - `runners`: the executables of segments, and what is known of steps beforehand.
    - `paths`: where calls stand in the plan, if the session has a scheduler that asks for it.
    """

    stack: Stack
    window: Window
    failures: Failures
    tasks: Tasks
    collected: Collected
    repeats: Repeats
    saw: Callable[[Any, Any, bytes], None]
    session: Session
    threads: Threads
    tally: Tally
    runners: Runners
    paths: Mapping[ir.Call, Path]
