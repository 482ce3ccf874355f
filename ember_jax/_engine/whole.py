"""Segments without arithmetic on floats, which are evaluated in NumPy and need no compiling; see `_jax/whole.py`."""

from collections.abc import Sequence

import numpy as np

from .._jax.whole import Steps, steps_of, work
from .._plan.ir import Segment

# About how long NumPy takes for each number that it makes.
_SECONDS = 5e-9


class WholeSegment:
    """A segment that NumPy evaluates, for any number of lanes.

    **Arguments:**

    - `segment`: the equations.
    - `steps`: what evaluates them.
    """

    def __init__(self, segment: Segment, steps: Steps):
        self._segment, self._steps = segment, steps
        self._constants = {v: np.asarray(c)[None] for v, c in segment.constants.items()}
        self._numbers = sum(work(e.eqn) for e in segment.equations)

    def seconds(self, count: int) -> float:
        """About how long so many lanes take."""
        return _SECONDS * self._numbers * count

    def evaluate(self, inputs: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
        """The outputs as arrays over the lanes, of inputs that are such arrays, or have one row for all lanes.

        **Raises:** `InexactError` if the bits would depend on XLA's order.
        """
        values = {**self._constants, **dict(zip(self._segment.inputs, inputs, strict=True))}
        self._steps.run(values)
        return [_of_all(values[v], count) for v in self._segment.outputs]


def whole_segment(segment: Segment) -> WholeSegment | None:
    """The segment as NumPy evaluates it; `None` if only XLA can."""
    steps = steps_of((e.eqn, e.inputs, e.outputs) for e in segment.equations)
    return None if steps is None else WholeSegment(segment, steps)


def _of_all(array: np.ndarray, count: int) -> np.ndarray:
    return array if len(array) == count else np.broadcast_to(array, (count, *array.shape[1:]))
