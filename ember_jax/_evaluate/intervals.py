"""How far a mean over rows may be from the mean over all rows that there could be."""

import math
from statistics import NormalDist

import numpy as np

# Numbers that are held at once while rows are drawn again.
_HELD = 1 << 22
_SEED = 0


def check_level(level: float) -> None:
    """Raises `ValueError` unless a confidence level is between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"level={level!r}: a confidence level is between 0 and 1, such as 0.95.")


def wilson(right: float, rows: int, level: float) -> tuple[float, float]:
    """The score interval of a proportion: those p from which what was seen is less than z standard errors away.

    It holds its level, on average over p, also for few rows and near 0 and 1, where p ± z·√(p(1-p)/n) does not. Wilson,
    1927, JASA 22:209; compared by Brown, Cai and DasGupta, 2001, Statistical Science 16:101.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    mean, per = right / rows, z * z / rows
    middle = (mean + per / 2) / (1 + per)
    half = math.sqrt(per * mean * (1 - mean) + per * per / 4) / (1 + per)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(values: np.ndarray, resamples: int) -> np.ndarray:
    """The means of columns when rows are drawn again, with replacement, as many as there are. Efron, 1979.

    **Arguments:**

    - `values`: `[rows, columns]`. One draw of rows is for all columns. NaN is left out of its column's mean.

    **Returns:** `[resamples, columns]`, the same each time; NaN for a mean of nothing.
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
        # Column by column: in a product of matrices equal columns may differ in their last bits.
        sums.append(np.stack([times @ column for column in both.T], axis=1))
    totals, counts = np.split(np.concatenate(sums), 2, axis=1)
    return np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)


def percentiles(means: np.ndarray, level: float) -> np.ndarray:
    """Where the middle `level` of each column lies: `[2, columns]`; NaN where a column has no mean."""
    out = np.full((2, means.shape[1]), np.nan)
    known = ~np.isnan(means).all(axis=0)
    out[:, known] = np.nanquantile(means[:, known], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return out
