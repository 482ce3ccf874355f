"""The seam between operators' plans and what carries them out."""

import abc
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from .progress import Tally
from .repeats import Repeated

# An operator as it runs, and a session: neither is known on this floor or in this file.
_Runnable = TypeVar("_Runnable", contravariant=True)
_Within = TypeVar("_Within", contravariant=True)


class Runner(abc.ABC, Generic[_Runnable, _Within]):
    """Where a session's operators run: the seam between their plans and what carries them out.

    It stands on this floor because a session names its own; plans stand above, so their type is a parameter. An
    operator as it runs is an `Arranged` (see `_plan/arranged.py`). The runner that sessions use unless they name
    another is the lane engine (see `_engine/engine.py`); one that spreads lanes over machines would be another.
    """

    @abc.abstractmethod
    async def run(
        self, operator: _Runnable, inputs: Sequence[Any], session: _Within, tally: Tally
    ) -> tuple[list[np.ndarray], Repeated | None]:
        """Runs an operator, on the event loop, where others may run at the same time.

        **Arguments:**

        - `operator`: its name and plan. It is the same object whenever the same is run, so what is made for it can be
            kept by it, weakly.
        - `inputs`: those of its plan, as arrays; keys are key data. What `vmap` maps has the lane axes in front.
        - `session`: whom calls are made through.
        - `tally`: counts the calls; it knows already how many there are at least.

        **Returns:** the outputs of the plan, as arrays; samples that are one and the same, to be warned of, or
        `None`.

        **Raises:** what the only lane that failed raised, or a `SweepError` of several. When it is cancelled nothing
        that it has begun goes on.
        """
