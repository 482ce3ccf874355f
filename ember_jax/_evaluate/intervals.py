"""Confidence intervals: how far a mean over some rows may be from the mean over all rows that could be drawn."""

import math
from statistics import NormalDist

import numpy as np

# How many numbers a bootstrap holds in memory at once.
_HELD = 1 << 22
# The draws are the same each time, so that the same result has the same interval.
_SEED = 0


def check_level(level: float) -> None:
    """Raises `ValueError` unless a confidence level is between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"level={level!r}: a confidence level is between 0 and 1, such as 0.95.")


def wilson(right: float, rows: int, level: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion: all p from which `right / rows` is at most z standard errors away.

    On average over p it covers p as often as `level` says, also for few rows and near 0 and 1. The alternative,
    p ± z·√(p(1-p)/n), does not. Wilson, 1927, JASA 22:209; compared by Brown, Cai and DasGupta, 2001, Statistical
    Science 16:101.

    **Returns:** the interval's ends, in [0, 1].
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    mean, per = right / rows, z * z / rows
    middle = (mean + per / 2) / (1 + per)
    half = math.sqrt(per * mean * (1 - mean) + per * per / 4) / (1 + per)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(values: np.ndarray, resamples: int) -> np.ndarray:
    """The means of columns, when as many rows as there are are drawn from them with replacement. Efron, 1979.

    **Arguments:**

    - `values`: `[rows, columns]`. All columns share the rows that are drawn, so that their means can be compared. NaN
        is left out of its column's mean.
    - `resamples`: how often rows are drawn.

    **Returns:** `[resamples, columns]`, equal for equal arguments; NaN for a mean of nothing.
    """
    rows = len(values)
    draw = np.random.default_rng(_SEED)
    known = ~np.isnan(values)
    both = np.concatenate([np.where(known, values, 0.0), known], axis=1)
    step = max(1, _HELD // rows)
    sums = []
    for start in range(0, resamples, step):
        drawn = [draw.integers(rows, size=rows) for _ in range(min(step, resamples - start))]
        times = np.stack([np.bincount(rows_of, minlength=rows) for rows_of in drawn]).astype(float)
        # Each column is summed by itself. In a product of two matrices the sums of equal columns may differ in their
        # last bits, and a comparison of them would find a difference.
        sums.append(np.stack([times @ column for column in both.T], axis=1))
    totals, counts = np.split(np.concatenate(sums), 2, axis=1)
    return np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)


def percentiles(means: np.ndarray, level: float) -> np.ndarray:
    """The two ends of the middle `level` of each column of means: `[2, columns]`; NaN for a column of NaN."""
    out = np.full((2, means.shape[1]), np.nan)
    known = ~np.isnan(means).all(axis=0)
    out[:, known] = np.nanquantile(means[:, known], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return out
