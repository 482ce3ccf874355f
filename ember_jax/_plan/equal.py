"""What segments compute, as keys: where keys are equal, the same is done. (Of equations, see `_jax/equal.py`.)"""

from typing import Any

from .._jax.equal import HashedKey, of_equation
from . import ir


def of_segment(segment: ir.Segment) -> HashedKey:
    """What a segment does with its inputs.

    **Raises:** `TypeError` if a parameter of an equation is no value, such as an array.
    """
    names: dict[int | None, int] = {None: -1}  # a literal is told by its equation

    def named(values: Any) -> tuple[int, ...]:
        return tuple(names.setdefault(v, len(names)) for v in values)

    return HashedKey(
        named(segment.inputs),
        tuple((id(constant), *named([value])) for value, constant in segment.constants.items()),
        tuple((of_equation(e.eqn), named(e.inputs), named(e.outputs)) for e in segment.equations),
        named(segment.outputs),
        tuple((a.shape, a.dtype) for a in segment.avals),
        segment.calls_python,
    )
