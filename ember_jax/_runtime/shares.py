"""A bill for several calls as a bill for each."""

from collections.abc import Sequence


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """A whole number as whole shares that sum to it, by weight; equal ones if nothing has any.

    Each is within one of its exact share. What does not divide goes to the first ones.
    """
    weights = weights if sum(weights) else [1] * len(weights)
    whole, before, parts, given = sum(weights), 0, list[int](), 0
    for weight in weights:
        before += weight
        parts.append(-(-total * before // whole) - given)
        given += parts[-1]
    return parts
