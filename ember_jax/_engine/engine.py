"""The lane engine as a runner: an operator and its inputs in, its outputs out."""

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._plan.arranged import Arranged
from .._runtime.loop import get_loop
from .._runtime.progress import Tally
from .._runtime.repeats import Repeated
from .._runtime.runner import Runner
from .._runtime.session import Session
from .runners import Runners
from .sweep import Sweep


class LaneEngine(Runner[Arranged, Session]):
    """Runs operators in this process, every lane at its own pace; see `sweep`. One serves all sessions."""

    def __init__(self) -> None:
        self._runners: weakref.WeakKeyDictionary[Arranged, Runners] = weakref.WeakKeyDictionary()

    async def run(
        self, operator: Arranged, inputs: Sequence[Any], session: Session, tally: Tally
    ) -> tuple[list[np.ndarray], Repeated | None]:
        runners = self._runners.get(operator)
        if runners is None:
            runners = self._runners[operator] = Runners(operator.plan, operator.x64)
        sweep = Sweep(operator.plan, runners, session, get_loop().threads, operator.name, tally=tally)
        return await sweep.run(inputs), sweep.repeated()
