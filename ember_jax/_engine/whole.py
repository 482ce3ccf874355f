"""Segments without arithmetic on floats, which are evaluated in NumPy and need no compiling; see `_jax/whole.py`."""

from collections.abc import Sequence

import numpy as np
from jax.extend import core as jex

from .._jax.whole import Evaluate, evaluator, literal, work
from .._plan.ir import Equation, Segment

# About how long NumPy takes for each number that it makes.
_SECONDS = 5e-9


class WholeSegment:
    """A segment that NumPy evaluates, for any number of lanes.

    **Arguments:**

    - `segment`: the equations.
    - `steps`: what evaluates each of them.
    """

    def __init__(self, segment: Segment, steps: Sequence[Evaluate]):
        self._segment = segment
        self._steps = [(e, step, _literals(e)) for e, step in zip(segment.equations, steps, strict=True)]
        self._constants = {v: np.asarray(c)[None] for v, c in segment.constants.items()}
        self._numbers = sum(work(e.eqn) for e in segment.equations)

    def seconds(self, count: int) -> float:
        """About how long so many lanes take."""
        return _SECONDS * self._numbers * count

    def evaluate(self, inputs: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
        """The outputs as arrays over the lanes, of inputs that are such arrays, or have one row for all lanes."""
        values = {**self._constants, **dict(zip(self._segment.inputs, inputs, strict=True))}
        for equation, step, literals in self._steps:
            given = zip(equation.inputs, literals, strict=True)
            values.update(
                zip(equation.outputs, step(*[at if v is None else values[v] for v, at in given]), strict=True)
            )
        return [_of_all(values[v], count) for v in self._segment.outputs]


def whole_segment(segment: Segment) -> WholeSegment | None:
    """The segment as NumPy evaluates it; `None` if only XLA can."""
    steps: list[Evaluate] = []
    for equation in segment.equations:
        step = evaluator(equation.eqn)
        if step is None:
            return None
        steps.append(step)
    return WholeSegment(segment, steps)


def _literals(equation: Equation) -> list[np.ndarray | None]:
    return [literal(v) if isinstance(v, jex.Literal) else None for v in equation.eqn.invars]


def _of_all(array: np.ndarray, count: int) -> np.ndarray:
    return array if len(array) == count else np.broadcast_to(array, (count, *array.shape[1:]))
