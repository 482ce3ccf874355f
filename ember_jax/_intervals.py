"""Confidence intervals: how far a mean over some rows may be from the mean over all rows that could be drawn.

Design note. What an interval of level 0.95 promises is that it holds the truth in 95 of 100 data sets. Tests check it,
exactly for proportions, by simulation for the others. Percentiles of a bootstrap do not keep the promise for few rows:
of 20 right answers of 20 they make the point 1, and where the truth is 0.95 they hold it in 64 of 100 data sets of 20
rows. So each mean has the interval that the literature advises for what is known of it.

- Rights and wrongs: Wilson's score interval. As counts are whole, no interval covers every truth equally often (Brown,
  Cai and DasGupta, 2001, Statistical Science 16:101); Wilson's does so on the average over truths.
- Scores between 0 and 1: Wilson's, with as many rows as would spread a proportion as far (Kish's effective number of
  rows; compared by Franco, Little, Louis and Slud, 2019, Journal of Survey Statistics and Methodology 7:334).
- Other numbers, such as costs: Student's t, corrected for skewness (Hall, 1992, JRSS B 54:221).
- A difference of two proportions on the same rows: Agresti and Min, 2005, Statistics in Medicine 24:729.
"""

import math
from statistics import NormalDist
from typing import Literal

import numpy as np

# How many numbers a bootstrap holds in memory at once.
_HELD = 1 << 22
# The draws are the same each time, so that the same result has the same interval.
_SEED = 0

Interval = tuple[float, float]
# What kind of numbers some are: 0 and 1 alone, between them, or any.
ScoreKind = Literal["proportion", "score", "number"]


def check_level(level: float) -> None:
    """Raises `ValueError` unless a confidence level is between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"level={level!r}: a confidence level is between 0 and 1, such as 0.95.")


def kind_of(values: np.ndarray) -> ScoreKind:
    """What kind of numbers these are."""
    if np.isin(values, (0, 1)).all():
        return "proportion"
    return "score" if ((values >= 0) & (values <= 1)).all() else "number"


def of_mean(values: np.ndarray, level: float) -> Interval:
    """The interval of the mean of independent rows, by what kind of numbers they are.

    **Returns:** its ends; NaN for no rows, and for a single row that is neither 0 nor 1.
    """
    kind = kind_of(values) if len(values) else "number"
    if kind == "proportion":
        return wilson(values.sum(), len(values), level)
    return of_scores(values, level) if kind == "score" and len(values) > 1 else of_numbers(values, level)


def wilson(right: float, rows: float, level: float) -> Interval:
    """Wilson's score interval of a proportion: all p from which `right / rows` is at most z standard errors away.

    On average over p it covers p as often as `level` says, also for few rows and near 0 and 1. The alternative,
    p ± z·√(p(1-p)/n), does not. Wilson, 1927, JASA 22:209.

    **Returns:** the interval's ends, in [0, 1].
    """
    return _score(right / rows, rows, NormalDist().inv_cdf((1 + level) / 2))


def of_scores(scores: np.ndarray, level: float) -> Interval:
    """The interval of a mean of scores between 0 and 1, of two rows at least."""
    rows = len(scores)
    return of_spread(float(scores.mean()), float(scores.var(ddof=1)) / rows, rows, level)


def of_spread(mean: float, variance: float, rows: int, level: float) -> Interval:
    """The interval of a mean of scores between 0 and 1 that is known with some variance: all means from which it is at
    most t standard errors away, if its variance is the same part of p(1-p), the largest that it can be, at every p.

    Scores that are all 0 or all 1 are rights and wrongs. Others that are all equal tell nothing of their variance; they
    are taken to vary like scores of which one in n differs.
    """
    most = mean * (1 - mean)
    if most <= 0:
        return wilson(rows * mean, rows, level)
    return _score(mean, most / variance if variance > 0 else rows**2, _student(level, rows - 1))


def of_numbers(values: np.ndarray, level: float) -> Interval:
    """The interval of a mean of any numbers: Student's t, corrected for skewness as far as the rows show it.

    Numbers of which there are only two are a proportion, on another scale. A number that is seldom and large, and not
    among the rows, cannot be known of.
    """
    if len(values) < 2:
        return math.nan, math.nan
    rows, mean, low, high = len(values), float(values.mean()), float(values.min()), float(values.max())
    if low == high:
        return mean, mean
    if np.isin(values, (low, high)).all():
        below, above = wilson((values == high).sum(), rows, level)
        return low + (high - low) * below, low + (high - low) * above
    centered = values - mean
    skewness = float((centered**3).mean() / (centered**2).mean() ** 1.5)
    error = float(values.std(ddof=1)) / math.sqrt(rows)
    t = _student(level, rows - 1)
    below, above = (mean - error * float(unskewed(at, skewness / math.sqrt(rows))) for at in (t, -t))
    return below, above


def unskewed(t: float | np.ndarray, skewness: float | np.ndarray) -> np.ndarray:
    """Where a mean of skewed numbers, in standard errors from the truth, has the probability that Student has at `t`.

    The inverse of Hall's cubic transformation, with the skewness of the *mean*: that of the numbers, by the square root
    of how many there are.
    """
    a = np.where(np.abs(skewness) > 1e-9, skewness, 1.0)
    return np.where(np.abs(skewness) > 1e-9, (np.cbrt(1 + a * (t - a / 6)) - 1) * 3 / a, t)


def of_difference(first: np.ndarray, second: np.ndarray, level: float) -> Interval:
    """The interval of the mean difference of two columns of scores of the same rows.

    Rights and wrongs get half a row more in each of the four cells, by Agresti and Min. Other scores have Student's t.

    **Returns:** its ends; NaN for less than two rows.
    """
    rows, difference = len(first), first - second
    if rows < 2:
        return math.nan, math.nan
    mean = float(difference.mean())
    if kind_of(first) == kind_of(second) == "proportion":
        more = rows + 2
        middle = mean * rows / more
        variance = (float((difference**2).sum()) + 1) / more - middle**2
        half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(variance / more)
        return max(-1.0, middle - half), min(1.0, middle + half)
    half = _student(level, rows - 1) * float(difference.std(ddof=1)) / math.sqrt(rows)
    return mean - half, mean + half


def _score(mean: float, rows: float, quantile: float) -> Interval:
    per = quantile**2 / rows
    middle = (mean + per / 2) / (1 + per)
    half = math.sqrt(per * mean * (1 - mean) + per * per / 4) / (1 + per)
    return max(0.0, middle - half), min(1.0, middle + half)


def _student(level: float, freedom: int) -> float:
    from scipy.special import stdtrit  # imported here: it takes a tenth of a second; JAX depends on it

    return float(stdtrit(freedom, (1 + level) / 2))


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
